#include "core/attention/executors/sdpa.h"

#include <algorithm>
#include <limits>
#include <vector>

#include <ATen/ATen.h>

#include "core/check.h"

namespace fovea {
namespace {

// Puts a kernel of LibTorch's first while it lives; what it cannot take falls to those after it.
class First {
 public:
  explicit First(std::optional<at::SDPBackend> kernel) : active_(kernel.has_value()) {
    if (!active_) return;
    for (const at::SDPBackend backend : at::globalContext().sDPPriorityOrder()) {
      before_.push_back(static_cast<int64_t>(backend));
    }
    std::vector<int64_t> order = before_;
    const auto first = static_cast<int64_t>(*kernel);
    std::stable_partition(order.begin(), order.end(),
                          [&](int64_t backend) { return backend == first; });
    at::globalContext().setSDPPriorityOrder(order);
  }
  ~First() {
    if (active_) at::globalContext().setSDPPriorityOrder(before_);
  }
  First(const First&) = delete;
  First& operator=(const First&) = delete;

 private:
  bool active_;
  std::vector<int64_t> before_;
};

// Where any may run, on Hopper cuDNN's is a third faster than the one that LibTorch prefers.
std::optional<at::SDPBackend> first_of(SdpaKernel kernel, const at::Tensor& q) {
  if (!q.is_cuda()) return std::nullopt;
  if (kernel == SdpaKernel::flash) return at::SDPBackend::flash_attention;
  if (kernel == SdpaKernel::any && q.element_size() != 2) return std::nullopt;
  return at::SDPBackend::cudnn_attention;
}

}  // namespace

std::string SdpaExecutor::name() const {
  if (kernel_ == SdpaKernel::any) return "sdpa";
  return kernel_ == SdpaKernel::cudnn ? "sdpa_cudnn" : "sdpa_flash";
}

std::optional<std::string> SdpaExecutor::why_not(const AttentionPlan& plan,
                                                 const AttentionCall& call) const {
  if (!plan.is_dense()) return "runs dense plans only";
  if (call.needs_lse) return "gives no log-sum-exp";
  if (kernel_ == SdpaKernel::any) return std::nullopt;
  if (!call.q.is_cuda()) return "runs on NVIDIA GPUs";
  if (call.bias.defined() || call.kv_layout.valid_mask().defined()) return "takes no mask";
  const std::optional<at::SDPBackend> wanted = first_of(kernel_, call.q);
  const First first(wanted);
  const int64_t choice =
      at::_fused_sdp_choice(call.q, call.k, call.v, {}, /*dropout_p=*/0.0, /*is_causal=*/false,
                            call.sm_scale, call.k.size(1) != call.q.size(1));
  if (choice == static_cast<int64_t>(*wanted)) return std::nullopt;
  return "LibTorch's kernel does not take these inputs";
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
  const First first(first_of(kernel_, call.q));
  const bool grouped_heads = call.k.size(1) != call.q.size(1);
  return {at::scaled_dot_product_attention(call.q, k, v, mask, /*dropout_p=*/0.0,
                                           /*is_causal=*/false, call.sm_scale, grouped_heads),
          {}};
}

}  // namespace fovea
