#include "core/attention/executors/sdpa.h"

#include <limits>

#include <ATen/ATen.h>

#include "core/check.h"

namespace fovea {

std::optional<std::string> SdpaExecutor::why_not(const AttentionPlan& plan, const AttentionCall&) const {
  if (plan.density != 1.0) return str("runs dense plans only, density is ", plan.density);
  return std::nullopt;
}

at::Tensor SdpaExecutor::run(const AttentionPlan&, const AttentionCall& call) {
  if (call.kv_layout.seq_len() == 0) {
    return at::zeros({call.q.size(0), call.q.size(1), call.q.size(2), call.v.size(3)}, call.q.options());
  }
  std::optional<at::Tensor> mask;
  if (call.bias.defined()) mask = call.bias.to(call.q.scalar_type());
  const at::Tensor valid = call.kv_layout.valid_mask();
  if (valid.defined()) {
    // LibTorch takes one mask: a bias carries padding as -inf.
    mask = mask ? mask->masked_fill(valid.logical_not(), -std::numeric_limits<double>::infinity()) : valid;
  }
  const bool grouped_heads = call.k.size(1) != call.q.size(1);
  return at::scaled_dot_product_attention(call.q, call.k, call.v, mask, /*dropout_p=*/0.0,
                                          /*is_causal=*/false, call.sm_scale, grouped_heads);
}

}  // namespace fovea
