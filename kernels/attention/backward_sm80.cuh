#pragma once

#include <cstdint>

#include "kernels/attention/block_sparse_backward_cuda.h"
#include "kernels/attention/forward_sm80.cuh"

// The backward pass of softmax attention on compute capability 8.0 and newer: one kernel in two
// forms, that for gradients of queries and that for those of keys and values.
//
// A block has a tile of own rows X and Y, 16 a warp, and walks over other rows U and W, that come
// step by step into a ring:
//
//            X  Y   U  W      a step
//   rows     Q  dO  K  V      S = X Uᵀ  dP = Y Wᵀ  dX += dS U
//   columns  K  V   Q  dO     the same, and dY += P W, with S, P, dP and dS transposed
//
// P = exp(scale S - lse) and dS = P (dP - delta) with delta = sum(out dO) - dlse of each query
// (FlashAttention-2, Dao 2023, arXiv:2307.08691, section 3.1.2). P and dS stay in registers.
// Nothing is added up in global memory: what comes out is the same bit by bit each time.

namespace fovea::kernels::sm80 {

/// The shape of a kernel.
template <bool kColumns_, int kDim_, int kOwn_>
struct BackwardShape {
  static constexpr bool kColumns = kColumns_;          // tiles are of keys
  static constexpr int kDim = kDim_;                   // channels of a head
  static constexpr int kOwn = kOwn_;                   // rows of a tile
  static constexpr int kOthers = kDim > 64 ? 32 : 64;  // rows of a step
  static constexpr int kThreads = kOwn / 16 * 32;
  static constexpr int kBlocks = kOwn > 64 ? 1 : 2;       // that there are registers for
  static constexpr int kOwnBytes = kOwn * kDim * 2;       // of X, and of Y
  static constexpr int kOtherBytes = kOthers * kDim * 2;  // of a step's U, and of its W
  static constexpr int kSlotBytes = 2 * kOtherBytes;
};

/// Slots of the ring, at least 2 and at most this.
constexpr int kMostBackwardSlots = 3;

/// What a warp does at a time: other rows that lie together.
struct BackwardStep {
  Step rows;
  int head;  // of the queries
};

/// A tile of own rows.
struct BackwardWork {
  int head, item;
  QueryTile own;
};

/// The begin of shared memory; the slots come behind it: U, then W.
template <typename Shape>
struct alignas(128) BackwardMemory {
  char x[Shape::kOwnBytes];  // then dX
  char y[Shape::kOwnBytes];  // then dY
  // Of a step's queries: -lse log2(e), -delta and two numbers that nobody reads.
  float4 stats[kMostBackwardSlots][Shape::kColumns ? Shape::kOthers : 1];
  BackwardStep steps[kMostBackwardSlots];
  BackwardWork work;
};

struct BackwardParams {
  CudaAttentionBackwardArgs args;
  int tiles;  // of a head
  int slots;
  float scale, scale_log2;  // sm_scale, and times log2(e)
  float bias_scale;         // 1 / sm_scale
};

/// Queries that a head of keys has to do with; of rows, one.
template <typename Shape>
__device__ inline int heads_per_own(const CudaAttentionArgs& args) {
  return Shape::kColumns ? static_cast<int>(args.heads / args.kv_heads) : 1;
}

template <typename Shape>
__device__ inline const TileLists& lists_of(const CudaAttentionBackwardArgs& args) {
  return Shape::kColumns ? args.columns : args.forward.lists;
}

template <typename Shape>
__device__ inline BackwardWork find_backward_work(const BackwardParams& params, int index) {
  const CudaAttentionArgs& f = params.args.forward;
  const TileLists& lists = lists_of<Shape>(params.args);
  const int heads = static_cast<int>(Shape::kColumns ? f.kv_heads : f.heads);
  const int tile = index % params.tiles;
  BackwardWork work{};
  work.head = index / params.tiles % heads;
  work.item = index / params.tiles / heads;
  if (lists.tiles != nullptr) {
    const int64_t head = static_cast<int64_t>(work.head) * heads_per_own<Shape>(f);
    const int64_t map = work.item * lists.batch_stride + head * lists.head_stride;
    work.own = lists.tiles[map * lists.tiles_per_map + tile];
    // There may be tiles of the positions between the keys and the more keys.
    if (Shape::kColumns && (f.more.k.data == nullptr || work.own.begin < f.more.begin)) {
      work.own.len = min(work.own.len, max(0, static_cast<int>(f.kv_len) - work.own.begin));
    }
  } else {
    const int begin = tile * Shape::kOwn;
    const int len = static_cast<int>(Shape::kColumns ? f.kv_len : f.q_len);
    work.own = {begin, min(Shape::kOwn, len - begin), 0, 0};
  }
  return work;
}

/// Cuts the ranges of other rows of all heads into steps.
template <typename Shape>
struct BackwardWalk {
  const CudaAttentionBackwardArgs& args;
  const BackwardWork& work;
  const KeySpan* list = nullptr;
  int head = -1;  // among those of the own rows
  int ranges = 0, at = 0, offset = 0;
  int begin = 0, len = 0, mask = 0;  // of the range

