#include "kernels/ops/channel_norm.h"

#include <algorithm>

#include "kernels/ops/row_group.cuh"

namespace fovea::kernels {
namespace {

constexpr int64_t kForwardBlocks = 4096;

template <int kPacks>
__device__ inline float square_sum(const LaneValues<kPacks>& x) {
  float sum = 0;
  for_each<kPacks>([&](int p, int j) { sum += x[p][j] * x[p][j]; });
  return sum;
}

/// Grid: any. Called by channel_norm_silu_cuda.
template <typename T, int kPacks>
__global__ void __launch_bounds__(kGroupBlock) forward_kernel(ChannelNormArgs args) {
  const RowGroup<kPacks> group(args.dim, blockIdx.x, gridDim.x);
  LaneValues<kPacks> gamma;
  load_lane(group, args.gamma, gamma);
  const float root = sqrtf(static_cast<float>(args.dim));
  for (int64_t row = group.row; group.any_left(row, args.num_rows); row += group.step) {
    const bool works = group.works && row < args.num_rows;
    LaneValues<kPacks> x = {};
    if (works) load_lane(group, static_cast<const T*>(args.x) + row * args.dim, x);
    const float scale = root / fmaxf(sqrtf(group.sum(square_sum<kPacks>(x))), args.floor);
    for_each<kPacks>([&](int p, int j) {
      const float u = x[p][j] * scale * gamma[p][j];
      x[p][j] = u / (1.0f + __expf(-u));
    });
    const int64_t item = row / args.rows_per_item;
    T* g_y = static_cast<T*>(args.y) + item * args.y_item_stride +
             (row - item * args.rows_per_item) * args.dim;
    if (works) store_lane(group, g_y, x);
  }
}

/// Grid: num_parts. Called by channel_norm_silu_backward_cuda.
template <typename T, int kPacks>
__global__ void __launch_bounds__(kGroupBlock) backward_kernel(ChannelNormBackwardArgs args) {
  const ChannelNormArgs& forward = args.forward;
  const int64_t dim = forward.dim;
  const RowGroup<kPacks> group(dim, blockIdx.x, gridDim.x);
  LaneValues<kPacks> gamma, sums = {};
  load_lane(group, forward.gamma, gamma);
  const float root = sqrtf(static_cast<float>(dim));
  for (int64_t row = group.row; group.any_left(row, forward.num_rows); row += group.step) {
    const bool works = group.works && row < forward.num_rows;
    LaneValues<kPacks> x = {}, g = {};
    if (works) {
      load_lane(group, static_cast<const T*>(forward.x) + row * dim, x);
      load_lane(group, static_cast<const T*>(args.y_gradient) + row * dim, g);
    }
    const float square = group.sum(square_sum<kPacks>(x));
    const float scale = root / fmaxf(sqrtf(square), forward.floor);
    float along = 0;  // of the gradient of x / |x| in the direction of x
    for_each<kPacks>([&](int p, int j) {
      const float normed = x[p][j] * scale, u = normed * gamma[p][j];
      const float sigmoid = 1.0f / (1.0f + __expf(-u));
      const float du = g[p][j] * sigmoid * (1.0f + u * (1.0f - sigmoid));
      sums[p][j] += du * normed;
      g[p][j] = du * gamma[p][j];
      along += g[p][j] * x[p][j];
    });
    along = group.sum(along);
    // Below the floor the norm is constant.
    along = sqrtf(square) > forward.floor ? along / square : 0.0f;
    for_each<kPacks>([&](int p, int j) { g[p][j] = scale * (g[p][j] - x[p][j] * along); });
    if (works) store_lane(group, static_cast<T*>(args.x_gradient) + row * dim, g);
  }
  write_block_sums(group, dim, sums, args.gamma_gradients + blockIdx.x * dim);
}

}  // namespace

Status check(const ChannelNormArgs& args) {
  if (args.dtype == DType::f32) return {StatusCode::unsupported, "fp32"};
  if (packs_of_lane(args.dim) == 0) return {StatusCode::unsupported, "channels"};
  if (args.num_rows > 0 && (args.x == nullptr || args.gamma == nullptr || args.rows_per_item < 1)) {
    return {StatusCode::invalid, "null pointer, or no rows"};
  }
  return {};
}

Status channel_norm_silu_cuda(const ChannelNormArgs& args, CudaTarget target) {
  return launch_rows(args, args.num_rows, args.dim, target, [&](cudaStream_t stream) {
    const int64_t rows = rows_of_block(args.dim, packs_of_lane(args.dim));
    const auto blocks =
        static_cast<unsigned>(std::min(kForwardBlocks, (args.num_rows + rows - 1) / rows));
    with_row_group(args.dtype, args.dim, [&](auto type, auto packs) {
      forward_kernel<decltype(type), packs()><<<blocks, kGroupBlock, 0, stream>>>(args);
    });
  });
}

Status channel_norm_silu_backward_cuda(const ChannelNormBackwardArgs& args, CudaTarget target) {
  const ChannelNormArgs& forward = args.forward;
  return launch_rows(forward, forward.num_rows, forward.dim, target, [&](cudaStream_t stream) {
    const auto blocks = static_cast<unsigned>(args.num_parts);
    with_row_group(forward.dtype, forward.dim, [&](auto type, auto packs) {
      backward_kernel<decltype(type), packs()><<<blocks, kGroupBlock, 0, stream>>>(args);
    });
  });
}

}  // namespace fovea::kernels
