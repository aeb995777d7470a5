#pragma once

#include "kernels/attention/forward_loader_sm90.cuh"

// How packed lists are loaded on compute capability 9.0a, see `PackedSpan`. Three warps share the
// work: one looks for tiles and loads Q, one loads keys, one values. A span is two copies for each
// panel of 64 channels, and each warp starts them one after the other.

namespace fovea::kernels::sm90 {

/// Of a number above 0, rounded down.
constexpr int log2_of(int x) { return x < 2 ? 0 : 1 + log2_of(x / 2); }

/// The shape of a kernel for packed lists, in 16-bit numbers and two warpgroups.
///
/// kExact_  a power of 2: boxes of 1 to so many rows, then of twice as many and so on up to 128. A
///          span of another length is two boxes that overlap.
template <int kDim_, int kKeys_, int kStages_, int kExact_ = 32>
struct PackedShape : ForwardShape<kDim_, 2, kKeys_, kStages_, 1> {
  static constexpr bool kPacked = true;
  static constexpr int kExact = kExact_;
  static constexpr int kHeights = kExact + 7 - log2_of(kExact);
  static constexpr int kLoadRegisters = 40;
  static constexpr int kComputeRegisters = 232;  // of which S, O and P take up to 196
};

/// Looks for tiles, one ahead of those that are loaded; a warp.
template <typename Shape>
struct PackedScout {
  const ForwardParams& params;
  const ForwardMaps<Shape::kHeights>& maps;
  ForwardMemory<Shape>& memory;
  int lane;
  RingPlace<Shape::kSlots> q_place = {};

  __device__ void run() {
    int index = blockIdx.x;
    for (uint32_t parity = 0;; parity ^= 1) {
      const TileNotes notes = tell(index);
      announce(notes);
      if (notes.steps < 0) break;
      ptx::wait(&memory.packed.taken, parity);
      index = __shfl_sync(0xffffffff, draw_tile(params, index, lane), 0);
    }
  }

  /// The tile of number `index`, or the next one there is, for those who load keys.
  __device__ TileNotes tell(int& index) const {
    const TileLists& lists = params.lists;
    TileNotes notes{0, 0, 0, 0, -1};
    const PackedSpan* list = nullptr;
    while (index < params.num_tiles) {
      notes.head = index / params.tiles % params.heads;
      notes.item = index / params.tiles / params.heads;
      const int64_t map = notes.item * lists.batch_stride + notes.head * lists.head_stride;
      const QueryTile queries = lists.tiles[map * lists.tiles_per_map + index % params.tiles];
      if (queries.len > 0) {
        const int64_t row = map * lists.rows + queries.row;
        notes.begin = queries.begin, notes.len = queries.len, notes.steps = lists.counts[row];
        list = lists.packed + row * lists.capacity;
        break;
      }
      index = __shfl_sync(0xffffffff, draw_tile(params, index, lane), 0);
    }
    if (list != nullptr && lane < lists.capacity) memory.packed.first_spans[lane] = list[lane];
    if (lane == 0) {
      memory.packed.tile = {list, notes.item, notes.head / params.heads_per_kv, notes.steps};
    }
    __syncwarp();
    if (lane == 0) ptx::arrive(&memory.packed.found);
    return notes;
  }

  /// Tells the others, and loads Q.
  __device__ void announce(const TileNotes& notes) {
    const auto [slot, parity] = q_place;
    uint64_t* const full = &memory.q_full[slot];
    q_place.next();
    ptx::wait(&memory.q_empty[slot], parity ^ 1);
    if (lane == 0) {
      memory.tiles[slot] = notes;
      if (notes.steps < 0) {
        ptx::arrive(full);
      } else {
        ptx::arrive_expect(full, Shape::kLoadedQueryBytes);
        tma::load(memory.q[slot], maps.q, {0, notes.begin, 0, notes.head, notes.item}, full,
                  tma::evict_first());
      }
    }
    __syncwarp();
  }
};

/// Loads the keys of all tiles, or their values; a warp. Lanes read lists, 32 spans at a time and
/// one such time ahead, and each copies one of a step's spans.
template <typename Shape, bool kValues>
struct PackedLoader {
  static constexpr unsigned kAll = 0xffffffff;
  static constexpr int kExact = Shape::kExact;

