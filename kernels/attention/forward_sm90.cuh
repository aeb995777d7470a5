#pragma once

#include <cstdint>

#include "kernels/attention/block_sparse_cuda.h"
#include "kernels/attention/online_softmax.cuh"
#include "kernels/common/fragment.cuh"
#include "kernels/common/tma.cuh"
#include "kernels/common/wgmma.cuh"

// The forward pass of softmax attention on compute capability 9.0a.
//
// A block has one warpgroup that loads and kGroups that compute, 64 queries each. It walks over
// tiles of queries; for each it loads Q, then the keys step by step into two rings, of K and of V.
// A computing warpgroup starts S = Q Kᵀ of a step and O += P V of the step before it together, and
// makes P of the former while the matrix units still work on the latter (FlashAttention-3, Shah et
// al. 2024, arXiv:2407.08608, section 3.2). The softmax is online (Milakov and Gimelshein 2018,
// arXiv:1805.02867); sums of a row are kept by four threads and joined at the end.

namespace fovea::kernels::sm90 {

using wgmma::Type;

/// The shape of a kernel; without pieces it is for dense attention, with one or two for lists.
template <int kDim_, int kGroups_, int kKeys_, int kStages_, int kPieces_ = 0, bool kHold_ = false>
struct ForwardShape {
  static constexpr int kDim = kDim_;        // channels of a head
  static constexpr int kGroups = kGroups_;  // computing warpgroups
  static constexpr int kKeys = kKeys_;      // of a step
  static constexpr int kStages = kStages_;  // steps that a ring holds
  static constexpr bool kListed = kPieces_ > 0;
  static constexpr int kPieces = kListed ? kPieces_ : 1;  // spans of a step
  // The compiler waits for the values before the exponentials, unless something of these is stored
  // first: then the matrix units work meanwhile.
  static constexpr bool kHold = kHold_;
  static constexpr int kQueries = 64 * kGroups;
  static constexpr int kSpan = kKeys / kPieces;  // most keys of a span
  static constexpr int kThreads = 128 * (kGroups + 1);
  static constexpr int kPanels = kDim / 64;  // of 64 columns
  static constexpr int kQueryBytes = kQueries * kDim * 2;
  static constexpr int kStepBytes = kKeys * kDim * 2;
  // Blocks on a multiprocessor, and what its register file gives each of their threads.
  static constexpr int kBlocks = kGroups == 1 ? 2 : 1;
  static constexpr int kLoadRegisters = kGroups == 3 ? 32 : 24;
  static constexpr int kComputeRegisters = kGroups == 3 ? 160 : kGroups == 2 ? 240 : 232;
};

template <typename Shape>
struct ForwardMemory {
  alignas(1024) char q[Shape::kQueryBytes];  // (panels, queries, 64), then O in the same places
  alignas(1024) char k[Shape::kStages][Shape::kStepBytes];  // (panels, keys, 64)
  alignas(1024) char v[Shape::kStages][Shape::kStepBytes];  // (pieces, panels, keys, 64)
  uint64_t q_full, q_empty;
  uint64_t k_full[Shape::kStages], k_empty[Shape::kStages];
  uint64_t v_full[Shape::kStages], v_empty[Shape::kStages];
  int k_len[Shape::kStages][Shape::kPieces];                     // keys of the spans
  volatile float held[Shape::kHold ? 128 * Shape::kGroups : 1];  // written, never read
};

struct ForwardParams {
  int heads, heads_per_kv, q_len, kv_len;
  int tiles, num_tiles;  // of a head, of all heads
  TileLists lists;
  MutableHeadRows out;
  float* lse;
  float scale_log2;  // sm_scale * log2(e)
};

/// What a tile of queries has to do.
template <typename Shape>
struct TileWork {
  int head, item, steps;
  QueryTile queries;
  const KeySpan* list = nullptr;
  int spans, kv_len;

  __device__ TileWork(const ForwardParams& params, int index) : kv_len(params.kv_len) {
    const int tile = index % params.tiles;
    head = index / params.tiles % params.heads;
    item = index / params.tiles / params.heads;
    if constexpr (Shape::kListed) {
      const TileLists& lists = params.lists;
      const int64_t map = item * lists.batch_stride + head * lists.head_stride;
      queries = lists.tiles[map * lists.tiles_per_map + tile];
      const int64_t row = map * lists.rows + queries.row;
      list = lists.spans + row * lists.capacity;
      spans = queries.len > 0 ? lists.counts[row] : 0;
    } else {
      const int begin = tile * Shape::kQueries;
      queries = {begin, min(Shape::kQueries, params.q_len - begin), 0, 0};
      spans = (kv_len + Shape::kSpan - 1) / Shape::kSpan;
    }
    steps = (spans + Shape::kPieces - 1) / Shape::kPieces;
  }

