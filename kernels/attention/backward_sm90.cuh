#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/attention/backward_loader_sm90.cuh"

// The backward pass of softmax attention on compute capability 9.0a: one kernel in two forms, that
// for gradients of queries and that for those of keys and values.
//
// A block has one warpgroup that loads and kGroups that compute, 64 rows each of a tile: its own
// rows X and Y. The tile walks over other rows U and W, that come step by step in two rings:
//
//            X  Y   U  W      a step
//   rows     Q  dO  K  V      S = X Uᵀ  dP = Y Wᵀ  dX += dS U
//   columns  K  V   Q  dO     the same, and dY += P W, with S, P, dP and dS transposed
//
// P = exp(scale S - lse) and dS = P (dP - delta) with delta = sum(out dO) - dlse of each query
// (FlashAttention-2, Dao 2023, arXiv:2307.08691, section 3.1.2). P and dS stay in registers, as
// they are what the matrix units take from there. Nothing is added up in global memory: what comes
// out is the same bit by bit each time.
//
// The loading thread tells the others what each tile has to do, as in forward_sm90.cuh. A computing
// warpgroup starts S of a step before the sums of the step before are done, makes P while dP is
// made, and of columns dS while dY is.

namespace fovea::kernels::sm90 {

/// One of the computing warpgroups.
template <typename Shape, Type kType>
struct Differentiator {
  static constexpr int kRegisters = Shape::kDim / 2;         // of dX and of dY
  static constexpr int kStepRegisters = Shape::kOthers / 2;  // of S and of dP
  using Operand = uint32_t[Shape::kOthers / 16][4];
  using Memory = BackwardMemory<Shape>;
  static_assert(offsetof(Memory, y) - offsetof(Memory, x) == Memory::kToY);
  static_assert(offsetof(Memory, w) - offsetof(Memory, u) == Memory::kToW);

  const BackwardParams& params;
  BackwardMemory<Shape>& memory;
  int group, thread;
  // Of X, this warpgroup's rows, and of U, the first slot's; those of Y and W lie as far from them
  // as one another.
  wgmma::Matrix x = wgmma::k_major(ptx::shared_address(memory.x) + group * 64 * 128);
  wgmma::Matrix u = wgmma::k_major(ptx::shared_address(memory.u));
  RingPlace<Shape::kStages> place = {};
  float dx[kRegisters];
  float dy[kRegisters];                // of columns
  float minus_lse[2], minus_delta[2];  // of rows: those of a thread's two

  /// One thread a warp says that it has read a slot.
  __device__ void release(uint64_t* empty) const {
    if (thread % 32 == 0) ptx::arrive(empty);
  }

  /// Of U, or of W, the ring's next slot.
  __device__ wgmma::Matrix others(bool is_w) const {
    return u.further(place.slot * Shape::kStepBytes + (is_w ? Memory::kToW : 0));
  }

  /// S = X Uᵀ or dP = Y Wᵀ, or that is added, as a group of its own.
  template <bool kAdds>
  __device__ void start_product(float (&c)[kStepRegisters], bool is_dp) const {
    const wgmma::Matrix a = x.further(is_dp ? Memory::kToY : 0), b = others(is_dp);
    wgmma::fence();
#pragma unroll
    for (int step = 0; step < Shape::kDim / 16; ++step) {
      const int inside = step % 4 * wgmma::kStepBytes;
      wgmma::multiply<kType>(c, a.further(step / 4 * Shape::kOwn * 128 + inside),
                             b.further(step / 4 * Shape::kOthers * 128 + inside),
                             kAdds || step > 0);
    }
    wgmma::commit();
  }

  /// dX += A U or dY += A W.
  __device__ void start_sum(float (&c)[kRegisters], const Operand& a, bool is_dy) const {
    const wgmma::Matrix b = others(is_dy).by_columns(Shape::kOthers * 128);
    wgmma::fence();
#pragma unroll
    for (int step = 0; step < Shape::kOthers / 16; ++step) {
      wgmma::multiply<kType, true>(c, a[step], b.further(step * 2048), 1);
    }
    wgmma::commit();
  }

  __device__ static void make_operand(const float (&c)[kStepRegisters], Operand& a) {
#pragma unroll
    for (int step = 0; step < Shape::kOthers / 16; ++step) {
      fragment::to_operand<kType>(c, step, a[step]);
    }
  }

