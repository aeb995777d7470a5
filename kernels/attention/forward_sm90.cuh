#pragma once

#include <cstdint>

#include "kernels/attention/block_sparse_sm90.h"
#include "kernels/common/fragment.cuh"
#include "kernels/common/tma.cuh"
#include "kernels/common/wgmma.cuh"

// The forward pass of softmax attention on compute capability 9.0a.
//
// A block has one warpgroup that loads and kGroups that compute, 64 queries each. It walks over
// tiles of queries; for each it loads Q, then the spans of keys into two rings, of K and of V. A
// computing warpgroup starts S = Q Kᵀ of a span and O += P V of the span before it together, and
// makes P of the former while the matrix units still work on the latter (FlashAttention-3, Shah et
// al. 2024, arXiv:2407.08608, section 3.2). The softmax is online (Milakov and Gimelshein 2018,
// arXiv:1805.02867); sums of a row are kept by four threads and joined at the end.

namespace fovea::kernels::sm90 {

using wgmma::Type;

/// The shape of a kernel.
template <int kDim_, int kGroups_, int kKeys_, int kStages_, bool kHold_ = false>
struct ForwardShape {
  static constexpr int kDim = kDim_;        // channels of a head
  static constexpr int kGroups = kGroups_;  // computing warpgroups
  static constexpr int kKeys = kKeys_;      // of a span
  static constexpr int kStages = kStages_;  // spans that a ring holds
  // The compiler waits for the values before the exponentials, unless something of these is stored
  // first: then the matrix units work meanwhile.
  static constexpr bool kHold = kHold_;
  static constexpr int kQueries = 64 * kGroups;
  static constexpr int kThreads = 128 * (kGroups + 1);
  static constexpr int kPanels = kDim / 64;  // of 64 columns
  static constexpr int kQueryBytes = kQueries * kDim * 2;
  static constexpr int kSpanBytes = kKeys * kDim * 2;
  // What the register file of a multiprocessor gives each thread of its only block.
  static constexpr int kLoadRegisters = kGroups == 3 ? 32 : 24;
  static constexpr int kComputeRegisters = kGroups == 3 ? 160 : 240;
};

template <typename Shape>
struct ForwardMemory {
  alignas(1024) char q[Shape::kQueryBytes];  // (panels, queries, 64), then O in the same places
  alignas(1024) char k[Shape::kStages][Shape::kSpanBytes];  // (panels, keys, 64)
  alignas(1024) char v[Shape::kStages][Shape::kSpanBytes];
  uint64_t q_full, q_empty;
  uint64_t k_full[Shape::kStages], k_empty[Shape::kStages];
  uint64_t v_full[Shape::kStages], v_empty[Shape::kStages];
  int k_len[Shape::kStages];                                     // keys of the span
  volatile float held[Shape::kHold ? 128 * Shape::kGroups : 1];  // written, never read
};

struct ForwardParams {
  int heads, heads_per_kv, q_len, kv_len;
  int tiles, num_tiles;  // of a head, of all heads
  TileLists lists;
  float* lse;
  float scale_log2;  // sm_scale * log2(e)
};

/// What a tile of queries has to do.
template <typename Shape>
struct TileWork {
  int tile, head, item, spans;
  const KeySpan* list;  // null: all keys
  int kv_len;

  __device__ TileWork(const ForwardParams& params, int index) : kv_len(params.kv_len) {
    tile = index % params.tiles;
    head = index / params.tiles % params.heads;
    item = index / params.tiles / params.heads;
    list = nullptr;
    spans = (kv_len + Shape::kKeys - 1) / Shape::kKeys;
    if (params.lists.spans != nullptr) {
      const int64_t map = item * params.lists.batch_stride + head * params.lists.head_stride;
      const int32_t* ptr = params.lists.span_ptr + map * (params.tiles + 1) + tile;
      list = params.lists.spans + ptr[0];
      spans = ptr[1] - ptr[0];
    }
  }

