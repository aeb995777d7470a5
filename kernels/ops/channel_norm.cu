#include "kernels/ops/channel_norm.h"

#include <algorithm>

#include "kernels/ops/row.cuh"

namespace fovea::kernels {
namespace {

constexpr int kPack = 8;  // channels of one thread: 16 bytes
constexpr int kBlock = 256;
constexpr int64_t kForwardBlocks = 4096;
constexpr unsigned kFullWarp = 0xFFFFFFFFu;

/// Where a thread works: `group` neighbouring lanes share a row; what is left of a warp idles.
struct Place {
  int group, lane;  ///< lanes of a row, and which of them this is
  bool works;
  int64_t row, step;  ///< first row, and how far the next one is

  __device__ explicit Place(int64_t dim) {
    group = static_cast<int>(dim) / kPack;
    const int warp_lane = threadIdx.x % kWarp, rows = kWarp / group;
    lane = warp_lane % group;
    works = warp_lane < rows * group;
    const int64_t warp = (blockIdx.x * blockDim.x + threadIdx.x) / kWarp;
    row = warp * rows + warp_lane / group;
    step = static_cast<int64_t>(gridDim.x) * (blockDim.x / kWarp) * rows;
  }
  /// Sum over the lanes of a row; every lane of the warp calls it.
  __device__ float sum(float value) const {
    const int first = threadIdx.x % kWarp - lane;
    float total = 0;
    for (int i = 0; i < group; ++i) {
      total += __shfl_sync(kFullWarp, value, min(first + i, kWarp - 1));
    }
    return total;
  }
};

/// Grid: any. Called by channel_norm_silu_cuda.
template <typename T>
__global__ void __launch_bounds__(kBlock) forward_kernel(ChannelNormArgs args) {
  const Place place(args.dim);
  float gamma[kPack];
  load<true>(args.gamma + place.lane * kPack, gamma);
  const float root = sqrtf(static_cast<float>(args.dim));
  // All lanes of a warp go round equally often: they exchange sums.
  for (int64_t row = place.row; __any_sync(kFullWarp, place.works && row < args.num_rows);
       row += place.step) {
    const bool works = place.works && row < args.num_rows;
    const int64_t offset = row * args.dim + place.lane * kPack;
    float x[kPack] = {};
    if (works) load<true>(static_cast<const T*>(args.x) + offset, x);
    float square = 0;
#pragma unroll
    for (int j = 0; j < kPack; ++j) square += x[j] * x[j];
    const float scale = root / fmaxf(sqrtf(place.sum(square)), args.floor);
#pragma unroll
    for (int j = 0; j < kPack; ++j) {
      const float u = x[j] * scale * gamma[j];
      x[j] = u / (1.0f + __expf(-u));
    }
    if (works) store<true>(static_cast<T*>(args.y) + offset, x);
  }
}

/// Grid: num_parts. Called by channel_norm_silu_backward_cuda.
template <typename T>
__global__ void __launch_bounds__(kBlock) backward_kernel(ChannelNormBackwardArgs args) {
  __shared__ float s_gamma[256];
  const ChannelNormArgs& forward = args.forward;
  const Place place(forward.dim);
  for (int i = threadIdx.x; i < forward.dim; i += kBlock) s_gamma[i] = 0;
  __syncthreads();
  float gamma[kPack], sums[kPack] = {};
  load<true>(forward.gamma + place.lane * kPack, gamma);
  const float root = sqrtf(static_cast<float>(forward.dim));
  for (int64_t row = place.row; __any_sync(kFullWarp, place.works && row < forward.num_rows);
       row += place.step) {
    const bool works = place.works && row < forward.num_rows;
    const int64_t offset = row * forward.dim + place.lane * kPack;
    float x[kPack] = {}, g[kPack] = {};
    if (works) {
      load<true>(static_cast<const T*>(forward.x) + offset, x);
      load<true>(static_cast<const T*>(args.y_gradient) + offset, g);
    }
    float square = 0;
#pragma unroll
    for (int j = 0; j < kPack; ++j) square += x[j] * x[j];
    square = place.sum(square);
    const float norm = fmaxf(sqrtf(square), forward.floor), scale = root / norm;
    float along = 0;  // of the gradient of x / |x| in the direction of x
#pragma unroll
    for (int j = 0; j < kPack; ++j) {
      const float normed = x[j] * scale, u = normed * gamma[j];
      const float sigmoid = 1.0f / (1.0f + __expf(-u));
      const float du = g[j] * sigmoid * (1.0f + u * (1.0f - sigmoid));
      sums[j] += du * normed;
      g[j] = du * gamma[j];
      along += g[j] * x[j];
    }
    // Below the floor the norm is constant.
    along = sqrtf(square) > forward.floor ? place.sum(along) / square : 0.0f * place.sum(along);
#pragma unroll
    for (int j = 0; j < kPack; ++j) g[j] = scale * (g[j] - x[j] * along);
    if (works) store<true>(static_cast<T*>(args.x_gradient) + offset, g);
  }
  if (place.works) {
#pragma unroll
    for (int j = 0; j < kPack; ++j) atomicAdd(&s_gamma[place.lane * kPack + j], sums[j]);
  }
  __syncthreads();
  for (int i = threadIdx.x; i < forward.dim; i += kBlock) {
    args.gamma_gradients[blockIdx.x * forward.dim + i] = s_gamma[i];
  }
}

}  // namespace

Status check(const ChannelNormArgs& args) {
  if (args.dtype == DType::f32) return {StatusCode::unsupported, "fp32"};
  if (args.dim % kPack != 0 || args.dim < kPack || args.dim > 256) {
    return {StatusCode::unsupported, "dim is no multiple of 8 up to 256"};
  }
  if (args.num_rows > 0 && (args.x == nullptr || args.gamma == nullptr)) {
    return {StatusCode::invalid, "null pointer"};
  }
  return {};
}

Status channel_norm_silu_cuda(const ChannelNormArgs& args, CudaTarget target) {
  return launch_rows(args, args.num_rows, args.dim, target, [&](cudaStream_t stream) {
    const int64_t rows_per_block = kBlock / kWarp * (kWarp / (args.dim / kPack));
    const auto blocks = static_cast<unsigned>(
        std::min(kForwardBlocks, (args.num_rows + rows_per_block - 1) / rows_per_block));
    if (args.dtype == DType::bf16) {
      forward_kernel<__nv_bfloat16><<<blocks, kBlock, 0, stream>>>(args);
    } else {
      forward_kernel<__half><<<blocks, kBlock, 0, stream>>>(args);
    }
  });
}

Status channel_norm_silu_backward_cuda(const ChannelNormBackwardArgs& args, CudaTarget target) {
  const ChannelNormArgs& forward = args.forward;
  return launch_rows(forward, forward.num_rows, forward.dim, target, [&](cudaStream_t stream) {
    const auto blocks = static_cast<unsigned>(args.num_parts);
    if (forward.dtype == DType::bf16) {
      backward_kernel<__nv_bfloat16><<<blocks, kBlock, 0, stream>>>(args);
    } else {
      backward_kernel<__half><<<blocks, kBlock, 0, stream>>>(args);
    }
  });
}

}  // namespace fovea::kernels
