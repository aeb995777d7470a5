#pragma once

#include <cstdint>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/attention/block_sparse.h"
#include "kernels/common/wgmma.cuh"

// What both kernels of backward_sm90.cuh need of each query.

namespace fovea::kernels::sm90 {

using wgmma::Type;

struct PrepareParams {
  int64_t rows;  // of all items and heads
  int heads, q_len;
  HeadRows out, grad_out;
  const float* lse;
  const float* grad_lse;  // or null
  float4* stats;
};

template <Type kType>
__device__ inline float2 unpack(uint32_t bits) {
  if constexpr (kType == Type::bf16) {
    return __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&bits));
  } else {
    return __half22float2(*reinterpret_cast<const __half2*>(&bits));
  }
}

/// -lse log2(e) and -delta of every query; kDim / 8 threads a query. A query without keys gets
/// -inf, so that its weights become 0.
template <int kDim, Type kType>
__global__ void __launch_bounds__(256)
    prepare_backward_kernel(const __grid_constant__ PrepareParams params) {
  constexpr int kLanes = kDim / 8;
  const int64_t index = (static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x) / kLanes;
  const int lane = threadIdx.x % kLanes;
  const int64_t row = min(index, params.rows - 1);
  const int64_t of_head = row / params.q_len, query = row % params.q_len;
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
  const float lse = params.lse[row];
  const bool is_empty = lse == -INFINITY;
  const float of_lse = params.grad_lse != nullptr ? params.grad_lse[row] : 0;
  constexpr float kLog2e = 1.44269504f;
  params.stats[row] =
      is_empty ? make_float4(-INFINITY, 0, 0, 0) : make_float4(-lse * kLog2e, of_lse - sum, 0, 0);
}

}  // namespace fovea::kernels::sm90
