#include "kernels/attention/eight_bit_cuda.h"

#include <limits>

#include "kernels/attention/launch_bytes_sm90.h"

namespace fovea::kernels {
namespace {

Status why_not(const CudaAttentionArgs& args, const EightBitOperands& operands) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max() / 2;
  if (args.dim != 128) return {StatusCode::unsupported, "takes 128 channels a head"};
  if (args.out.dtype == DType::f32) return {StatusCode::unsupported, "gives bf16 and fp16"};
  if (args.key_bias.data != nullptr && args.lists.tiles == nullptr) {
    return {StatusCode::unsupported, "takes a bias of keys for lists only"};
  }
  if (args.more.k.data != nullptr) return {StatusCode::unsupported, "takes no more keys"};
  if (!(args.sm_scale > 0)) return {StatusCode::unsupported, "takes scales above 0"};
  if (args.q_len > kMost || args.kv_len > kMost) {
    return {StatusCode::unsupported, "takes up to 2^30 tokens"};
  }
  if (args.lists.tiles != nullptr && !(args.tile == kEightBitTile)) {
    return {StatusCode::invalid, "lists of another tile"};
  }
  return {};
}

}  // namespace

Status eight_bit_attention_sm90(const CudaAttentionArgs& args, const EightBitOperands& operands,
                                CudaTarget target) {
  if (const Status status = why_not(args, operands); !status.ok()) return status;
  if (args.batch == 0 || args.heads == 0 || args.q_len == 0) return {};
  if (args.kv_len == 0) return {StatusCode::unsupported, "takes at least one key"};
  return operands.format == ByteFormat::e4m3 ? sm90::launch_e4m3(args, operands, target)
                                             : sm90::launch_int8(args, operands, target);
}

}  // namespace fovea::kernels