  /// Logits are those before the scale: so is the bias.
  __device__ void add_bias(float (&s)[kStepRegisters]) const {
    constexpr int kOfPiece = Shape::kSpan / 2;  // registers
    const KeyBias& biases = params.key_bias;
    const TileNotes& tile = memory.tile;
    const float* const of_item =
        biases.data + tile.item * biases.batch_stride - biases.begin;  // of position 0
    if constexpr (Shape::kColumns) {
      const float* const bias = of_item + memory.spans[place.slot][0].at * biases.head_stride;
      float own[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int row = group * 64 + fragment::first_row(thread) + 8 * i;
        const bool has_one = row < tile.len && tile.begin + row >= biases.begin;
        own[i] = has_one ? bias[tile.begin + row] : 0;
      }
#pragma unroll
      for (int i = 0; i < kStepRegisters; ++i) {
        s[i] = biased(s[i], own[i / 2 % 2], params.inverse_scale);
      }
    } else {
#pragma unroll
      for (int piece = 0; piece < Shape::kPieces; ++piece) {
        int first = fragment::column(thread, 0);
        ptx::opaque(first);  // or it is kept from the begin of the kernel
        const int position = memory.spans[place.slot][piece].at + first;
        const float* const bias = of_item + tile.head * biases.head_stride + position;
        const int from = biases.begin - position;
        const int to = static_cast<int>(memory.spans[place.slot][piece].bits & 255) - first;
#pragma unroll
        for (int i = 0; i < kOfPiece; ++i) {
          const int key = fragment::column(0, i);
          if (key < from || key >= to) continue;
          float& logit = s[piece * kOfPiece + i];
          logit = biased(logit, bias[key], params.inverse_scale);
        }
      }
    }
  }

  /// What lies behind the end of a span, or is hidden by a mask, gets logits of -inf.
  __device__ void hide(float (&s)[kStepRegisters]) const {
    constexpr int kOfPiece = Shape::kSpan / 2;  // registers
    const SpanNotes(&spans)[Shape::kPieces] = memory.spans[place.slot];
    bool is_full = true;
#pragma unroll
    for (int i = 0; i < Shape::kPieces; ++i) is_full = is_full && spans[i].bits == Shape::kSpan;
    if (is_full) return;
#pragma unroll
    for (int piece = 0; piece < Shape::kPieces; ++piece) {
      const int len = static_cast<int>(spans[piece].bits & 255);
      uint32_t seen[2] = {~0u, ~0u};
      if constexpr (Shape::kListed) {
        if (const uint32_t mask = spans[piece].bits >> 8; mask != 0) {
          const int64_t tile = static_cast<int64_t>(mask) - 1;
          const int row = group * 64 + fragment::first_row(thread);
          const uint32_t* words =
              params.lists.masks + (tile * Shape::kOwn + row) * kMaskWords + thread % 4;
          seen[0] = words[0], seen[1] = words[8 * kMaskWords];
        }
      }
#pragma unroll
      for (int i = 0; i < kOfPiece; ++i) {
        const bool is_seen = seen[i / 2 % 2] >> (i / 4 * 2 + i % 2) & 1;
        if (!is_seen || fragment::column(thread, i) >= len) s[piece * kOfPiece + i] = -INFINITY;
      }
    }
  }

  /// The numbers of the queries of columns 8 i + 2 (thread % 4) and + 1 of the step: 0 is -lse, 1
  /// is -delta.
  __device__ float2 of_columns(int which, int i) const {
    const float* const stats = memory.stats[place.slot];
    const int query = 8 * i + thread % 4 * 2;
    if constexpr (Shape::kJoint) {
      return *reinterpret_cast<const float2*>(stats + which * Shape::kOthers + query);
    } else {
      return make_float2(stats[4 * query + which], stats[4 * query + 4 + which]);
    }
  }

  /// Numbers of the queries of the columns that the registers have.
  __device__ void begin(float (&c)[kStepRegisters], int which, float factor) const {
#pragma unroll
    for (int i = 0; i < kStepRegisters; i += 4) {
      const float2 two = of_columns(which, i / 4);
      c[i] = c[i + 2] = two.x * factor, c[i + 1] = c[i + 3] = two.y * factor;
    }
  }

  /// S of the ring's next step.
  __device__ void start_logits(float (&s)[kStepRegisters]) const {
    ptx::wait(&memory.u_full[place.slot], place.parity);
    if constexpr (!Shape::kAhead) {
      begin(s, 0, params.per_scale_log2);
      wgmma::pin(s);
    }
    start_product<!Shape::kAhead>(s, false);
  }

  /// Its dP - delta.
  __device__ void start_weight_gradients(float (&dp)[kStepRegisters]) const {
    ptx::wait(&memory.w_full[place.slot], place.parity);
    if constexpr (Shape::kColumns) {
      begin(dp, 1, 1);
    } else {
#pragma unroll
      for (int i = 0; i < kStepRegisters; ++i) dp[i] = minus_delta[i / 2 % 2];
    }
    wgmma::pin(dp);
    start_product<true>(dp, true);
  }