  /// The next range that there is, asked for long before it is needed.
  __device__ void enter() {
    const int heads = heads_per_own<Shape>(args.forward);
    while (at >= ranges) {
      if (++head >= heads) return;
      enter_head(heads);
    }
    if (list != nullptr) {
      const KeySpan span = list[at];
      begin = span.begin, len = span.len, mask = span.mask;
    }
  }

  __device__ void enter_head(int heads) {
    const TileLists& lists = lists_of<Shape>(args);
    at = 0;
    if (lists.tiles != nullptr) {
      const int64_t of_queries = static_cast<int64_t>(work.head) * heads + head;
      const int64_t map = work.item * lists.batch_stride + of_queries * lists.head_stride;
      const int64_t row = map * lists.rows + work.own.row;
      list = lists.spans + row * lists.capacity;
      ranges = lists.counts[row];
    } else {
      ranges = 1;
      len = static_cast<int>(Shape::kColumns ? args.forward.q_len : args.forward.kv_len);
    }
  }

  __device__ BackwardStep next() {
    const int heads = heads_per_own<Shape>(args.forward);
    if (head >= heads) return {{0, -1, 0, 0}, 0};
    const BackwardStep step = {{begin + offset, min(Shape::kOthers, len - offset),
                                mask == 0 ? 0 : mask + work.own.part, offset},
                               work.head * heads + head};
    offset += Shape::kOthers;
    if (offset >= len) {
      offset = 0;
      ++at;
      enter();
    }
    return step;
  }
};

/// All copies of a block; every thread has a part of each.
template <typename Shape>
struct BackwardLoader {
  const BackwardParams& params;
  BackwardMemory<Shape>& memory;
  BackwardWalk<Shape> walk{params.args, memory.work};
  int slot = 0;

  /// Of keys: whether they are more keys.
  __device__ bool is_more(int position) const {
    const CudaAttentionArgs& f = params.args.forward;
    return f.more.k.data != nullptr && position >= f.more.begin;
  }

  template <int kCount>
  __device__ void load_rows(const void* to, const HeadRows& rows, int head, int row,
                            int len) const {
    copy_rows<Shape::kDim * 2, kCount, Shape::kThreads>(
        ptx::shared_address(to), row_of<2>(rows, memory.work.item, head, row), 2 * rows.row_stride,
        len);
  }

