#include <cstdint>
#include <limits>

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "kernels/attention/block_scores.h"

namespace fovea::kernels {
namespace {

constexpr int kThreads = 256;
constexpr int kChannels = 8;         // of a thread
constexpr int kAtOnce = 4;           // rows whose loads a thread has under way
constexpr float kShortest = 1e-12f;  // length that directions are divided by at least

template <typename T>
struct alignas(16) Pack {
  T x[kChannels];
};

__device__ float widened(float x) { return x; }
__device__ float widened(__half x) { return __half2float(x); }
__device__ float widened(__nv_bfloat16 x) { return __bfloat162float(x); }

/// Sum over the `lanes` neighbours, a power of two, that read a row together.
__device__ float sum_of_lanes(float x, int lanes) {
  const int first = threadIdx.x % 32 / lanes * lanes;
  const unsigned mask = lanes == 32 ? 0xffffffffu : ((1u << lanes) - 1) << first;
  for (int step = lanes / 2; step > 0; step /= 2) x += __shfl_xor_sync(mask, x, step);
  return x;
}

/// Adds up over all groups of lanes, in their order, and stores a row of channels.
__device__ void store_sum(const float (&own)[kChannels], float* all, int lanes, int dim,
                          float* to) {
  const int columns = lanes * kChannels, groups = kThreads / lanes;
  __syncthreads();
  for (int c = 0; c < kChannels; ++c) all[threadIdx.x * kChannels + c] = own[c];
  __syncthreads();
  for (int channel = threadIdx.x; channel < dim; channel += kThreads) {
    float sum = 0;
    for (int group = 0; group < groups; ++group) sum += all[group * columns + channel];
    to[channel] = sum;
  }
}

/// A block makes the sums of one block of rows; `lanes` threads read a row. Each reads every
/// kThreads / lanes-th of them. Grid: (blocks, batch * heads).
template <typename T, bool kDirections>
__global__ void __launch_bounds__(kThreads, kDirections ? 2 : 3)
    block_sums_kernel(BlockSumsArgs args, int lanes) {
  __shared__ float all[kThreads * kChannels];
  const int64_t head = blockIdx.y % args.heads, item = blockIdx.y / args.heads;
  const int lane = threadIdx.x % lanes, groups = kThreads / lanes;
  const int channel = lane * kChannels;
  const bool has_channels = channel < args.dim;
  const int32_t* const offsets =
      args.offsets + item * args.offsets_batch_stride + head * args.offsets_head_stride;
  const int begin = max(offsets[blockIdx.x], 0);
  const int end = min(offsets[blockIdx.x + 1], static_cast<int>(args.rows));
  const int32_t* order = args.order.rows;
  if (order) order += item * args.order.batch_stride + head * args.order.head_stride;
  const bool* const valid = args.valid ? args.valid + item * args.rows : nullptr;
  const T* const from = static_cast<const T*>(args.x.data) + item * args.x.batch_stride +
                        head * args.x.head_stride + channel;
  const int64_t place = static_cast<int64_t>(blockIdx.y) * args.blocks + blockIdx.x;
  float centre[kChannels] = {}, sum[kChannels] = {};
  float directions[kDirections ? kChannels : 1] = {};
  if (args.centre && has_channels) {
    for (int c = 0; c < kChannels; ++c) {
      centre[c] = args.centre[blockIdx.y * args.dim + channel + c];
    }
  }
  for (int first = begin + static_cast<int>(threadIdx.x) / lanes; first < end;
       first += kAtOnce * groups) {
    Pack<T> packs[kAtOnce];
    bool counts[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int at = first + i * groups;
      const int64_t row = at < end ? (order ? order[at] : at) : -1;
      counts[i] = row >= 0 && row < args.rows && (valid == nullptr || valid[row]);
      if (counts[i] && has_channels) {
        packs[i] = *reinterpret_cast<const Pack<T>*>(from + row * args.x.row_stride);
      }
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (!counts[i]) continue;  // the same for all lanes of a row
      float x[kChannels], square = 0;
      for (int c = 0; c < kChannels; ++c) {
        x[c] = has_channels ? widened(packs[i].x[c]) - centre[c] : 0;
        sum[c] += x[c];
        if constexpr (kDirections) square += x[c] * x[c];
      }
      if constexpr (kDirections) {
        const float factor = 1 / fmaxf(sqrtf(sum_of_lanes(square, lanes)), kShortest);
        for (int c = 0; c < kChannels; ++c) directions[c] += x[c] * factor;
      }
    }
  }
  const int dim = static_cast<int>(args.dim);
  if (args.sum) store_sum(sum, all, lanes, dim, args.sum + place * args.dim);
  if constexpr (kDirections) {
    store_sum(directions, all, lanes, dim, args.directions + place * args.dim);
  }
}

template <typename T>
void launch(const BlockSumsArgs& args, int lanes, dim3 grid, cudaStream_t stream) {
  if (args.directions) {
    block_sums_kernel<T, true><<<grid, kThreads, 0, stream>>>(args, lanes);
  } else {
    block_sums_kernel<T, false><<<grid, kThreads, 0, stream>>>(args, lanes);
  }
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
  if (heads > 65535 || args.blocks > std::numeric_limits<int32_t>::max() ||
      args.rows > std::numeric_limits<int32_t>::max()) {
    return {StatusCode::unsupported, "more than 65535 heads or 2^31 rows"};
  }
  int lanes = 1;
  while (lanes * kChannels < args.dim) lanes *= 2;
  const dim3 grid(static_cast<unsigned>(args.blocks), static_cast<unsigned>(heads));
  const auto stream = static_cast<cudaStream_t>(target.stream);
  switch (args.x.dtype) {
    case DType::f32:
      launch<float>(args, lanes, grid, stream);
      break;
    case DType::f16:
      launch<__half>(args, lanes, grid, stream);
      break;
    case DType::bf16:
      launch<__nv_bfloat16>(args, lanes, grid, stream);
      break;
  }
  const cudaError_t code = cudaGetLastError();
  if (code != cudaSuccess) return {StatusCode::device, cudaGetErrorString(code)};
  return {};
}

}  // namespace fovea::kernels
