#pragma once

#include <cstdint>

#include "kernels/attention/forward_loader_sm90.cuh"
#include "kernels/attention/online_softmax.cuh"
#include "kernels/common/fragment.cuh"
#include "kernels/common/tma.cuh"
#include "kernels/common/wgmma.cuh"

// What computing warpgroups of the forward pass of compute capability 9.0a have in common, in
// whatever numbers they multiply.

namespace fovea::kernels::sm90 {

/// One of the computing warpgroups: its places in the rings, what hides logits, and the way of O.
template <typename Shape, Type kOut>
struct TileWorker {
  static constexpr int kPieces = Shape::kPieces;

  const ForwardParams& params;
  const ForwardMaps<Shape::kHeights>& maps;
  ForwardMemory<Shape>& memory;
  int group, thread;
  RingPlace<Shape::kStages> k_place = {};
  RingPlace<Shape::kValueStages> v_place = {};
  uint32_t tiles_done = 0;

  /// Of the tile at hand: where its queries are, and the parity of that phase.
  __device__ int q_slot() const { return static_cast<int>(tiles_done % Shape::kSlots); }
  __device__ uint32_t q_parity() const { return tiles_done / Shape::kSlots % 2; }

  /// One thread a warp says that it has read a slot.
  __device__ void release(uint64_t* empty) const {
    if (thread % 32 == 0) ptx::arrive(empty);
  }

  /// Keys from column `len` of a piece on count nothing.
  __device__ static void cut(int thread, float (&s)[Shape::kKeys / 2], int piece, int len) {
#pragma unroll
    for (int i = 0; i < Shape::kSpan / 2; ++i) {
      if (fragment::column(thread, i) >= len) s[piece * (Shape::kSpan / 2) + i] = -INFINITY;
    }
  }

  /// Pairs that a piece's mask does not have count nothing.
  __device__ void mask(int thread, float (&s)[Shape::kKeys / 2], int piece, uint32_t number) const {
    const int64_t row = static_cast<int64_t>(number - 1) * Shape::kQueries + group * 64 +
                        fragment::first_row(thread);
    const uint32_t* const words = params.lists.masks + row * kMaskWords + thread % 4;
    const uint32_t seen[2] = {words[0], words[8 * kMaskWords]};
#pragma unroll
    for (int i = 0; i < Shape::kSpan / 2; ++i) {
      if ((seen[i / 2 % 2] >> (i / 4 * 2 + i % 2) & 1) == 0) {
        s[piece * (Shape::kSpan / 2) + i] = -INFINITY;
      }
    }
  }

  /// The orders' places of this warpgroup's queries, or null: as they are.
  __device__ const int32_t* places_of(const TileNotes& tile) const {
    const RowOrder& order = params.out_order;
    if (order.rows == nullptr) return nullptr;
    return order.rows + tile.item * order.batch_stride + tile.head * order.head_stride +
           tile.begin + group * 64;
  }

  /// Writes the softmax' denominator of one of a thread's two rows.
  __device__ void write_lse(const TileNotes& tile, const int32_t* places, int row,
                            float lse) const {
    const int own = fragment::first_row(thread) + 8 * row;
    const int64_t of_head = static_cast<int64_t>(tile.item) * params.heads + tile.head;
    const int place = places == nullptr ? tile.begin + group * 64 + own : places[own];
    params.lse[of_head * params.q_len + place] = lse;
  }
  /// Whether this thread writes that.
  __device__ bool writes_lse(const TileNotes& tile, int row) const {
    return params.lse != nullptr && thread % 4 == 0 &&
           fragment::first_row(thread) + 8 * row < tile.len - group * 64;
  }

  /// Writes O into the place of this warpgroup's queries, and from there away.
  __device__ void store(const TileNotes& tile, const int32_t* places,
                        const float (&o)[Shape::kDim / 2]) {
    const int first = tile.begin + group * 64;
    const int rows = min(64, tile.len - group * 64);  // below 1: none
    char* const box = memory.q[q_slot()] + group * 64 * 128;
    fragment::store<kOut>(o, ptx::shared_address(box), Shape::kQueries * 128, thread);
    ptx::fence_async_proxy();
    ptx::named_sync(1 + group, 128);
    // The copy engine leaves out rows behind the end of the sequence, but not those of another
    // tile, and knows no orders.
    if (places == nullptr && (!Shape::kListed || rows == 64 || first + rows == params.q_len)) {
      if (thread == 0 && rows > 0) {
#pragma unroll
        for (int panel = 0; panel < Shape::kDim / 64; ++panel) {
          tma::store(maps.out, {0, first, panel, tile.head, tile.item},
                     box + panel * Shape::kQueries * 128);
        }
        ptx::bulk_commit();
      }
    } else {
      copy_rows(tile, places, box, rows);
      ptx::named_sync(1 + group, 128);
    }
    if constexpr (Shape::kSlots == 1) release_stored();
    ++tiles_done;
  }

  /// The slot of the queries whose O was written last is free when that has been read. Where there
  /// is another slot this is asked once in the middle of the next tile, when it has.
  __device__ void release_stored() {
    if (thread != 0 || (Shape::kSlots > 1 && tiles_done == 0)) return;
    ptx::bulk_wait_read<0>();
    ptx::arrive(&memory.q_empty[q_slot() ^ (Shape::kSlots - 1)]);
  }

  /// The first rows of `box` to their places, 16 bytes at a time.
  __device__ void copy_rows(const TileNotes& tile, const int32_t* places, const char* box,
                            int rows) const {
    const MutableHeadRows& out = params.out;
    char* const head = static_cast<char*>(out.data) +
                       2 * (tile.item * out.batch_stride + tile.head * out.head_stride);
    constexpr int kUnits = Shape::kDim / 8;  // of 8 columns
    for (int i = thread; i < rows * kUnits; i += 128) {
      const int row = i / kUnits, unit = i % kUnits;
      const char* from =
          box + unit / 8 * Shape::kQueries * 128 + row * 128 + ((unit % 8 ^ row % 8) * 16);
      const int64_t place = places == nullptr ? tile.begin + group * 64 + row : places[row];
      *reinterpret_cast<uint4*>(head + 2 * place * out.row_stride + unit * 16) =
          *reinterpret_cast<const uint4*>(from);
    }
  }
};

}  // namespace fovea::kernels::sm90