  /// A piece of step i. From the last step to the first: what is not full comes first then.
  __device__ KeySpan span(int i, int piece) const {
    const int at = (steps - 1 - i) * Shape::kPieces + piece;
    if (at >= spans) return {kv_len, 0};  // the copy engine brings zeros
    if constexpr (Shape::kListed) return list[at];
    return {at * Shape::kSpan,
            static_cast<uint32_t>(min(Shape::kSpan, kv_len - at * Shape::kSpan))};
  }
};

/// A place in a ring, and the parity of its phase.
template <int kStages>
struct RingPlace {
  int slot = 0;
  uint32_t parity = 0;

  __device__ void next() {
    if (++slot == kStages) slot = 0, parity ^= 1;
  }
};

/// The copies of a tile's steps; one thread.
template <typename Shape>
struct Loader {
  static constexpr int kPieces = Shape::kPieces;

  const CUtensorMap& k_map;
  const CUtensorMap& v_map;
  ForwardMemory<Shape>& memory;
  uint64_t policy;
  RingPlace<Shape::kStages> k_place, v_place;

  /// Spans of a step, asked for before they are needed.
  struct Step {
    KeySpan spans[kPieces];
  };
  __device__ static Step step(const TileWork<Shape>& work, int i) {
    Step out;
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece) out.spans[piece] = work.span(i, piece);
    return out;
  }

  __device__ void load_k(const Step& step, int kv_head, int item) {
    const int slot = k_place.slot;
    uint64_t* const full = &memory.k_full[slot];
    ptx::wait(&memory.k_empty[slot], k_place.parity ^ 1);
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece) memory.k_len[slot][piece] = step.spans[piece].len;
    ptx::arrive_expect(full, Shape::kStepBytes);
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece) {
      const int begin = step.spans[piece].begin;
      if constexpr (kPieces == 1) {
        tma::load(memory.k[slot], k_map, {0, begin, 0, kv_head, item}, full, policy);
      } else {
#pragma unroll
        for (int panel = 0; panel < Shape::kPanels; ++panel) {
          char* const rows = memory.k[slot] + (panel * Shape::kKeys + piece * Shape::kSpan) * 128;
          tma::load(rows, k_map, {0, begin, panel, kv_head, item}, full, policy);
        }
      }
    }
    k_place.next();
  }

  __device__ void load_v(const Step& step, int kv_head, int item) {
    const int slot = v_place.slot;
    ptx::wait(&memory.v_empty[slot], v_place.parity ^ 1);
    ptx::arrive_expect(&memory.v_full[slot], Shape::kStepBytes);
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece) {
      tma::load(memory.v[slot] + piece * (Shape::kStepBytes / kPieces), v_map,
                {0, step.spans[piece].begin, 0, kv_head, item}, &memory.v_full[slot], policy);
    }
    v_place.next();
  }
};

/// Everything that is loaded; one thread.
template <typename Shape>
__device__ void load_tiles(const ForwardParams& params, const CUtensorMap& q_map,
                           const CUtensorMap& k_map, const CUtensorMap& v_map,
                           ForwardMemory<Shape>& memory) {
  const uint64_t once = tma::evict_first();
  Loader<Shape> loader{k_map, v_map, memory, tma::evict_last()};
  uint32_t q_parity = 0;
  for (int index = blockIdx.x; index < params.num_tiles; index += gridDim.x) {
    const TileWork<Shape> work(params, index);
    if (work.queries.len == 0) continue;
    const int kv_head = work.head / params.heads_per_kv;
    ptx::wait(&memory.q_empty, q_parity ^ 1);
    q_parity ^= 1;
    ptx::arrive_expect(&memory.q_full, Shape::kQueryBytes);
    tma::load(memory.q, q_map, {0, work.queries.begin, 0, work.head, work.item}, &memory.q_full,
              once);
    if (work.steps == 0) continue;
    auto before = loader.step(work, 0);
    loader.load_k(before, kv_head, work.item);
    for (int i = 1; i < work.steps; ++i) {
      const auto now = loader.step(work, i);
      loader.load_k(now, kv_head, work.item);
      loader.load_v(before, kv_head, work.item);
      before = now;
    }
    loader.load_v(before, kv_head, work.item);
  }
}

/// One of the computing warpgroups.
template <typename Shape, Type kType>
struct Computer {
  ForwardMemory<Shape>& memory;
  int group, thread;
  RingPlace<Shape::kStages> k_place, v_place;
  float o[Shape::kDim / 2];
  float s[Shape::kKeys / 2];
  uint32_t p[Shape::kKeys / 16][4];

  /// One thread a warp says that it has read a slot.
  __device__ void release(uint64_t* empty) const {
    if (thread % 32 == 0) ptx::arrive(empty);
  }

