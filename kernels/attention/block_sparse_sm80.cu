#include "kernels/attention/block_sparse_cuda.h"

#include <limits>

#include "kernels/attention/launch_sm80.cuh"

namespace fovea::kernels {
namespace sm80 {

// In sources of their own, forward_sm80_*.cu: they take a while to compile.
extern template Status launch_dim<32>(const CudaAttentionArgs& args, CudaTarget target);
extern template Status launch_dim<64>(const CudaAttentionArgs& args, CudaTarget target);
extern template Status launch_dim<96>(const CudaAttentionArgs& args, CudaTarget target);
extern template Status launch_dim<128>(const CudaAttentionArgs& args, CudaTarget target);
extern template Status launch_dim<256>(const CudaAttentionArgs& args, CudaTarget target);
extern template Status launch_dim<64, true>(const CudaAttentionArgs& args, CudaTarget target);
extern template Status launch_dim<128, true>(const CudaAttentionArgs& args, CudaTarget target);

}  // namespace sm80

namespace {

Status why_not(const CudaAttentionArgs& args) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max() / 2;
  switch (args.dim) {
    case 32:
    case 64:
    case 96:
    case 128:
    case 256:
      break;
    default:
      return {StatusCode::unsupported, "takes 32, 64, 96, 128 or 256 channels a head"};
  }
  if (args.v.dtype == DType::f32) return {StatusCode::unsupported, "takes bf16 and fp16"};
  if (args.q_int8.data != nullptr && args.dim != 64 && args.dim != 128) {
    return {StatusCode::unsupported, "takes 64 or 128 channels a head of integers"};
  }
  if (args.q_int8.data != nullptr && args.more.k.data != nullptr) {
    return {StatusCode::unsupported, "takes no more keys beside integers"};
  }
  if (!(args.sm_scale > 0)) return {StatusCode::unsupported, "takes scales above 0"};
  if (args.q_len > kMost || args.kv_len > kMost || args.more.begin > kMost - args.more.len) {
    return {StatusCode::unsupported, "takes up to 2^30 tokens"};
  }
  if (args.lists.tiles != nullptr && args.tile != AttentionTile{128, 128} &&
      args.tile != AttentionTile{128, 64} && args.tile != AttentionTile{64, 64}) {
    return {StatusCode::invalid, "lists of another tile"};
  }
  return {};
}

}  // namespace

AttentionTile sm80_tile(int64_t block_q, int64_t block_kv) {
  if (block_q % 128 != 0) return {64, 64};
  return block_kv % 128 == 0 ? AttentionTile{128, 128} : AttentionTile{128, 64};
}

Status block_sparse_sm80(const CudaAttentionArgs& args, CudaTarget target) {
  if (const Status status = why_not(args); !status.ok()) return status;
  if (args.batch == 0 || args.heads == 0 || args.q_len == 0) return {};
  if (args.q_int8.data != nullptr) {
    return args.dim == 64 ? sm80::launch_dim<64, true>(args, target)
                          : sm80::launch_dim<128, true>(args, target);
  }
  switch (args.dim) {
    case 32:
      return sm80::launch_dim<32>(args, target);
    case 64:
      return sm80::launch_dim<64>(args, target);
    case 96:
      return sm80::launch_dim<96>(args, target);
    case 128:
      return sm80::launch_dim<128>(args, target);
    default:
      return sm80::launch_dim<256>(args, target);
  }
}

}  // namespace fovea::kernels
