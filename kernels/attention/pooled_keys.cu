#include "kernels/attention/pooled_keys.h"

#include <limits>

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "kernels/attention/listed_keys.h"
#include "kernels/common/launch.cuh"

namespace fovea::kernels {
namespace {

constexpr int kMaxThreads = 256;

__device__ float widened(float x) { return x; }
__device__ float widened(__half x) { return __half2float(x); }
__device__ float widened(__nv_bfloat16 x) { return __bfloat162float(x); }

/// A block makes one mean of one tensor, a thread a channel of it.
/// Grid: (means of all summaries, batch * heads, tensors).
template <typename T>
__global__ void __launch_bounds__(kMaxThreads) pooled_keys_kernel(PooledKeysArgs args) {
  int64_t j = blockIdx.x;
  int level = 0;
  while (j >= args.num_blocks * args.summaries[level].per_block) {
    j -= args.num_blocks * args.summaries[level++].per_block;
  }
  const SummaryKeys summary = args.summaries[level];
  const int64_t head = blockIdx.y % args.heads, item = blockIdx.y / args.heads;
  const int32_t* offsets =
      args.offsets.rows + item * args.offsets.batch_stride + head * args.offsets.head_stride;
  const Positions block =
      block_of(offsets, j / summary.per_block, static_cast<int32_t>(args.len), args.fault);
  const Positions piece = piece_of(block, summary, j % summary.per_block);
  const int32_t* order = args.order.rows;
  if (order) order += item * args.order.batch_stride + head * args.order.head_stride;
  const HeadRows& in = args.in[blockIdx.z];
  const int64_t in_head = head / (args.heads / args.in_heads);
  const T* const from =
      static_cast<const T*>(in.data) + item * in.batch_stride + in_head * in.head_stride;
  const int64_t out = blockIdx.y * args.places + summary.begin + j;
  for (int64_t channel = threadIdx.x; channel < args.dim; channel += blockDim.x) {
    float sum = 0;
    int count = 0;
    for (int i = piece.begin; i < piece.end; ++i) {
      const int64_t row = order ? order[i] : i;
      if (row < 0 || row >= args.len) continue;
      sum += widened(from[row * in.row_stride + channel]);
      ++count;
    }
    args.mean[blockIdx.z][out * args.dim + channel] = sum / static_cast<float>(max(count, 1));
    if (channel == 0 && blockIdx.z == 0) args.rows_in_mean[out] = static_cast<float>(count);
  }
}

}  // namespace

Status pooled_keys_cuda(const PooledKeysArgs& args, CudaTarget target) {
  int64_t means = 0;
  for (int i = 0; i < args.num_summaries; ++i) {
    means += args.num_blocks * args.summaries[i].per_block;
  }
  const int64_t heads = args.batch * args.heads;
  if (means == 0 || heads == 0 || args.count == 0) return {};
  if (means > std::numeric_limits<int32_t>::max() || heads > 65535) {
    return {StatusCode::unsupported, "more than 2^31 means or 65535 heads"};
  }
  const dim3 blocks(static_cast<unsigned>(means), static_cast<unsigned>(heads),
                    static_cast<unsigned>(args.count));
  const auto threads = static_cast<unsigned>(args.dim < kMaxThreads ? args.dim : kMaxThreads);
  const Grid grid{blocks, threads, 0, target.stream};
  switch (args.in[0].dtype) {
    case DType::f32:
      return launch_kernel(pooled_keys_kernel<float>, grid, args);
    case DType::f16:
      return launch_kernel(pooled_keys_kernel<__half>, grid, args);
    case DType::bf16:
      return launch_kernel(pooled_keys_kernel<__nv_bfloat16>, grid, args);
  }
  return {};
}

}  // namespace fovea::kernels
