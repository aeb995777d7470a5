#include "kernels/ops/channel_norm.h"

#include <algorithm>

#include "kernels/ops/row.cuh"

namespace fovea::kernels {
namespace {

constexpr int kPack = 8;  // channels that a thread reads at once: 16 bytes
constexpr int kBlock = 256;
constexpr int64_t kForwardBlocks = 4096;
constexpr int kMaxDim = 2 * kWarp * kPack;
constexpr unsigned kFullWarp = 0xFFFFFFFFu;

/// Lanes that share a row, when each of them holds `packs` packs.
__host__ __device__ inline int lanes_of_row(int64_t dim, int packs) {
  return static_cast<int>(dim) / (kPack * packs);
}

/// Where a thread works: neighbouring lanes share a row; what is left of a warp idles.
template <int kPacks>
struct Place {
  int group, lane;  ///< lanes of a row, and which of them this is
  bool works;
  int64_t row, step;  ///< first row, and how far the next one is

  __device__ explicit Place(int64_t dim) {
    group = lanes_of_row(dim, kPacks);
    const int warp_lane = threadIdx.x % kWarp, rows = kWarp / group;
    lane = warp_lane % group;
    works = warp_lane < rows * group;
    const int64_t warp = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / kWarp;
    row = warp * rows + warp_lane / group;
    step = static_cast<int64_t>(gridDim.x) * (blockDim.x / kWarp) * rows;
  }
  __device__ int channel(int pack) const { return (pack * group + lane) * kPack; }
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

template <int kPacks>
__device__ inline float square_sum(const float (&x)[kPacks][kPack]) {
  float sum = 0;
#pragma unroll
  for (int p = 0; p < kPacks; ++p) {
#pragma unroll
    for (int j = 0; j < kPack; ++j) sum += x[p][j] * x[p][j];
  }
  return sum;
}

/// Grid: any. Called by channel_norm_silu_cuda.
template <typename T, int kPacks>
__global__ void __launch_bounds__(kBlock) forward_kernel(ChannelNormArgs args) {
  const Place<kPacks> place(args.dim);
  float gamma[kPacks][kPack];
#pragma unroll
  for (int p = 0; p < kPacks; ++p) load<true>(args.gamma + place.channel(p), gamma[p]);
  const float root = sqrtf(static_cast<float>(args.dim));
  // All lanes of a warp go round equally often: they exchange sums.
  for (int64_t row = place.row; __any_sync(kFullWarp, place.works && row < args.num_rows);
       row += place.step) {
    const bool works = place.works && row < args.num_rows;
    const T* g_x = static_cast<const T*>(args.x) + row * args.dim;
    T* g_y = static_cast<T*>(args.y) + row / args.rows_per_item * args.y_item_stride +
             row % args.rows_per_item * args.dim;
    float x[kPacks][kPack] = {};
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      if (works) load<true>(g_x + place.channel(p), x[p]);
    }
    const float scale = root / fmaxf(sqrtf(place.sum(square_sum(x))), args.floor);
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
#pragma unroll
      for (int j = 0; j < kPack; ++j) {
        const float u = x[p][j] * scale * gamma[p][j];
        x[p][j] = u / (1.0f + __expf(-u));
      }
      if (works) store<true>(g_y + place.channel(p), x[p]);
    }
  }
}

/// Grid: num_parts. Called by channel_norm_silu_backward_cuda.
template <typename T, int kPacks>
__global__ void __launch_bounds__(kBlock) backward_kernel(ChannelNormBackwardArgs args) {
  __shared__ float s_gamma[kMaxDim];
  const ChannelNormArgs& forward = args.forward;
  const Place<kPacks> place(forward.dim);
  for (int i = threadIdx.x; i < forward.dim; i += kBlock) s_gamma[i] = 0;
  __syncthreads();
  float gamma[kPacks][kPack], sums[kPacks][kPack] = {};
#pragma unroll
  for (int p = 0; p < kPacks; ++p) load<true>(forward.gamma + place.channel(p), gamma[p]);
  const float root = sqrtf(static_cast<float>(forward.dim));
  for (int64_t row = place.row; __any_sync(kFullWarp, place.works && row < forward.num_rows);
       row += place.step) {
    const bool works = place.works && row < forward.num_rows;
    const int64_t offset = row * forward.dim;
    float x[kPacks][kPack] = {}, g[kPacks][kPack] = {};
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      if (!works) continue;
      load<true>(static_cast<const T*>(forward.x) + offset + place.channel(p), x[p]);
      load<true>(static_cast<const T*>(args.y_gradient) + offset + place.channel(p), g[p]);
    }
    const float square = place.sum(square_sum(x));
    const float scale = root / fmaxf(sqrtf(square), forward.floor);
    float along = 0;  // of the gradient of x / |x| in the direction of x
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
#pragma unroll
      for (int j = 0; j < kPack; ++j) {
        const float normed = x[p][j] * scale, u = normed * gamma[p][j];
        const float sigmoid = 1.0f / (1.0f + __expf(-u));
        const float du = g[p][j] * sigmoid * (1.0f + u * (1.0f - sigmoid));
        sums[p][j] += du * normed;
        g[p][j] = du * gamma[p][j];
        along += g[p][j] * x[p][j];
      }
    }
    along = place.sum(along);
    // Below the floor the norm is constant.
    along = sqrtf(square) > forward.floor ? along / square : 0.0f;
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
#pragma unroll
      for (int j = 0; j < kPack; ++j) g[p][j] = scale * (g[p][j] - x[p][j] * along);
      if (works) store<true>(static_cast<T*>(args.x_gradient) + offset + place.channel(p), g[p]);
    }
  }
  if (place.works) {
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
#pragma unroll
      for (int j = 0; j < kPack; ++j) atomicAdd(&s_gamma[place.channel(p) + j], sums[p][j]);
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < forward.dim; i += kBlock) {
    args.gamma_gradients[blockIdx.x * forward.dim + i] = s_gamma[i];
  }
}