  /// K and V, or Q and dO.
  template <int kCount>
  __device__ void load_keys(char* k, char* v, int head, int position, int len) const {
    const CudaAttentionArgs& f = params.args.forward;
    const bool more = is_more(position);
    const int row = position - (more ? f.more.begin : 0);
    load_rows<kCount>(k, more ? f.more.k : f.k, head, row, len);
    load_rows<kCount>(v, more ? f.more.v : f.v, head, row, len);
  }
  template <int kCount>
  __device__ void load_queries(char* q, char* grad_out, int head, int row, int len) const {
    load_rows<kCount>(q, params.args.forward.q, head, row, len);
    load_rows<kCount>(grad_out, params.args.grad_out, head, row, len);
  }

  __device__ void load_own() const {
    const BackwardWork& work = memory.work;
    if constexpr (Shape::kColumns) {
      load_keys<Shape::kOwn>(memory.x, memory.y, work.head, work.own.begin, work.own.len);
    } else {
      load_queries<Shape::kOwn>(memory.x, memory.y, work.head, work.own.begin, work.own.len);
    }
  }

  /// The next step, or nothing: always one group.
  __device__ void load() {
    const BackwardStep step = walk.next();
    if (threadIdx.x == 0) memory.steps[slot] = step;
    const auto [position, len, mask, offset] = step.rows;
    if (len >= 0) {
      char* const u = reinterpret_cast<char*>(&memory + 1) + slot * Shape::kSlotBytes;
      char* const w = u + Shape::kOtherBytes;
      if constexpr (Shape::kColumns) {
        load_queries<Shape::kOthers>(u, w, step.head, position, len);
        load_stats(step);
      } else {
        const CudaAttentionArgs& f = params.args.forward;
        const int kv_head = step.head / static_cast<int>(f.heads / f.kv_heads);
        load_keys<Shape::kOthers>(u, w, kv_head, position, len);
      }
    }
    mma::commit_copies();
    if (++slot == params.slots) slot = 0;
  }

  __device__ void load_stats(const BackwardStep& step) const {
    const int query = static_cast<int>(threadIdx.x);
    if (query >= Shape::kOthers) return;
    mma::copy16(ptx::shared_address(&memory.stats[slot][query]),
                stats_of(params, memory.work.item, step.head) + step.rows.position + query,
                query < step.rows.len);
  }

  /// What prepare_backward wrote of a head's queries.
  __device__ static const float4* stats_of(const BackwardParams& params, int item, int head) {
    const CudaAttentionArgs& f = params.args.forward;
    const int64_t of_head = static_cast<int64_t>(item) * f.heads + head;
    return reinterpret_cast<const float4*>(params.args.workspace) + of_head * f.q_len;
  }
};

/// What a warp computes.
template <typename Shape, Type kType>
struct Differentiator {
  static constexpr int kDim = Shape::kDim, kOthers = Shape::kOthers;
  using Rows = mma::MixedRows<kDim * 2>;

  const BackwardParams& params;
  BackwardMemory<Shape>& memory;
  int first_row = static_cast<int>(threadIdx.x) / 32 * 16;  // of the warp, in the tile
  int lane = static_cast<int>(threadIdx.x) % 32;
  // Where this lane reads of 16 rows: as A or, transposed, as B, and as B.
  uint32_t a_lane = Rows::place(lane % 16, lane / 16);
  uint32_t b_lane = Rows::place(lane / 16 * 8 + lane % 8, lane / 8 % 2);
  float2 own_stats[2] = {};  // of rows: -lse log2(e) and -delta of this thread's two
  float dx[kDim / 2] = {};
  float dy[Shape::kColumns ? kDim / 2 : 1] = {};
  float s[kOthers / 2], dp[kOthers / 2];
  uint32_t operand[kOthers / 16][4];

  __device__ void read_stats() {
    const BackwardWork& work = memory.work;
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const int own = first_row + lane / 4 + 8 * row;
      if (own >= work.own.len) continue;
      const float4 stats =
          BackwardLoader<Shape>::stats_of(params, work.item, work.head)[work.own.begin + own];
      own_stats[row] = {stats.x, stats.y};
    }
  }