  const ForwardParams& params;
  const ForwardMaps<Shape::kHeights>& maps;
  ForwardMemory<Shape>& memory;
  int lane;
  RingPlace<kValues ? Shape::kValueStages : Shape::kStages> place = {};
  PackedTile tile = {};
  PackedSpan kept = {}, kept_next = {};
  int first_kept = 0, looked_up = 0;  // the next step's first, those of the list read so far

  struct Step {
    PackedSpan span;  // this lane's, or one of no keys
    int len;          // of all
  };

  __device__ void run() {
    if (lane < Shape::kHeights) tma::prefetch((kValues ? maps.v : maps.k)[lane]);
    for (uint32_t parity = 0;; parity ^= 1) {
      ptx::wait(&memory.packed.found, parity);
      tile = memory.packed.tile;
      kept_next = memory.packed.first_spans[lane];
      first_kept = looked_up = 32;
      __syncwarp();
      if (lane == 0) ptx::arrive(&memory.packed.taken);
      if (tile.steps < 0) break;
#pragma unroll 1
      for (int i = 0; i < tile.steps; ++i) load(next_step());
    }
  }

  /// Spans that were looked up last are not waited for as long as the others have the step's end.
  __device__ Step next_step() {
    if (first_kept >= 32) {
      first_kept -= 32;
      kept = kept_next;
      const int number = looked_up + lane;
      kept_next = number < params.lists.capacity ? tile.list[number] : PackedSpan();
      looked_up += 32;
    }
    const int number = first_kept + lane;
    uint64_t bits = __shfl_sync(kAll, bits_of(kept), number % 32);
    int count = __ffs(static_cast<int>(__ballot_sync(kAll, kept.ends_step) >> first_kept));
    if (count == 0) {
      const uint64_t behind = __shfl_sync(kAll, bits_of(kept_next), number % 32);
      if (number >= 32) bits = behind;
      count = 32 - first_kept + __ffs(static_cast<int>(__ballot_sync(kAll, kept_next.ends_step)));
    }
    first_kept += count;
    Step out;
    memcpy(&out.span, &bits, sizeof bits);
    out.len = __shfl_sync(kAll, out.span.row + out.span.len, count - 1);
    if (lane >= count) out.span.len = 0;
    return out;
  }
  __device__ static uint64_t bits_of(const PackedSpan& span) {
    uint64_t bits;
    static_assert(sizeof bits == sizeof span);
    memcpy(&bits, &span, sizeof bits);
    return bits;
  }

  /// A span is one box, or two that overlap and bring the same there: none has rows of others.
  __device__ void load(const Step& step) {
    const auto [slot, parity] = place;
    uint64_t* const full = kValues ? &memory.v_full[slot] : &memory.k_full[slot];
    place.next();
    ptx::wait(kValues ? &memory.v_empty[slot] : &memory.k_empty[slot], parity ^ 1);
    const auto below = [](int len) { return len <= kExact ? len : 1 << (31 - __clz(len)); };
    const auto above = [](int len) { return len <= kExact ? len : 1 << (32 - __clz(len - 1)); };
    const int len = step.span.len, heights[2] = {below(len), above(len - below(len))};
    const int rows = __reduce_add_sync(kAll, heights[0] + heights[1]);
    if (lane == 0) {
      if constexpr (!kValues) {
        StepNotes<1>& notes = memory.steps[slot];
        notes.is_plain = step.len == Shape::kKeys, notes.len[0] = step.len;
      }
      ptx::arrive_expect(full, rows * Shape::kPanels * 128);
    }
    __syncwarp();
    char* const to = (kValues ? memory.v[slot] : memory.k[slot]) + step.span.row * 128;
    copy(step.span.begin, heights[0], to, full);
    const int behind = len - heights[1];
    copy(step.span.begin + behind, heights[1], to + behind * 128, full);
    __syncwarp();
  }

  /// The box of so many rows at a position; of 0 rows none.
  __device__ void copy(int begin, int height, char* to, uint64_t* full) const {
    if (height == 0) return;
    int number = height <= kExact ? height - 1 : kExact - 1 + 31 - __clz(height / kExact);
    if (begin >= params.more_begin) begin -= params.more_begin, number += Shape::kHeights;
    const CUtensorMap* const map = (kValues ? maps.v : maps.k) + number;
#pragma unroll 1
    for (int panel = 0; panel < Shape::kPanels; ++panel) {
      tma::load(to + panel * Shape::kKeys * 128, *map, {0, begin, panel, tile.kv_head, tile.item},
                full, tma::evict_last());
    }
  }
};

}  // namespace fovea::kernels::sm90