  /// S becomes P.
  __device__ void weigh(float (&s)[kStepRegisters]) const {
#pragma unroll
    for (int i = 0; i < kStepRegisters; i += 4) {
      float2 upper = make_float2(minus_lse[0], minus_lse[0]);
      float2 lower = make_float2(minus_lse[1], minus_lse[1]);
      if constexpr (!Shape::kAhead) upper = lower = make_float2(0, 0);
      if constexpr (Shape::kColumns && Shape::kAhead) upper = lower = of_columns(0, i / 4);
      s[i] = ptx::exp2_approx(fmaf(s[i], params.scale_log2, upper.x));
      s[i + 1] = ptx::exp2_approx(fmaf(s[i + 1], params.scale_log2, upper.y));
      s[i + 2] = ptx::exp2_approx(fmaf(s[i + 2], params.scale_log2, lower.x));
      s[i + 3] = ptx::exp2_approx(fmaf(s[i + 3], params.scale_log2, lower.y));
    }
  }

  /// The ring's next step. The sums of the one before may be under way, as those of this one then.
  __device__ void step(bool is_first) {
    const int slot = place.slot;
    float s[kStepRegisters], dp[kStepRegisters];
    Operand gradients;
    if constexpr (Shape::kAhead) start_logits(s);
    wgmma::wait<Shape::kAhead ? 1 : 0>();
    if (!is_first) end_step();
    if constexpr (!Shape::kAhead) start_logits(s);
    start_weight_gradients(dp);
    wgmma::wait<1>();
    wgmma::pin(s);
    if constexpr (Shape::kListed) {
      if (params.key_bias.data != nullptr) add_bias(s);
    }
    hide(s);
    weigh(s);
    if constexpr (Shape::kColumns) {
      Operand weights;
      make_operand(s, weights);
      start_sum(dy, weights, true);
      wgmma::wait<1>();
      wgmma::pin(dp);
    } else {
      if constexpr (Shape::kHold) {
        uint32_t all = 0;
#pragma unroll
        for (const float weight : s) all ^= __float_as_uint(weight);
        memory.held[group * 4 + thread / 32] = all;
      }
      wgmma::wait<0>();
      wgmma::pin(dp);
      release(&memory.w_empty[slot]);
    }
#pragma unroll
    for (int i = 0; i < kStepRegisters; ++i) s[i] *= dp[i];
    make_operand(s, gradients);
    start_sum(dx, gradients, false);
    place.next();
  }

  /// The sums of the step before the ring's next one are done.
  __device__ void end_step() {
    const int slot = place.slot == 0 ? Shape::kStages - 1 : place.slot - 1;
    release(&memory.u_empty[slot]);
    if constexpr (Shape::kColumns) release(&memory.w_empty[slot]);
  }

  __device__ void clear() {
#pragma unroll
    for (float& number : dx) number = 0;
    wgmma::pin(dx);
    if constexpr (Shape::kColumns) {
#pragma unroll
      for (float& number : dy) number = 0;
      wgmma::pin(dy);
    }
  }

  /// All steps of a tile, at least one.
  __device__ void walk(int steps) {
    for (int i = 0; i < steps; ++i) step(i == 0);
    wgmma::wait<0>();
    wgmma::pin(dx);
    if constexpr (Shape::kColumns) wgmma::pin(dy);
    end_step();
  }

  /// The numbers of a thread's two queries.
  __device__ void read_stats(const TileNotes& tile) {
    const int64_t head = static_cast<int64_t>(tile.item) * params.heads + tile.head;
    const auto* const stats = reinterpret_cast<const float4*>(params.stats) + head * params.own_len;
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const int at = tile.begin + group * 64 + fragment::first_row(thread) + 8 * row;
      const bool is_one = at < params.own_len;
      minus_lse[row] = is_one ? stats[at].x : 0;
      minus_delta[row] = is_one ? stats[at].y : 0;
    }
  }