  /// c = own rows times other rows.
  __device__ void multiply(const char* own, uint32_t others, float (&c)[kOthers / 2]) const {
#pragma unroll
    for (float& x : c) x = 0;
    const uint32_t rows = ptx::shared_address(own) + first_row * (kDim * 2) + a_lane;
#pragma unroll
    for (int step = 0; step < kDim / 16; ++step) {
      uint32_t a[4];
      mma::load_matrices(Rows::behind(rows, 2 * step), a);
#pragma unroll
      for (int i = 0; i < kOthers / 16; ++i) {
        uint32_t b[4];
        mma::load_matrices(Rows::behind(others + b_lane, 2 * step) + i * 16 * kDim * 2, b);
        mma::multiply<kType>(c, 8 * i, a, b[0], b[1]);
        mma::multiply<kType>(c, 8 * i + 4, a, b[2], b[3]);
      }
    }
  }

  /// c += weights times other rows.
  __device__ void accumulate(const float (&weights)[kOthers / 2], uint32_t others,
                             float (&c)[kDim / 2]) {
#pragma unroll
    for (int step = 0; step < kOthers / 16; ++step) {
      fragment::to_operand<kType>(weights, step, operand[step]);
    }
#pragma unroll
    for (int channels = 0; channels < kDim / 16; ++channels) {
#pragma unroll
      for (int step = 0; step < kOthers / 16; ++step) {
        uint32_t b[4];
        mma::load_transposed(Rows::behind(others + a_lane, 2 * channels) + step * 16 * kDim * 2, b);
        mma::multiply<kType>(c, 8 * channels, operand[step], b[0], b[1]);
        mma::multiply<kType>(c, 8 * channels + 4, operand[step], b[2], b[3]);
      }
    }
  }

  /// Logits are those before the scale: so is the bias.
  __device__ void add_bias(const BackwardStep& step) {
    const KeyBias& bias = params.args.forward.key_bias;
    const BackwardWork& work = memory.work;
    const float* const of_head =
        bias.data + work.item * bias.batch_stride + step.head * bias.head_stride;
    const auto bias_at = [&](int position) {
      return position < bias.begin ? 0 : of_head[position - bias.begin];
    };
    if constexpr (Shape::kColumns) {
      float own[2] = {};
#pragma unroll
      for (int row = 0; row < 2; ++row) {
        const int at = first_row + lane / 4 + 8 * row;
        if (at < work.own.len) own[row] = bias_at(work.own.begin + at);
      }
#pragma unroll
      for (int i = 0; i < kOthers / 2; ++i) s[i] = biased(s[i], own[i / 2 % 2], params.bias_scale);
    } else {
#pragma unroll
      for (int i = 0; i < kOthers / 2; ++i) {
        const int key = fragment::column(lane, i);
        if (key >= step.rows.len) continue;
        s[i] = biased(s[i], bias_at(step.rows.position + key), params.bias_scale);
      }
    }
  }

