#include "kernels/attention/block_sparse_sm90.h"

#include <limits>

#include "kernels/attention/launch_sm90.cuh"

namespace fovea::kernels {
namespace {

using namespace sm90;

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
