#pragma once

#include <cstdint>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/attention/block_sparse.h"
#include "kernels/common/wgmma.cuh"

// What the backward kernels need of each query.

namespace fovea::kernels::sm90 {

using wgmma::Type;

struct PrepareParams {
  int64_t rows;  // of all items and heads
  int heads, q_len;
  int rows_of_head;  // those behind q_len get zeros
  HeadRows out, grad_out;
  const float* lse;
  const float* grad_lse;  // or null
  float* stats;
  int step;         // of the joint form the queries of one, else 0
  int32_t* counts;  // of the joint form: becomes 0 for each step
};

template <Type kType>
__device__ inline float2 unpack(uint32_t bits) {
  if constexpr (kType == Type::bf16) {
    return __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&bits));
  } else {
    return __half22float2(*reinterpret_cast<const __half2*>(&bits));
  }
}

/// -lse log2(e) and -delta of every query, as BackwardParams::stats has them; kDim / 8 threads a
/// query. A query without keys gets -inf, so that its weights become 0.
template <int kDim, Type kType>
__global__ void __launch_bounds__(256)
    prepare_backward_kernel(const __grid_constant__ PrepareParams params) {
  constexpr int kLanes = kDim / 8;
  const int64_t index = (static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x) / kLanes;
  const int lane = threadIdx.x % kLanes;
  const int64_t row = min(index, params.rows - 1);
  const int64_t of_head = row / params.rows_of_head, place = row % params.rows_of_head;
  const int64_t query = min(place, int64_t{params.q_len} - 1);
  const int64_t item = of_head / params.heads, head = of_head % params.heads;
  const auto numbers = [&](const HeadRows& x) {
    const int64_t at = item * x.batch_stride + head * x.head_stride + query * x.row_stride;
    return *reinterpret_cast<const uint4*>(static_cast<const char*>(x.data) + 2 * at + 16 * lane);
  };
  const uint4 out = numbers(params.out), grad = numbers(params.grad_out);
  const uint32_t a[4] = {out.x, out.y, out.z, out.w}, b[4] = {grad.x, grad.y, grad.z, grad.w};
  float sum = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 x = unpack<kType>(a[i]), y = unpack<kType>(b[i]);
    sum = fmaf(x.x, y.x, fmaf(x.y, y.y, sum));
  }
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffff, sum, step);
  if (lane != 0 || index >= params.rows) return;
  const int64_t of_query = of_head * params.q_len + query;
  const float lse = params.lse[of_query];
  const float of_lse = params.grad_lse != nullptr ? params.grad_lse[of_query] : 0;
  constexpr float kLog2e = 1.44269504f;
  float2 both = make_float2(-lse * kLog2e, of_lse - sum);
  if (lse == -INFINITY) both = make_float2(-INFINITY, 0);
  if (params.step == 0) {
    reinterpret_cast<float4*>(params.stats)[row] = make_float4(both.x, both.y, 0, 0);
    return;
  }
  if (place != query) both = make_float2(0, 0);
  float* const at = params.stats + row / params.step * 2 * params.step + row % params.step;
  at[0] = both.x, at[params.step] = both.y;
  if (row % params.step == 0) params.counts[row / params.step] = 0;
}

}  // namespace fovea::kernels::sm90