  /// Pairs that do not count get the logit -inf.
  __device__ void hide(const Step& step) {
    if (step.mask != 0) {
      const int64_t row = static_cast<int64_t>(step.mask - 1) * Shape::kOwn + first_row + lane / 4;
      const uint32_t* const words =
          lists_of<Shape>(params.args).masks + row * kMaskWords + lane % 4;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint32_t bits = words[8 * half * kMaskWords] >> (step.offset / 4);
#pragma unroll
        for (int i = 0; i < kOthers / 4; ++i) {
          if ((bits >> i & 1) == 0) s[i / 2 * 4 + 2 * half + i % 2] = -INFINITY;
        }
      }
    }
    if (step.len < kOthers) {
#pragma unroll
      for (int i = 0; i < kOthers / 2; ++i) {
        if (fragment::column(lane, i) >= step.len) s[i] = -INFINITY;
      }
    }
  }

  /// S becomes P, and dP becomes dS.
  __device__ void differentiate(int slot) {
#pragma unroll
    for (int i = 0; i < kOthers / 2; ++i) {
      float2 stats = own_stats[i / 2 % 2];
      if constexpr (Shape::kColumns) {
        const float4 x = memory.stats[slot][fragment::column(lane, i)];
        stats = {x.x, x.y};
      }
      s[i] = ptx::exp2_approx(fmaf(s[i], params.scale_log2, stats.x));
      dp[i] = s[i] * (dp[i] + stats.y);
    }
  }

  __device__ void step(int slot, const BackwardStep& step) {
    const uint32_t u = ptx::shared_address(&memory + 1) + slot * Shape::kSlotBytes;
    const uint32_t w = u + Shape::kOtherBytes;
    multiply(memory.x, u, s);
    multiply(memory.y, w, dp);
    if (params.args.forward.key_bias.data != nullptr) add_bias(step);
    hide(step.rows);
    differentiate(slot);
    if constexpr (Shape::kColumns) accumulate(s, w, dy);
    accumulate(dp, u, dx);
  }

  /// The warp's rows of a gradient, by their place in shared memory: 16 bytes at a time.
  __device__ void write(const float (&c)[kDim / 2], float scale, char* rows,
                        const MutableHeadRows& to, int first) const {
    const BackwardWork& work = memory.work;
#pragma unroll
    for (int i = 0; i < kDim / 4; ++i) {
      const int own = first_row + lane / 4 + i % 2 * 8;
      *reinterpret_cast<uint32_t*>(rows + Rows::place(own, i / 2) + lane % 4 * 4) =
          fragment::pack<kType>(c[2 * i] * scale, c[2 * i + 1] * scale);
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 16 * Rows::kUnits / 32; ++i) {
      const int piece = lane + 32 * i;
      const int own = first_row + piece / Rows::kUnits, unit = piece % Rows::kUnits;
      if (own >= work.own.len) break;
      *reinterpret_cast<uint4*>(row_of<2>(to, work.item, work.head, first + own) + unit * 16) =
          *reinterpret_cast<const uint4*>(rows + Rows::place(own, unit));
    }
  }

  __device__ void write_all(bool is_more) const {
    const CudaAttentionBackwardArgs& args = params.args;
    const int first = memory.work.own.begin - (is_more ? args.forward.more.begin : 0);
    if constexpr (Shape::kColumns) {
      write(dx, params.scale, memory.x, is_more ? args.grad_more_k : args.grad_k, first);
      write(dy, 1, memory.y, is_more ? args.grad_more_v : args.grad_v, first);
    } else {
      write(dx, params.scale, memory.x, args.grad_q, first);
    }
  }
};

/// Grid: a block for each tile of each head.
template <typename Shape, Type kType>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kBlocks)
    backward_kernel(const __grid_constant__ BackwardParams params) {
  auto& memory = *reinterpret_cast<BackwardMemory<Shape>*>(ptx::dynamic_memory());
  const BackwardWork& work = memory.work;
  if (threadIdx.x == 0) memory.work = find_backward_work<Shape>(params, blockIdx.x);
  __syncthreads();
  if (work.own.len == 0) return;
  BackwardLoader<Shape> loader{params, memory};
  loader.walk.enter();
  loader.load_own();
  for (int i = 1; i < params.slots; ++i) loader.load();
  Differentiator<Shape, kType> computer{params, memory};
  if constexpr (!Shape::kColumns) computer.read_stats();
  const bool idle = computer.first_row >= work.own.len;
  for (int slot = 0;;) {
    await_slot(params.slots);
    loader.load();
    const BackwardStep step = memory.steps[slot];
    if (step.rows.len < 0) break;
    if (!idle) computer.step(slot, step);
    if (++slot == params.slots) slot = 0;
  }
  computer.write_all(Shape::kColumns && loader.is_more(work.own.begin));
}

}  // namespace fovea::kernels::sm80
