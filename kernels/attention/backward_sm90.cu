#include <limits>

#include "kernels/attention/launch_backward_sm90.cuh"

namespace fovea::kernels {
namespace {

using namespace sm90;

// Rows or columns, channels, computing warpgroups, other rows of a step, stages, spans of a step
// (of lists), whether the wait for dP is held back.
template <int kDim>
using DenseRows = BackwardShape<false, kDim, 2, 128, kDim == 64 ? 4 : 2, 0, true>;
template <int kDim>
using DenseColumns = BackwardShape<true, kDim, 2, 64, kDim == 64 ? 6 : 4>;
template <int kDim>
using Rows128x128 = BackwardShape<false, kDim, 2, 128, kDim == 64 ? 4 : 2, 1, true>;
template <int kDim>
using Rows128x64 = BackwardShape<false, kDim, 2, 128, kDim == 64 ? 4 : 2, 2, true>;
template <int kDim>
using Rows64x64 = BackwardShape<false, kDim, 1, 64, kDim == 64 ? 5 : 2, 1, true>;
template <int kDim>
using Columns128x64 = BackwardShape<true, kDim, 2, 64, kDim == 64 ? 6 : 4, 1>;
template <int kDim>
using Columns64x64 = BackwardShape<true, kDim, 1, 64, kDim == 64 ? 5 : 2, 1>;

template <int kDim, Type kType>
Status launch_rows(const CudaAttentionBackwardArgs& args, CudaTarget target) {
  const AttentionTile tile = args.forward.tile;
  if (args.forward.lists.tiles == nullptr) {
    return launch_backward<DenseRows<kDim>, kType>(args, target);
  }
  if (tile == AttentionTile{128, 128}) {
    return launch_backward<Rows128x128<kDim>, kType>(args, target);
  }
  if (tile == AttentionTile{128, 64}) {
    return launch_backward<Rows128x64<kDim>, kType>(args, target);
  }
  if (tile == AttentionTile{64, 64}) return launch_backward<Rows64x64<kDim>, kType>(args, target);
  return {StatusCode::invalid, "lists of another tile"};
}

template <int kDim, Type kType>
Status launch_columns(const CudaAttentionBackwardArgs& args, CudaTarget target) {
  const AttentionTile tile = args.column_tile;
  if (args.forward.lists.tiles == nullptr) {
    return launch_backward<DenseColumns<kDim>, kType>(args, target);
  }
  if (tile == AttentionTile{128, 64}) {
    return launch_backward<Columns128x64<kDim>, kType>(args, target);
  }
  if (tile == AttentionTile{64, 64}) {
    return launch_backward<Columns64x64<kDim>, kType>(args, target);
  }
  return {StatusCode::invalid, "columns of another tile"};
}

template <int kDim, Type kType>
Status launch_all(const CudaAttentionBackwardArgs& args, CudaTarget target) {
  Status status = prepare_backward<kDim, kType>(args, target);
  if (status.ok() && args.grad_q.data != nullptr) status = launch_rows<kDim, kType>(args, target);
  if (status.ok() && args.grad_k.data != nullptr) {
    status = launch_columns<kDim, kType>(args, target);
  }
  return status;
}

Status why_not(const CudaAttentionBackwardArgs& args) {
  const CudaAttentionArgs& f = args.forward;
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max() / 2;
  if (f.dim != 64 && f.dim != 128) {
    return {StatusCode::unsupported, "takes 64 or 128 channels a head"};
  }
  if (f.q.dtype == DType::f32) return {StatusCode::unsupported, "takes bf16 and fp16"};
  if (f.key_bias.data != nullptr || f.out_order.rows != nullptr) {
    return {StatusCode::unsupported, "takes no bias of keys and no order of rows"};
  }
  if (!(f.sm_scale > 0)) return {StatusCode::unsupported, "takes scales above 0"};
  if (f.q_len > kMost || f.kv_len > kMost) {
    return {StatusCode::unsupported, "takes up to 2^30 tokens"};
  }
  if (f.more.k.data != nullptr && f.lists.tiles == nullptr) {
    return {StatusCode::unsupported, "takes more keys with lists"};
  }
  return {};
}

Status what_is_wrong(const CudaAttentionBackwardArgs& args) {
  const CudaAttentionArgs& f = args.forward;
  const bool wants_keys = args.grad_k.data != nullptr;
  if (f.out.data == nullptr || f.lse == nullptr || args.grad_out.data == nullptr ||
      args.workspace == nullptr) {
    return {StatusCode::invalid, "out, lse, grad_out or workspace is missing"};
  }
  if (wants_keys != (args.grad_v.data != nullptr)) {
    return {StatusCode::invalid, "grad_k and grad_v come together"};
  }
  if (wants_keys && f.more.k.data != nullptr &&
      (args.grad_more_k.data == nullptr || args.grad_more_v.data == nullptr)) {
    return {StatusCode::invalid, "gradients of the more keys are missing"};
  }
  if (wants_keys && f.lists.tiles != nullptr && args.columns.tiles == nullptr) {
    return {StatusCode::invalid, "lists of columns are missing"};
  }
  if (wants_keys && (f.lists.masks != nullptr) != (args.columns.masks != nullptr)) {
    return {StatusCode::invalid, "masks of rows or of columns are missing"};
  }
  return {};
}

}  // namespace

AttentionTile sm90_column_tile(int64_t /*block_q*/, int64_t block_kv) {
  return {block_kv % 128 == 0 ? 128 : 64, 64};
}

int64_t attention_backward_workspace_bytes(const CudaAttentionBackwardArgs& args) {
  const CudaAttentionArgs& f = args.forward;
  return f.batch * f.heads * 2 * stats_stride(f) * static_cast<int64_t>(sizeof(float));
}

Status block_sparse_backward_sm90(const CudaAttentionBackwardArgs& args, CudaTarget target) {
  if (const Status status = why_not(args); !status.ok()) return status;
  const CudaAttentionArgs& f = args.forward;
  if (f.batch == 0 || f.heads == 0) return {};
  if (f.q_len == 0 || f.kv_len == 0) {
    return {StatusCode::unsupported, "takes at least one query and one key"};
  }
  if (const Status status = what_is_wrong(args); !status.ok()) return status;
  const auto launch =
      f.dim == 64
          ? (f.q.dtype == DType::bf16 ? launch_all<64, Type::bf16> : launch_all<64, Type::f16>)
          : (f.q.dtype == DType::bf16 ? launch_all<128, Type::bf16> : launch_all<128, Type::f16>);
  return launch(args, target);
}

}  // namespace fovea::kernels
