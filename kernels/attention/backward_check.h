#pragma once

#include <limits>

#include "kernels/attention/block_sparse_backward_cuda.h"

// What the backward kernels of all architectures take.

namespace fovea::kernels {

inline Status why_no_backward(const CudaAttentionBackwardArgs& args) {
  const CudaAttentionArgs& f = args.forward;
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max() / 2;
  if (f.dim != 64 && f.dim != 128) {
    return {StatusCode::unsupported, "takes 64 or 128 channels a head"};
  }
  if (f.q_int8.data != nullptr) return {StatusCode::unsupported, "takes no integers"};
  if (f.q.dtype == DType::f32) return {StatusCode::unsupported, "takes bf16 and fp16"};
  if (f.out_order.rows != nullptr) return {StatusCode::unsupported, "takes no order of rows"};
  if (!(f.sm_scale > 0)) return {StatusCode::unsupported, "takes scales above 0"};
  if (f.q_len > kMost || f.kv_len > kMost) {
    return {StatusCode::unsupported, "takes up to 2^30 tokens"};
  }
  if ((f.more.k.data != nullptr || f.key_bias.data != nullptr) && f.lists.tiles == nullptr) {
    return {StatusCode::unsupported, "takes more keys and a bias of keys with lists"};
  }
  return {};
}

inline Status what_is_wrong_backward(const CudaAttentionBackwardArgs& args) {
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
  return {};
}

/// `unsupported` or `invalid`, with a reason.
inline Status check_backward(const CudaAttentionBackwardArgs& args) {
  const CudaAttentionArgs& f = args.forward;
  if (const Status status = why_no_backward(args); !status.ok()) return status;
  if (f.batch == 0 || f.heads == 0) return {};
  if (f.q_len == 0 || f.kv_len == 0) {
    return {StatusCode::unsupported, "takes at least one query and one key"};
  }
  return what_is_wrong_backward(args);
}

}  // namespace fovea::kernels