int packs_of(int64_t dim) { return dim <= kWarp * kPack ? 1 : 2; }

/// Calls f(T{}, packs) with the element type and std::integral_constant of the packs of a lane.
template <typename F>
void with_kernel(const ChannelNormArgs& args, F f) {
  const auto with_packs = [&](auto type) {
    if (packs_of(args.dim) == 1) {
      f(type, std::integral_constant<int, 1>());
    } else {
      f(type, std::integral_constant<int, 2>());
    }
  };
  if (args.dtype == DType::bf16) {
    with_packs(__nv_bfloat16());
  } else {
    with_packs(__half());
  }
}

}  // namespace

Status check(const ChannelNormArgs& args) {
  if (args.dtype == DType::f32) return {StatusCode::unsupported, "fp32"};
  if (args.dim < kPack || args.dim > kMaxDim || args.dim % (kPack * packs_of(args.dim)) != 0) {
    return {StatusCode::unsupported, "channels"};
  }
  if (args.num_rows > 0 && (args.x == nullptr || args.gamma == nullptr || args.rows_per_item < 1)) {
    return {StatusCode::invalid, "null pointer, or no rows"};
  }
  return {};
}

Status channel_norm_silu_cuda(const ChannelNormArgs& args, CudaTarget target) {
  return launch_rows(args, args.num_rows, args.dim, target, [&](cudaStream_t stream) {
    const int64_t rows_per_block =
        kBlock / kWarp * (kWarp / lanes_of_row(args.dim, packs_of(args.dim)));
    const auto blocks = static_cast<unsigned>(
        std::min(kForwardBlocks, (args.num_rows + rows_per_block - 1) / rows_per_block));
    with_kernel(args, [&](auto type, auto packs) {
      forward_kernel<decltype(type), packs()><<<blocks, kBlock, 0, stream>>>(args);
    });
  });
}

Status channel_norm_silu_backward_cuda(const ChannelNormBackwardArgs& args, CudaTarget target) {
  const ChannelNormArgs& forward = args.forward;
  return launch_rows(forward, forward.num_rows, forward.dim, target, [&](cudaStream_t stream) {
    const auto blocks = static_cast<unsigned>(args.num_parts);
    with_kernel(forward, [&](auto type, auto packs) {
      backward_kernel<decltype(type), packs()><<<blocks, kBlock, 0, stream>>>(args);
    });
  });
}

}  // namespace fovea::kernels