  /// S = Q Kᵀ of the ring's next step, as a group of its own.
  __device__ void start_logits() {
    const uint32_t q = ptx::shared_address(memory.q) + group * 64 * 128;
    const uint32_t k = ptx::shared_address(memory.k[k_place.slot]);
    wgmma::fence();
#pragma unroll
    for (int step = 0; step < Shape::kDim / 16; ++step) {
      const int inside = step % 4 * wgmma::kStepBytes;
      wgmma::multiply<kType>(s, wgmma::k_major(q + step / 4 * Shape::kQueries * 128 + inside),
                             wgmma::k_major(k + step / 4 * Shape::kKeys * 128 + inside), step > 0);
    }
    wgmma::commit();
  }

  /// O += P V of the ring's next step.
  __device__ void start_values(bool is_first) {
    const uint32_t v = ptx::shared_address(memory.v[v_place.slot]);
    wgmma::fence();
#pragma unroll
    for (int step = 0; step < Shape::kKeys / 16; ++step) {
      constexpr int kSteps = Shape::kSpan / 16;  // of a piece
      const uint32_t rows =
          v + step / kSteps * (Shape::kStepBytes / Shape::kPieces) + step % kSteps * 2048;
      wgmma::multiply<kType, true>(o, p[step], wgmma::n_major(rows, Shape::kSpan * 128),
                                   step > 0 || !is_first);
    }
    wgmma::commit();
  }

  /// Keys behind the end of a span count nothing.
  __device__ void mask(const int (&len)[Shape::kPieces]) {
    bool full = true;
#pragma unroll
    for (const int x : len) full = full && x >= Shape::kSpan;
    if (full) return;
#pragma unroll
    for (int i = 0; i < Shape::kKeys / 2; ++i) {
      const int piece = i / 4 * 8 / Shape::kSpan;
      if (fragment::column(thread, i) - piece * Shape::kSpan >= len[piece]) s[i] = -INFINITY;
    }
  }

  /// Waits for the keys of the ring's next step.
  __device__ void await_keys(int (&len)[Shape::kPieces]) const {
    ptx::wait(&memory.k_full[k_place.slot], k_place.parity);
#pragma unroll
    for (int i = 0; i < Shape::kPieces; ++i) len[i] = memory.k_len[k_place.slot][i];
  }

  __device__ void make_operand() {
#pragma unroll
    for (int step = 0; step < Shape::kKeys / 16; ++step) {
      fragment::to_operand<kType>(s, step, p[step]);
    }
  }

  __device__ void rescale(const float (&keep)[2]) {
    if (!__any_sync(0xffffffff, keep[0] != 1 || keep[1] != 1)) return;
#pragma unroll
    for (int i = 0; i < Shape::kDim / 2; ++i) o[i] *= keep[i / 2 % 2];
  }

  /// All steps of a tile.
  __device__ void attend(int steps, float scale_log2, OnlineSoftmax& softmax) {
    float keep[2];
    int len[Shape::kPieces];
    await_keys(len);
    start_logits();
    wgmma::wait<0>();
    wgmma::pin(s);
    release(&memory.k_empty[k_place.slot]);
    k_place.next();
    mask(len);
    softmax.step(scale_log2, s, keep);
    make_operand();
    for (int i = 1; i < steps; ++i) {
      await_keys(len);
      start_logits();
      ptx::wait(&memory.v_full[v_place.slot], v_place.parity);
      start_values(i == 1);
      wgmma::wait<1>();
      wgmma::pin(s);
      release(&memory.k_empty[k_place.slot]);
      k_place.next();
      mask(len);
      softmax.step(scale_log2, s, keep);
      if constexpr (Shape::kHold)
        memory.held[group * 128 + thread] = softmax.sum[0] + softmax.sum[1];
      wgmma::wait<0>();
      wgmma::pin(o);
      release(&memory.v_empty[v_place.slot]);
      v_place.next();
      make_operand();
      rescale(keep);
    }
    ptx::wait(&memory.v_full[v_place.slot], v_place.parity);
    start_values(steps == 1);
    wgmma::wait<0>();
    wgmma::pin(o);
    release(&memory.v_empty[v_place.slot]);
    v_place.next();
  }

