#pragma once

#include "core/attention/executor.h"

namespace fovea {

/// LibTorch's `scaled_dot_product_attention`: dense plans only, CPU and CUDA, with autograd.
class SdpaExecutor : public Executor {
 public:
  std::string name() const override { return "sdpa"; }
  std::optional<std::string> why_not(const AttentionPlan& plan,
                                     const AttentionCall& call) const override;
  AttentionResult run(const AttentionPlan& plan, const AttentionCall& call,
                      const LoweredPlan* lowered = nullptr) override;
};

}  // namespace fovea
