#pragma once

#include "core/attention/executor.h"

namespace fovea {

/// One softmax branch on the CPU with the kernel of kernels/attention/block_sparse.h: fp32
/// arithmetic from fp32, fp16 or bf16, time in proportion to the blocks that a plan keeps.
class CpuExecutor : public Executor {
 public:
  std::string name() const override { return "cpu"; }
  std::optional<std::string> why_not(const AttentionPlan& plan,
                                     const AttentionCall& call) const override;
  std::shared_ptr<const LoweredPlan> lower(const AttentionPlan& plan,
                                           const AttentionCall& call) const override;
  AttentionResult run(const AttentionPlan& plan, const AttentionCall& call,
                      const LoweredPlan* lowered) override;

 private:
  at::Tensor workspace_;  // kept from call to call
};

}  // namespace fovea
