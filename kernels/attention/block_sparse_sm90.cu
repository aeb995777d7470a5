#include "kernels/attention/block_sparse_cuda.h"

#include <limits>

#include "kernels/attention/launch_sm90.cuh"

namespace fovea::kernels {
namespace {

using namespace sm90;

template <typename Shape>
Status launch_type(const CudaAttentionArgs& args, CudaTarget target) {
  return args.q.dtype == DType::bf16 ? launch<Shape, Type::bf16>(args, target)
                                     : launch<Shape, Type::f16>(args, target);
}

// Channels, computing warpgroups, keys of a step, stages, for lists spans of a step; figures in
// docs/tuning-sm90.md.
using Dense128 = ForwardShape<128, 3, 80, 4>;
using Dense64 = ForwardShape<64, 3, 128, 4>;
// Of lists: tiles of 128 or 64 queries, spans of 128 or 64 keys.
template <int kDim>
using Lists128x128 = ForwardShape<kDim, 2, 128, kDim == 64 ? 4 : 2, 1>;
template <int kDim>
using Lists128x64 = ForwardShape<kDim, 2, 128, kDim == 64 ? 4 : 2, 2>;
template <int kDim>
using Lists64x64 = ForwardShape<kDim, 1, 64, kDim == 64 ? 4 : 2, 1>;

template <int kDim>
using Packed128x160 = PackedShape<kDim, 160, kDim == 64 ? 4 : 2>;

template <int kDim>
Status launch_lists(const CudaAttentionArgs& args, CudaTarget target) {
  if (args.tile == sm90_packed_tile()) return launch_type<Packed128x160<kDim>>(args, target);
  if (args.tile == AttentionTile{128, 128}) return launch_type<Lists128x128<kDim>>(args, target);
  if (args.tile == AttentionTile{128, 64}) return launch_type<Lists128x64<kDim>>(args, target);
  if (args.tile == AttentionTile{64, 64}) return launch_type<Lists64x64<kDim>>(args, target);
  return {StatusCode::invalid, "lists of another tile"};
}

Status why_not(const CudaAttentionArgs& args) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max() / 2;
  if (args.dim != 64 && args.dim != 128) {
    return {StatusCode::unsupported, "takes 64 or 128 channels a head"};
  }
  if (args.q_int8.data != nullptr) return {StatusCode::unsupported, "takes no integers"};
  if (args.q.dtype == DType::f32) return {StatusCode::unsupported, "takes bf16 and fp16"};
  if (args.key_bias.data != nullptr && args.tile.is_packed) {
    return {StatusCode::unsupported, "takes no bias of keys for packed lists"};
  }
  if (args.key_bias.data != nullptr && args.lists.tiles == nullptr) {
    return {StatusCode::unsupported, "takes a bias of keys for lists only"};
  }
  if (!(args.sm_scale > 0)) return {StatusCode::unsupported, "takes scales above 0"};
  if (args.q_len > kMost || args.kv_len > kMost) {
    return {StatusCode::unsupported, "takes up to 2^30 tokens"};
  }
  return {};
}

}  // namespace

AttentionTile sm90_tile(int64_t block_q, int64_t block_kv) {
  if (block_q % 128 != 0) return {64, 64};
  return block_kv % 128 == 0 ? AttentionTile{128, 128} : AttentionTile{128, 64};
}

AttentionTile sm90_packed_tile() { return {128, 160, true}; }

Status block_sparse_sm90(const CudaAttentionArgs& args, CudaTarget target) {
  if (const Status status = why_not(args); !status.ok()) return status;
  if (args.batch == 0 || args.heads == 0 || args.q_len == 0) return {};
  if (args.kv_len == 0) return {StatusCode::unsupported, "takes at least one key"};
  const bool listed = args.lists.tiles != nullptr;
  if (args.dim == 64) {
    return listed ? launch_lists<64>(args, target) : launch_type<Dense64>(args, target);
  }
  return listed ? launch_lists<128>(args, target) : launch_type<Dense128>(args, target);
}

}  // namespace fovea::kernels
