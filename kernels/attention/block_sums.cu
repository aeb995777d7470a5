#include <cstdint>
#include <limits>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/attention/block_scores.h"
#include "kernels/attention/packs.cuh"
#include "kernels/common/launch.cuh"

namespace fovea::kernels {
namespace {

constexpr int kThreads = 256;
constexpr int kChannels = kPackChannels;
constexpr int kBytesAtOnce = 128;    // that a thread has under way
constexpr float kShortest = 1e-12f;  // length that directions are divided by at least

/// Sum over the `lanes` neighbours, a power of two, that read a row together.
__device__ float sum_of_lanes(float x, int lanes) {
  const int first = threadIdx.x % 32 / lanes * lanes;
  const unsigned mask = lanes == 32 ? 0xffffffffu : ((1u << lanes) - 1) << first;
  for (int step = lanes / 2; step > 0; step /= 2) x += __shfl_xor_sync(mask, x, step);
  return x;
}

/// Adds up over all groups of lanes, in their order, and stores a row of channels: first the groups
/// of a warp, then warps, whose sums are in `all`.
__device__ void store_sum(float (&own)[kChannels], float* all, int lanes, int dim, float* to) {
  const int columns = lanes * kChannels;
  __syncthreads();  // lanes of a warp may be in several rows before it
#pragma unroll
  for (int c = 0; c < kChannels; ++c) {
    for (int step = lanes; step < 32; step *= 2) {
      own[c] += __shfl_xor_sync(0xffffffffu, own[c], step);
    }
  }
  if (static_cast<int>(threadIdx.x) % 32 < lanes) {
    auto* const at =
        reinterpret_cast<float4*>(all + threadIdx.x / 32 * columns + threadIdx.x % 32 * kChannels);
    at[0] = {own[0], own[1], own[2], own[3]};
    at[1] = {own[4], own[5], own[6], own[7]};
  }
  __syncthreads();
  for (int channel = threadIdx.x; channel < dim; channel += kThreads) {
    float sum = 0;
#pragma unroll
    for (int warp = 0; warp < kThreads / 32; ++warp) sum += all[warp * columns + channel];
    to[channel] = sum;
  }
}

/// A block makes the sums of one block of rows; `lanes` threads read a row. Each reads every
/// kThreads / lanes-th of them. Grid: blocks * batch * heads, heads one after the other, so that
/// what runs at a time reads neighbours in memory where tokens come before heads.
template <typename T, bool kDirections>
__global__ void __launch_bounds__(kThreads, 2) block_sums_kernel(BlockSumsArgs args, int lanes) {
  constexpr int kAtOnce = kBytesAtOnce / static_cast<int>(sizeof(Pack<T>));  // rows
  __shared__ float4 all[kThreads * kChannels / 4];
  const auto heads = static_cast<unsigned>(args.batch * args.heads);
  const unsigned of_head = blockIdx.x % heads, block = blockIdx.x / heads;
  const int64_t head = of_head % args.heads, item = of_head / args.heads;
  const int lane = threadIdx.x % lanes, groups = kThreads / lanes;
  const int channel = lane * kChannels;
  const bool has_channels = channel < args.dim;
  const int32_t* const offsets =
      args.offsets + item * args.offsets_batch_stride + head * args.offsets_head_stride;
  const int begin = max(offsets[block], 0);
  const int end = min(offsets[block + 1], static_cast<int>(args.rows));
  const int32_t* order = args.order.rows;
  if (order) order += item * args.order.batch_stride + head * args.order.head_stride;
  const bool* const valid = args.valid ? args.valid + item * args.rows : nullptr;
  const T* const from = static_cast<const T*>(args.x.data) + item * args.x.batch_stride +
                        head * args.x.head_stride + (has_channels ? channel : 0);
  const int64_t place = static_cast<int64_t>(of_head) * args.blocks + block;
  float centre[kChannels] = {}, sum[kChannels] = {};
  float directions[kDirections ? kChannels : 1] = {};
  if (args.centre && has_channels) {
    for (int c = 0; c < kChannels; ++c) {
      centre[c] = args.centre[of_head * args.dim + channel + c];
    }
  }
  for (int first = begin + static_cast<int>(threadIdx.x) / lanes; first < end;
       first += kAtOnce * groups) {
    // Rows that do not count are read as others, and not added: with branches between the loads
    // they would wait for each other.
    int row[kAtOnce];
    uint32_t counts = 0;
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) row[i] = min(first + i * groups, end - 1);
    if (order) {
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) row[i] = order[row[i]];
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const bool is_there = first + i * groups < end && row[i] >= 0 && row[i] < args.rows;
      counts |= (is_there ? 1u : 0u) << i;
      row[i] = is_there ? row[i] : 0;
    }
    if (valid) {
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) counts &= ~((valid[row[i]] ? 0u : 1u) << i);
    }
    Pack<T> packs[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      packs[i] = *reinterpret_cast<const Pack<T>*>(from + row[i] * args.x.row_stride);
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const bool is_in = has_channels && (counts >> i & 1) != 0;
      float x[kChannels], square = 0;
      packs[i].widen(x);
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        x[c] = is_in ? x[c] - centre[c] : 0;
        sum[c] += x[c];
        if constexpr (kDirections) square += x[c] * x[c];
      }
      if constexpr (kDirections) {
        const float factor = fminf(rsqrtf(sum_of_lanes(square, lanes)), 1 / kShortest);
        for (int c = 0; c < kChannels; ++c) directions[c] += x[c] * factor;
      }
    }
  }
  const int dim = static_cast<int>(args.dim);
  if (args.sum)
    store_sum(sum, reinterpret_cast<float*>(all), lanes, dim, args.sum + place * args.dim);
  if constexpr (kDirections) {
    store_sum(directions, reinterpret_cast<float*>(all), lanes, dim,
              args.directions + place * args.dim);
  }
}

template <typename T>
Status launch(const BlockSumsArgs& args, int lanes, const Grid& grid) {
  return launch_kernel(args.directions ? block_sums_kernel<T, true> : block_sums_kernel<T, false>,
                       grid, args, lanes);
}

bool is_in_packs(const BlockSumsArgs& args) {
  const auto whole = [&](int64_t stride) { return stride % kChannels == 0; };
  return args.dim % kChannels == 0 && whole(args.x.batch_stride) && whole(args.x.head_stride) &&
         whole(args.x.row_stride) && reinterpret_cast<uintptr_t>(args.x.data) % 16 == 0;
}

}  // namespace

Status block_sums_cuda(const BlockSumsArgs& args, CudaTarget target) {
  const int64_t heads = args.batch * args.heads;
  if (heads == 0 || args.blocks == 0 || args.dim == 0) return {};
  if (args.dim > 32 * kChannels || !is_in_packs(args)) {
    return {StatusCode::unsupported, "rows are not 16-byte packs of up to 256 channels"};
  }
  if (heads * args.blocks > std::numeric_limits<int32_t>::max() ||
      args.rows > std::numeric_limits<int32_t>::max()) {
    return {StatusCode::unsupported, "more than 2^31 blocks of all heads, or rows"};
  }
  int lanes = 1;
  while (lanes * kChannels < args.dim) lanes *= 2;
  const Grid grid{static_cast<unsigned>(heads * args.blocks), kThreads, 0, target.stream};
  switch (args.x.dtype) {
    case DType::f32:
      return launch<float>(args, lanes, grid);
    case DType::f16:
      return launch<__half>(args, lanes, grid);
    case DType::bf16:
      return launch<__nv_bfloat16>(args, lanes, grid);
  }
  return {};
}

}  // namespace fovea::kernels