  // From the last one to the first: what is not full comes first then.
  __device__ KeySpan span(int i) const {
    const int last = spans - 1 - i;
    if (list != nullptr) return list[last];
    const int begin = last * Shape::kKeys;
    return {begin, min(Shape::kKeys, kv_len - begin)};
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

/// Everything that is loaded; one thread.
template <typename Shape>
__device__ void load_tiles(const ForwardParams& params, const CUtensorMap& q_map,
                           const CUtensorMap& k_map, const CUtensorMap& v_map,
                           ForwardMemory<Shape>& memory) {
  const uint64_t first = tma::evict_first(), last = tma::evict_last();
  RingPlace<Shape::kStages> k_place, v_place;
  uint32_t q_parity = 0;
  for (int index = blockIdx.x; index < params.num_tiles; index += gridDim.x, q_parity ^= 1) {
    const TileWork<Shape> work(params, index);
    const int kv_head = work.head / params.heads_per_kv;
    const auto load_k = [&](KeySpan span) {
      const int slot = k_place.slot;
      ptx::wait(&memory.k_empty[slot], k_place.parity ^ 1);
      memory.k_len[slot] = span.len;
      ptx::arrive_expect(&memory.k_full[slot], Shape::kSpanBytes);
      tma::load(memory.k[slot], k_map, {0, span.begin, 0, kv_head, work.item}, &memory.k_full[slot],
                last);
      k_place.next();
    };
    const auto load_v = [&](KeySpan span) {
      const int slot = v_place.slot;
      ptx::wait(&memory.v_empty[slot], v_place.parity ^ 1);
      ptx::arrive_expect(&memory.v_full[slot], Shape::kSpanBytes);
      tma::load(memory.v[slot], v_map, {0, span.begin, 0, kv_head, work.item}, &memory.v_full[slot],
                last);
      v_place.next();
    };
    ptx::wait(&memory.q_empty, q_parity ^ 1);
    ptx::arrive_expect(&memory.q_full, Shape::kQueryBytes);
    tma::load(memory.q, q_map, {0, work.tile * Shape::kQueries, 0, work.head, work.item},
              &memory.q_full, first);
    if (work.spans == 0) continue;
    KeySpan before = work.span(0);
    load_k(before);
    for (int i = 1; i < work.spans; ++i) {
      const KeySpan span = work.span(i);
      load_k(span);
      load_v(before);
      before = span;
    }
    load_v(before);
  }
}

/// The softmax of a thread's two rows, first_row and first_row + 8, of which it has every fourth
/// pair of columns.
struct OnlineSoftmax {
  float largest[2] = {-INFINITY, -INFINITY};  // logits, before the scale
  float sum[2] = {0, 0};                      // of this thread's weights

  /// Logits become weights relative to the new largest one. What so far was summed up is to be
  /// multiplied by `keep`.
  template <int kCount>
  __device__ void step(float scale_log2, float (&s)[kCount], float (&keep)[2]) {
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      float top = largest[row];
#pragma unroll
      for (int i = 2 * row; i < kCount; i += 4) top = fmaxf(top, fmaxf(s[i], s[i + 1]));
      top = fmaxf(top, __shfl_xor_sync(0xffffffff, top, 1));
      top = fmaxf(top, __shfl_xor_sync(0xffffffff, top, 2));
      // A row of -inf alone has weights 0, not NaN.
      const float now = top == -INFINITY ? 0 : top * scale_log2;
      keep[row] = ptx::exp2_approx(largest[row] * scale_log2 - now);
      largest[row] = top;
      float total = 0;
#pragma unroll
      for (int i = 2 * row; i < kCount; i += 4) {
        s[i] = ptx::exp2_approx(fmaf(s[i], scale_log2, -now));
        s[i + 1] = ptx::exp2_approx(fmaf(s[i + 1], scale_log2, -now));
        total += s[i] + s[i + 1];
      }
      sum[row] = fmaf(sum[row], keep[row], total);
    }
  }

  /// The sums of all four threads of a row.
  __device__ void join() {
#pragma unroll
    for (float& x : sum) {
      x += __shfl_xor_sync(0xffffffff, x, 1);
      x += __shfl_xor_sync(0xffffffff, x, 2);
    }
  }
  /// Natural logarithm of the softmax' denominator; after join().
  __device__ float lse(float scale_log2, int row) const {
    constexpr float kLn2 = 0.693147180559945f;
    return sum[row] == 0 ? -INFINITY : fmaf(largest[row], scale_log2, log2f(sum[row])) * kLn2;
  }
};

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