  /// Writes a gradient into the place of this warpgroup's rows, and from there away; the copies are
  /// not waited for.
  __device__ void write(const float (&c)[kRegisters], char* own, const CUtensorMap& map,
                        const MutableHeadRows& to) const {
    const TileNotes& tile = memory.tile;
    const bool more = is_more<Shape>(params, tile.begin);
    const int first = tile.begin + group * 64 - (more ? params.more_begin : 0);
    const int end = more ? params.more_len : params.own_len;
    const int rows = min(min(64, tile.len - group * 64), end - first);  // below 1: none
    char* const box = own + group * 64 * 128;
    fragment::store<kType>(c, ptx::shared_address(box), Shape::kOwn * 128, thread);
    ptx::fence_async_proxy();
    ptx::named_sync(1 + group, 128);
    // The copy engine leaves out rows behind the end of the sequence, but not those of another
    // tile.
    if (!Shape::kListed || rows == 64 || first + rows == end) {
      if (thread == 0 && rows > 0) {
#pragma unroll
        for (int panel = 0; panel < Shape::kPanels; ++panel) {
          tma::store(map, {0, first, panel, tile.head, tile.item}, box + panel * Shape::kOwn * 128);
        }
      }
    } else {
      char* const head = static_cast<char*>(to.data) +
                         2 * (tile.item * to.batch_stride + tile.head * to.head_stride);
      copy_rows(box, head + 2 * first * to.row_stride, 2 * to.row_stride, rows);
    }
  }

  /// The first rows of `box` to their places, 16 bytes at a time.
  __device__ void copy_rows(const char* box, char* to, int64_t stride, int rows) const {
    constexpr int kUnits = Shape::kDim / 8;  // of 8 columns
    int begin = thread;
    ptx::opaque(begin);  // or its places are found, and kept, long before
#pragma unroll 1
    for (int i = begin; i < rows * kUnits; i += 128) {
      const int row = i / kUnits, unit = i % kUnits;
      const char* from = box + unit / 8 * Shape::kOwn * 128 + row * 128 + (unit % 8 ^ row % 8) * 16;
      *reinterpret_cast<uint4*>(to + row * stride + unit * 16) =
          *reinterpret_cast<const uint4*>(from);
    }
  }

  /// Both gradients of a tile; its own rows are free then.
  __device__ void write_all(const BackwardMaps& maps) {
    const bool more = is_more<Shape>(params, memory.tile.begin);
#pragma unroll
    for (float& number : dx) number *= params.scale;
    write(dx, memory.x, more ? maps.more_dx : maps.dx, more ? params.more_dx : params.dx);
    if constexpr (Shape::kColumns) {
      write(dy, memory.y, more ? maps.more_dy : maps.dy, more ? params.more_dy : params.dy);
    }
    if (thread == 0) {
      ptx::bulk_commit();
      ptx::bulk_wait_read<0>();
    }
    ptx::named_sync(1 + group, 128);
    if (thread == 0) ptx::arrive(&memory.own_empty);
  }

  __device__ void compute_all(const BackwardMaps& maps) {
    for (uint32_t parity = 0;; parity ^= 1) {
      ptx::wait(&memory.own_full, parity);
      const int steps = memory.tile.steps;
      if (steps < 0) break;
      if constexpr (!Shape::kColumns) read_stats(memory.tile);
      clear();
      if (steps > 0) walk(steps);
      write_all(maps);
    }
  }
};

/// One thread, before the others go on.
template <typename Shape>
__device__ void make_barriers(BackwardMemory<Shape>& memory) {
  ptx::barrier_init(&memory.own_full, 1);
  ptx::barrier_init(&memory.own_empty, Shape::kGroups);
  for (int i = 0; i < Shape::kStages; ++i) {
    ptx::barrier_init(&memory.u_full[i], 1);
    ptx::barrier_init(&memory.w_full[i], 1);
    ptx::barrier_init(&memory.u_empty[i], 4 * Shape::kGroups);
    ptx::barrier_init(&memory.w_empty[i], 4 * Shape::kGroups);
  }
}

/// Grid: as many blocks as are to run at a time; each takes every gridDim.x-th tile.
template <typename Shape, Type kType>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kBlocks)
    backward_kernel(const __grid_constant__ BackwardMaps maps,
                    const __grid_constant__ BackwardParams params) {
#ifdef FOVEA_SM90A
  auto& memory = *reinterpret_cast<BackwardMemory<Shape>*>(ptx::hidden_dynamic_memory());
  if (threadIdx.x == 0) {
    make_barriers(memory);
    ptx::fence_barrier_init();
  }
  __syncthreads();
  const int thread = static_cast<int>(threadIdx.x);
  // As one lane has it, so that the compiler knows that all have the same.
  const int warpgroup = __shfl_sync(0xffffffff, thread / 128, 0);
  if (warpgroup == Shape::kGroups) {
    ptx::give_registers<Shape::kLoadRegisters>();
    if (thread == 128 * Shape::kGroups) load_tiles(params, maps, memory);
  } else {
    ptx::take_registers<Shape::kComputeRegisters>();
    Differentiator<Shape, kType>{params, memory, warpgroup, thread % 128}.compute_all(maps);
  }
#endif
}

}  // namespace fovea::kernels::sm90
