#include "kernels/attention/block_sparse_sm90.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include <cuda_runtime.h>

#include "kernels/attention/forward_sm90.cuh"
#include "kernels/common/tma.h"

namespace fovea::kernels {
namespace {

using namespace sm90;

// What one copy brings of a head: rows, and panels of 64 columns.
struct Box {
  int rows, panels;
};

// A tensor [batch, heads, rows, dim] as (64, rows, dim / 64, heads, batch).
Status map_of(const HeadRows& x, std::array<int64_t, 4> shape, Box box, CUtensorMap* out) {
  const auto [batch, heads, rows, dim] = shape;
  TensorMapSpec spec;
  spec.data = x.data;
  spec.type =
      x.dtype == DType::bf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  const auto size = [](int64_t count) { return static_cast<uint64_t>(count); };
  // What there is one of may have any stride; the driver wants some.
  const auto stride = [](int64_t elements, int64_t count) {
    return count == 1 ? uint64_t{16} : static_cast<uint64_t>(elements) * 2;
  };
  spec.size = {64, size(rows), size(dim / 64), size(heads), size(batch)};
  spec.stride = {stride(x.row_stride, rows), 128, stride(x.head_stride, heads),
                 stride(x.batch_stride, batch)};
  spec.box = {64, static_cast<uint32_t>(box.rows), static_cast<uint32_t>(box.panels), 1, 1};
  return make_tensor_map(spec, out);
}

template <typename Shape, Type kType>
Status launch(const Sm90Args& args, CudaTarget target) {
  CUtensorMap q, k, v, out;
  const HeadRows result{args.out.data, args.out.dtype, args.out.batch_stride, args.out.head_stride,
                        args.out.row_stride};
  const std::array<int64_t, 4> of_q = {args.batch, args.heads, args.q_len, args.dim};
  const std::array<int64_t, 4> of_k = {args.batch, args.kv_heads, args.kv_len, args.dim};
  for (const Status status : {map_of(args.q, of_q, {Shape::kQueries, Shape::kPanels}, &q),
                              map_of(args.k, of_k, {Shape::kKeys, Shape::kPanels}, &k),
                              map_of(args.v, of_k, {Shape::kKeys, Shape::kPanels}, &v),
                              map_of(result, of_q, {64, 1}, &out)}) {
    if (!status.ok()) return status;
  }
  const int64_t tiles = (args.q_len + Shape::kQueries - 1) / Shape::kQueries;
  const int64_t num_tiles = tiles * args.heads * args.batch;
  if (num_tiles > std::numeric_limits<int32_t>::max()) {
    return {StatusCode::unsupported, "more than 2^31 tiles of queries"};
  }
  constexpr double kLog2e = 1.4426950408889634;
  ForwardParams params;
  params.heads = static_cast<int>(args.heads);
  params.heads_per_kv = static_cast<int>(args.heads / args.kv_heads);
  params.q_len = static_cast<int>(args.q_len);
  params.kv_len = static_cast<int>(args.kv_len);
  params.tiles = static_cast<int>(tiles);
  params.num_tiles = static_cast<int>(num_tiles);
  params.lists = args.lists;
  params.lse = args.lse;
  params.scale_log2 = static_cast<float>(args.sm_scale * kLog2e);
  // Shared memory begins at a multiple of 16; the struct is moved to one of 1024.
  constexpr int kBytes = sizeof(ForwardMemory<Shape>) + 1024;
  const auto kernel = forward_kernel<Shape, kType>;
  int processors = 0;
  cudaError_t code =
      cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, target.device);
  if (code == cudaSuccess) {
    code = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  }
  if (code == cudaSuccess) {
    const auto blocks = static_cast<unsigned>(std::min<int64_t>(processors, num_tiles));
    kernel<<<blocks, Shape::kThreads, kBytes, static_cast<cudaStream_t>(target.stream)>>>(
        q, k, v, out, params);
    code = cudaGetLastError();
  }
  if (code != cudaSuccess) return {StatusCode::device, cudaGetErrorString(code)};
  return {};
}

template <typename Shape>
Status launch_type(const Sm90Args& args, CudaTarget target) {
  return args.q.dtype == DType::bf16 ? launch<Shape, Type::bf16>(args, target)
                                     : launch<Shape, Type::f16>(args, target);
}

// Queries, keys and stages of a ring; figures in docs/tuning-sm90.md.
using Dense128 = ForwardShape<128, 3, 80, 4>;
using Sparse128 = ForwardShape<128, 2, 128, 2>;
using Dense64 = ForwardShape<64, 3, 128, 4>;
using Sparse64 = ForwardShape<64, 2, 128, 4>;

Status why_not(const Sm90Args& args) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max() / 2;
  if (args.dim != 64 && args.dim != 128) {
    return {StatusCode::unsupported, "takes 64 or 128 channels a head"};
  }
  if (args.q.dtype == DType::f32) return {StatusCode::unsupported, "takes bf16 and fp16"};
  if (!(args.sm_scale > 0)) return {StatusCode::unsupported, "takes scales above 0"};
  if (args.q_len > kMost || args.kv_len > kMost) {
    return {StatusCode::unsupported, "takes up to 2^30 tokens"};
  }
  return {};
}

}  // namespace

AttentionTile sm90_tile(int64_t dim, bool dense) {
  const auto tile = [](auto shape) { return AttentionTile{shape.kQueries, shape.kKeys}; };
  if (dim == 64) return dense ? tile(Dense64()) : tile(Sparse64());
  return dense ? tile(Dense128()) : tile(Sparse128());
}

Status block_sparse_sm90(const Sm90Args& args, CudaTarget target) {
  if (const Status status = why_not(args); !status.ok()) return status;
  if (args.batch == 0 || args.heads == 0 || args.q_len == 0) return {};
  if (args.kv_len == 0) return {StatusCode::unsupported, "takes at least one key"};
  const bool dense = args.lists.spans == nullptr;
  if (args.dim == 64) {
    return dense ? launch_type<Dense64>(args, target) : launch_type<Sparse64>(args, target);
  }
  return dense ? launch_type<Dense128>(args, target) : launch_type<Sparse128>(args, target);
}

}  // namespace fovea::kernels
