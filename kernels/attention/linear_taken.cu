#include <cstdint>

#include <cuda_bf16.h>

#include "kernels/attention/linear_blocks.h"
#include "kernels/common/launch.cuh"

namespace fovea::kernels {
namespace {

constexpr int kWarps = 8, kThreads = 32 * kWarps;
constexpr int kRows = 16;   // of a block of threads
constexpr int kPart = 4;    // of them, whose sums pass through shared memory at a time
constexpr int kAtOnce = 4;  // totals that a warp has under way

/// Channels of a lane.
template <int kDim>
struct alignas(kDim / 8) Own {
  float x[kDim / 32];
};

/// Each warp takes 32 of 256 blocks of keys, and adds up their totals for all rows; then sums of
/// warps are added, in their order. Grid: ceil(rows / kRows) x heads of all items.
template <int kDim>
__global__ void __launch_bounds__(kThreads, 2)
    linear_taken_kernel(const __grid_constant__ LinearTakenArgs args) {
  constexpr unsigned kAll = 0xffffffff;
  constexpr int kChannels = kDim / 32;
  __shared__ float all[kWarps][kPart][kDim];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const auto heads = static_cast<unsigned>(args.heads);
  const int blocks = static_cast<int>(args.blocks);
  const int64_t first_row = int64_t{blockIdx.x} * kRows;
  const int rows = static_cast<int>(min(args.rows - first_row, int64_t{kRows}));
  const uint8_t* const classes = args.classes + blockIdx.y / heads * args.batch_stride +
                                 blockIdx.y % heads * args.head_stride + first_row * blocks;
  const int64_t place = blockIdx.y * args.rows + first_row;
  auto* const factors = static_cast<__nv_bfloat16*>(args.factors) + place * blocks;
  const float* const totals = args.totals + blockIdx.y * args.blocks * kDim + lane * kChannels;
  Own<kDim> sum[kRows] = {};
  for (int first = warp * 32; first < blocks; first += kThreads) {
    const int block = min(first + lane, blocks - 1);
    unsigned taken[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) taken[r] = classes[min(r, rows - 1) * blocks + block];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const bool is_taken = taken[r] == args.taken && first + lane < blocks;
      taken[r] = __ballot_sync(kAll, is_taken);
      if (r < rows && first + lane < blocks) {
        factors[r * blocks + block] = __float2bfloat16(is_taken ? 1.0f : 0.0f);
      }
    }
#pragma unroll 1
    for (int some = 0; some < 32; some += kAtOnce) {
      Own<kDim> own[kAtOnce];
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        const int from = min(first + some + j, blocks - 1);
        own[j] = *reinterpret_cast<const Own<kDim>*>(totals + from * kDim);
      }
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const unsigned bits = taken[r] >> some;
#pragma unroll
        for (int j = 0; j < kAtOnce; ++j) {
#pragma unroll
          for (int c = 0; c < kChannels; ++c) sum[r].x[c] += bits >> j & 1 ? own[j].x[c] : 0;
        }
      }
    }
  }
#pragma unroll
  for (int part = 0; part < kRows; part += kPart) {
    __syncthreads();
#pragma unroll
    for (int r = 0; r < kPart; ++r) {
      *reinterpret_cast<Own<kDim>*>(&all[warp][r][lane * kChannels]) = sum[part + r];
    }
    __syncthreads();
    for (int i = threadIdx.x; i < kPart * kDim; i += kThreads) {
      const int row = part + i / kDim, channel = i % kDim;
      float total = 0;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) total += all[w][i / kDim][channel];
      if (row < rows) args.sums[(place + row) * kDim + channel] = total;
    }
  }
}

}  // namespace

Status linear_taken_cuda(const LinearTakenArgs& args, CudaTarget target) {
  const int64_t heads = args.batch * args.heads;
  if (heads == 0 || args.rows == 0 || args.blocks == 0) return {};
  if (args.dim != 64 && args.dim != 128) {
    return {StatusCode::unsupported, "takes 64 or 128 channels"};
  }
  if (heads > 65535 || args.blocks > int64_t{1} << 20) {
    return {StatusCode::unsupported, "more than 65535 heads, or 2^20 blocks"};
  }
  const Grid grid{
      dim3(static_cast<unsigned>((args.rows + kRows - 1) / kRows), static_cast<unsigned>(heads)),
      kThreads, 0, target.stream};
  return launch_kernel(args.dim == 64 ? linear_taken_kernel<64> : linear_taken_kernel<128>, grid,
                       args);
}

}  // namespace fovea::kernels
