#include "core/attention/executors/sdpa.h"

#include <algorithm>
#include <limits>
#include <vector>

#include <ATen/ATen.h>

#include "core/check.h"

namespace fovea {
namespace {

// Puts cuDNN's attention first while it lives: on Hopper it is a third faster than the flash kernel
// that LibTorch prefers. What cuDNN cannot take falls to the kernels after it.
class CudnnFirst {
 public:
  explicit CudnnFirst(const at::Tensor& q) : active_(q.is_cuda() && q.element_size() == 2) {
    if (!active_) return;
    for (const at::SDPBackend backend : at::globalContext().sDPPriorityOrder()) {
      before_.push_back(static_cast<int64_t>(backend));
    }
    std::vector<int64_t> order = before_;
    const auto cudnn = static_cast<int64_t>(at::SDPBackend::cudnn_attention);
    std::stable_partition(order.begin(), order.end(),
                          [&](int64_t backend) { return backend == cudnn; });
    at::globalContext().setSDPPriorityOrder(order);
  }
  ~CudnnFirst() {
    if (active_) at::globalContext().setSDPPriorityOrder(before_);
  }
  CudnnFirst(const CudnnFirst&) = delete;
  CudnnFirst& operator=(const CudnnFirst&) = delete;

 private:
  bool active_;
  std::vector<int64_t> before_;
};

}  // namespace

std::optional<std::string> SdpaExecutor::why_not(const AttentionPlan& plan,
                                                 const AttentionCall& call) const {
  if (!plan.is_dense()) return "runs dense plans only";
  if (call.needs_lse) return "gives no log-sum-exp";
  return std::nullopt;
}

AttentionResult SdpaExecutor::run(const AttentionPlan&, const AttentionCall& call,
                                  const LoweredPlan*) {
  if (call.kv_layout.seq_len() == 0) {
    return {at::zeros({call.q.size(0), call.q.size(1), call.q.size(2), call.v.size(3)},
                      call.q.options()),
            {}};
  }
  std::optional<at::Tensor> mask;
  if (call.bias.defined()) mask = call.bias.to(call.q.scalar_type());
  const at::Tensor valid = call.kv_layout.valid_mask();
  if (valid.defined()) {
    // LibTorch takes one mask: a bias carries padding as -inf.
    mask = mask ? mask->masked_fill(valid.logical_not(), -std::numeric_limits<double>::infinity())
                : valid;
  }
  at::Tensor k = call.k, v = call.v;
  if (valid.defined()) {
    // A weight of 0 does not keep NaN out, which padding may hold.
    const at::Tensor padding = valid.logical_not().transpose(2, 3);
    k = k.masked_fill(padding, 0);
    v = v.masked_fill(padding, 0);
  }
  const CudnnFirst cudnn_first(call.q);
  const bool grouped_heads = call.k.size(1) != call.q.size(1);
  return {at::scaled_dot_product_attention(call.q, k, v, mask, /*dropout_p=*/0.0,
                                           /*is_causal=*/false, call.sm_scale, grouped_heads),
          {}};
}

}  // namespace fovea