  /// S = Q Kᵀ of the ring's next span, as a group of its own.
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

  /// O += P V of the ring's next span.
  __device__ void start_values(bool is_first) {
    const uint32_t v = ptx::shared_address(memory.v[v_place.slot]);
    wgmma::fence();
#pragma unroll
    for (int step = 0; step < Shape::kKeys / 16; ++step) {
      wgmma::multiply<kType, true>(o, p[step], wgmma::n_major(v + step * 2048, Shape::kKeys * 128),
                                   step > 0 || !is_first);
    }
    wgmma::commit();
  }

  /// Keys behind the span's end count nothing.
  __device__ void mask(int len) {
    if (len >= Shape::kKeys) return;
#pragma unroll
    for (int i = 0; i < Shape::kKeys / 2; ++i) {
      if (fragment::column(thread, i) >= len) s[i] = -INFINITY;
    }
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

  /// All spans of a tile.
  __device__ void attend(int spans, float scale_log2, OnlineSoftmax& softmax) {
    float keep[2];
    ptx::wait(&memory.k_full[k_place.slot], k_place.parity);
    int len = memory.k_len[k_place.slot];
    start_logits();
    wgmma::wait<0>();
    wgmma::pin(s);
    release(&memory.k_empty[k_place.slot]);
    k_place.next();
    mask(len);
    softmax.step(scale_log2, s, keep);
    make_operand();
    for (int i = 1; i < spans; ++i) {
      ptx::wait(&memory.k_full[k_place.slot], k_place.parity);
      len = memory.k_len[k_place.slot];
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
    start_values(spans == 1);
    wgmma::wait<0>();
    wgmma::pin(o);
    release(&memory.v_empty[v_place.slot]);
    v_place.next();
  }

  /// Divides, writes O into the place of this warpgroup's queries, and from there away.
  __device__ void write(const ForwardParams& params, const CUtensorMap& out_map,
                        const TileWork<Shape>& work, OnlineSoftmax& softmax) {
    softmax.join();
    const int first = work.tile * Shape::kQueries + group * 64;
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const float share = softmax.sum[row] == 0 ? 0 : 1 / softmax.sum[row];
#pragma unroll
      for (int i = 2 * row; i < Shape::kDim / 2; i += 4) o[i] *= share, o[i + 1] *= share;
      const int query = first + fragment::first_row(thread) + 8 * row;
      if (params.lse != nullptr && thread % 4 == 0 && query < params.q_len) {
        const int64_t of_head = static_cast<int64_t>(work.item) * params.heads + work.head;
        params.lse[of_head * params.q_len + query] = softmax.lse(params.scale_log2, row);
      }
    }
    char* const rows = memory.q + group * 64 * 128;
    fragment::store<kType>(o, ptx::shared_address(rows), Shape::kQueries * 128, thread);
    ptx::fence_async_proxy();
    ptx::named_sync(1 + group, 128);
    if (thread == 0) {
      if (first < params.q_len) {
#pragma unroll
        for (int panel = 0; panel < Shape::kPanels; ++panel) {
          tma::store(out_map, {0, first, panel, work.head, work.item},
                     rows + panel * Shape::kQueries * 128);
        }
        ptx::bulk_commit();
        ptx::bulk_wait_read<0>();
      }
      ptx::arrive(&memory.q_empty);
    }
  }
};

/// Grid: as many blocks as are to run at a time; each takes every gridDim.x-th tile.
template <typename Shape, Type kType>
__global__ void __launch_bounds__(Shape::kThreads, 1)
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
    for (int index = blockIdx.x; index < params.num_tiles; index += gridDim.x, q_parity ^= 1) {
      const TileWork<Shape> work(params, index);
      OnlineSoftmax softmax;
      ptx::wait(&memory.q_full, q_parity);
      if (work.spans > 0) {
        computer.attend(work.spans, params.scale_log2, softmax);
      } else {
#pragma unroll
        for (float& x : computer.o) x = 0;
      }
      computer.write(params, out_map, work, softmax);
    }
  }
#endif
}

}  // namespace fovea::kernels::sm90