  /// Divides, writes O into the place of this warpgroup's queries, and from there away.
  __device__ void write(const ForwardParams& params, const CUtensorMap& out_map,
                        const TileWork<Shape>& work, OnlineSoftmax& softmax) {
    softmax.join();
    const int first = work.queries.begin + group * 64;
    const int rows = min(64, work.queries.len - group * 64);  // below 1: none
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const float share = softmax.sum[row] == 0 ? 0 : 1 / softmax.sum[row];
#pragma unroll
      for (int i = 2 * row; i < Shape::kDim / 2; i += 4) o[i] *= share, o[i + 1] *= share;
      const int own = fragment::first_row(thread) + 8 * row;
      if (params.lse != nullptr && thread % 4 == 0 && own < rows) {
        const int64_t of_head = static_cast<int64_t>(work.item) * params.heads + work.head;
        params.lse[of_head * params.q_len + first + own] = softmax.lse(params.scale_log2, row);
      }
    }
    char* const box = memory.q + group * 64 * 128;
    fragment::store<kType>(o, ptx::shared_address(box), Shape::kQueries * 128, thread);
    ptx::fence_async_proxy();
    ptx::named_sync(1 + group, 128);
    // The copy engine leaves out rows behind the end of the sequence, but not those of another
    // tile.
    if (!Shape::kListed || rows == 64 || first + rows == params.q_len) {
      if (thread == 0 && rows > 0) {
#pragma unroll
        for (int panel = 0; panel < Shape::kPanels; ++panel) {
          tma::store(out_map, {0, first, panel, work.head, work.item},
                     box + panel * Shape::kQueries * 128);
        }
        ptx::bulk_commit();
        ptx::bulk_wait_read<0>();
      }
    } else {
      copy_rows(params, work, box, rows);
      ptx::named_sync(1 + group, 128);
    }
    if (thread == 0) ptx::arrive(&memory.q_empty);
  }

  /// The first rows of `box` to their places, 16 bytes at a time.
  __device__ void copy_rows(const ForwardParams& params, const TileWork<Shape>& work,
                            const char* box, int rows) const {
    const MutableHeadRows& out = params.out;
    char* const head = static_cast<char*>(out.data) +
                       2 * (work.item * out.batch_stride + work.head * out.head_stride);
    constexpr int kUnits = Shape::kDim / 8;  // of 8 columns
    for (int i = thread; i < rows * kUnits; i += 128) {
      const int row = i / kUnits, unit = i % kUnits;
      const char* from =
          box + unit / 8 * Shape::kQueries * 128 + row * 128 + ((unit % 8 ^ row % 8) * 16);
      const int64_t query = work.queries.begin + group * 64 + row;
      *reinterpret_cast<uint4*>(head + 2 * query * out.row_stride + unit * 16) =
          *reinterpret_cast<const uint4*>(from);
    }
  }
};

/// Grid: as many blocks as are to run at a time; each takes every gridDim.x-th tile.
template <typename Shape, Type kType>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kBlocks)
    forward_kernel(const __grid_constant__ CUtensorMap q_map,
                   const __grid_constant__ CUtensorMap k_map,
                   const __grid_constant__ CUtensorMap v_map,
                   const __grid_constant__ CUtensorMap out_map,
                   const __grid_constant__ ForwardParams params) {
#ifdef FOVEA_SM90A
  extern __shared__ char shared[];
  const uint32_t past = ptx::shared_address(shared) % 1024;
  auto& memory = *reinterpret_cast<ForwardMemory<Shape>*>(shared + (1024 - past) % 1024);
  if (threadIdx.x == 0) {
    ptx::barrier_init(&memory.q_full, 1);
    ptx::barrier_init(&memory.q_empty, Shape::kGroups);
    for (int i = 0; i < Shape::kStages; ++i) {
      ptx::barrier_init(&memory.k_full[i], 1);
      ptx::barrier_init(&memory.v_full[i], 1);
      ptx::barrier_init(&memory.k_empty[i], 4 * Shape::kGroups);
      ptx::barrier_init(&memory.v_empty[i], 4 * Shape::kGroups);
    }
    ptx::fence_barrier_init();
  }
  __syncthreads();
  const int warpgroup = threadIdx.x / 128;
  if (warpgroup == Shape::kGroups) {
    ptx::give_registers<Shape::kLoadRegisters>();
    if (threadIdx.x == 128 * Shape::kGroups) load_tiles(params, q_map, k_map, v_map, memory);
  } else {
    ptx::take_registers<Shape::kComputeRegisters>();
    Computer<Shape, kType> computer{memory, warpgroup, static_cast<int>(threadIdx.x) % 128};
    uint32_t q_parity = 0;
    for (int index = blockIdx.x; index < params.num_tiles; index += gridDim.x) {
      const TileWork<Shape> begun(params, index);
      if (begun.queries.len == 0) continue;
      OnlineSoftmax softmax;
      ptx::wait(&memory.q_full, q_parity);
      q_parity ^= 1;
      if (begun.steps > 0) {
        computer.attend(begun.steps, params.scale_log2, softmax);
      } else {
#pragma unroll
        for (float& x : computer.o) x = 0;
      }
      // Found out again: registers are short meanwhile.
      int again = index;
      asm volatile("" : "+r"(again));
      computer.write(params, out_map, TileWork<Shape>(params, again), softmax);
    }
  }
#endif
}

}  // namespace fovea::kernels::sm90
