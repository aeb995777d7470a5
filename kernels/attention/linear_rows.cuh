#pragma once

#include <cstdint>

#include <cuda_bf16.h>

#include "kernels/attention/linear_blocks.h"
#include "kernels/common/fragment.cuh"
#include "kernels/common/mma.cuh"

// What the kernels of linear_blocks.cu and linear_out_sm90.cu share: which rows they take, and what
// they make of a row.

namespace fovea::kernels::linear {

using mma::Type;
using ptx::shared_address;

constexpr unsigned kAll = 0xffffffff;
constexpr float kLog2e = 1.4426950408889634f;

/// A matrix in shared memory whose rows have kDim numbers of bf16.
template <int kDim>
using Matrix = mma::MixedRows<2 * kDim>;

// ---- Features -----------------------------------------------------------------------------------

/// Sum or maximum over the kLanes neighbours that hold a row.
template <int kLanes, typename F>
__device__ inline float over_lanes(float x, F f) {
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2) x = f(x, __shfl_xor_sync(kAll, x, step));
  return x;
}

/// phi of a row of which kLanes neighbours have kCount channels each; all lanes of a warp take
/// part.
template <int kLanes, int kCount>
__device__ inline void make_features(float (&x)[kCount], LinearFeature feature) {
  if (feature == LinearFeature::softmax) {
    float top = x[0];
#pragma unroll
    for (int c = 1; c < kCount; ++c) top = fmaxf(top, x[c]);
    top = over_lanes<kLanes>(top, [](float a, float b) { return fmaxf(a, b); });
    const float shift = top * kLog2e;
    float sum = 0;
#pragma unroll
    for (int c = 0; c < kCount; ++c) sum += x[c] = ptx::exp2_approx(fmaf(x[c], kLog2e, -shift));
    sum = over_lanes<kLanes>(sum, [](float a, float b) { return a + b; });
    const float factor = __fdividef(1, sum);
#pragma unroll
    for (int c = 0; c < kCount; ++c) x[c] *= factor;
  } else {
#pragma unroll
    for (int c = 0; c < kCount; ++c) {
      const float low = feature == LinearFeature::relu ? x[c] * 0 : ptx::exp2_approx(x[c] * kLog2e);
      const float high = feature == LinearFeature::relu ? x[c] : x[c] + 1;
      x[c] = x[c] > 0 ? high : low;
    }
  }
}

/// Two numbers of bf16, the first in the low half.
__device__ inline float low_of(uint32_t bits) { return __uint_as_float(bits << 16); }
__device__ inline float high_of(uint32_t bits) { return __uint_as_float(bits & 0xffff0000u); }

// ---- Rows ---------------------------------------------------------------------------------------

/// A block of one head. Work is numbered with heads one after the other, so that what runs at a
/// time reads neighbours in memory where tokens come before heads.
struct Work {
  int item, head, number;
  int place;  ///< of its state

  __device__ Work(unsigned i, int64_t all_heads, const LinearBlocks& blocks) {
    const auto heads = static_cast<unsigned>(all_heads), all = static_cast<unsigned>(blocks.blocks);
    head = static_cast<int>(i % heads);
    number = static_cast<int>(i / heads % all);
    item = static_cast<int>(i / heads / all);
    place = static_cast<int>((item * heads + head) * all) + number;
  }
};

/// The rows of a block of one head.
struct Block {
  int begin, size, len;
  const int32_t* order;

  __device__ Block(const LinearBlocks& blocks, const Work& work)
      : begin(max(blocks.offsets[work.number], 0)),
        len(static_cast<int>(min(blocks.len, int64_t{0x7fffffff}))),
        order(blocks.order.rows) {
    size = max(min(min(blocks.offsets[work.number + 1], len) - begin, blocks.most_rows), 0);
    if (order)
      order += work.item * blocks.order.batch_stride + work.head * blocks.order.head_stride;
  }
  /// -1 where there is none.
  __device__ int row(int number) const {
    if (number >= size) return -1;
    const int row = order ? order[begin + number] : begin + number;
    return row < len ? max(row, -1) : -1;
  }
  /// The same of kCount of them from `first` on, `step` apart. Loads of an order follow one another
  /// without a branch.
  template <int kCount>
  __device__ void find_rows(int first, int step, int (&rows)[kCount]) const {
#pragma unroll
    for (int i = 0; i < kCount; ++i) rows[i] = begin + first + i * step;
    if (order) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) rows[i] = order[min(rows[i], len - 1)];
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (first + i * step >= size || rows[i] >= len) rows[i] = -1;
    }
  }
};

/// Rows of one head.
template <typename T, typename Rows>
__device__ inline T* rows_of(const Rows& rows, const Work& work) {
  return static_cast<T*>(rows.data) + work.item * rows.batch_stride + work.head * rows.head_stride;
}

// ---- Products -----------------------------------------------------------------------------------

/// Which 8 x 8 matrix of four, and which row of it, a lane gives the address of.
struct Lane {
  int matrix, row;
  __device__ Lane() : matrix(threadIdx.x % 32 / 8), row(threadIdx.x % 8) {}
};

/// Of four tiles of 8 columns lanes hold 2 columns of each, x[tile]; after it 8 columns of one
/// tile: x[i] are the columns 2 i and 2 i + 1 of tile lane % 4.
template <typename T>
__device__ inline void gather_columns(T (&x)[4]) {
#pragma unroll
  for (int step = 1; step <= 2; step *= 2) {
    const bool upper = threadIdx.x & step;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i & step) continue;
      const T other = __shfl_xor_sync(kAll, upper ? x[i] : x[i + step], step);
      if (upper) {
        x[i] = other;
      } else {
        x[i + step] = other;
      }
    }
  }
}

// ---- Queries ------------------------------------------------------------------------------------

/// phi of a warp's 16 queries as the A of products, kept in registers, and what the product with
/// the state is multiplied with: of rows lane / 4 and that + 8.
template <int kDim>
struct Queries {
  uint32_t a[kDim / 16][4];
  float factor[2];

  /// q_at       where the block's rows are
  /// first_row  of the warp's
  __device__ Queries(uint32_t q_at, int first_row, const float* total, const LinearOutArgs& args) {
    const Lane lane;
    const int row = first_row + lane.matrix % 2 * 8 + lane.row;
    uint32_t at = q_at + Matrix<kDim>::place(row, lane.matrix / 2);
    ptx::opaque(at);
#pragma unroll
    for (int step = 0; step < kDim / 16; ++step) {
      mma::load_matrices(Matrix<kDim>::behind(at, 2 * step), a[step]);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float x[kDim / 4];
#pragma unroll
      for (int i = 0; i < kDim / 8; ++i) {
        const uint32_t bits = a[i / 2][i % 2 * 2 + half];
        x[2 * i] = low_of(bits), x[2 * i + 1] = high_of(bits);
      }
      make_features<4>(x, args.feature);
#pragma unroll
      for (int i = 0; i < kDim / 8; ++i) {
        a[i / 2][i % 2 * 2 + half] = fragment::pack<Type::bf16>(x[2 * i], x[2 * i + 1]);
      }
    }
    float sum[2] = {};
#pragma unroll
    for (int i = 0; i < kDim / 8; ++i) {
      const auto own = *reinterpret_cast<const float2*>(total + 8 * i + threadIdx.x % 4 * 2);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint32_t bits = a[i / 2][i % 2 * 2 + half];
        sum[half] += low_of(bits) * own.x + high_of(bits) * own.y;
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float all = over_lanes<4>(sum[half], [](float a, float b) { return a + b; });
      factor[half] = all == 0 ? 0 : __fdividef(1, all + args.epsilon);
    }
  }
};

__device__ inline float bias_of(const LinearOutArgs& args, int channel) {
  if (args.bias == nullptr) return 0;
  if (args.bias_type == DType::f32) return static_cast<const float*>(args.bias)[channel];
  return __bfloat162float(static_cast<const __nv_bfloat16*>(args.bias)[channel]);
}

}  // namespace fovea::kernels::linear
