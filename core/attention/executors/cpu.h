#pragma once

#include <memory>

#include "core/attention/executors/cpu_softmax.h"

namespace fovea {

/// Plans on the CPU: softmax branches with the kernel of kernels/attention/block_sparse.h, linear
/// ones in linear time. fp32 arithmetic from fp32, fp16 or bf16; time in proportion to the blocks
/// that a plan keeps. Differentiable once; gradients pass the
/// rounding of quantized plans as if it were not there.
///
/// Dense plans too, where it is faster than LibTorch's attention (docs/tuning-cpu.md): not with a
/// bias, and not in a half type that the processor multiplies with AMX. Executors in order decide
/// it by these features alone, so that a dense step of any run is what a dense run does.
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
  Partial run_softmax(const AttentionPlan& plan, const SoftmaxBranch& branch,
                      const AttentionCall& call, const std::shared_ptr<const SoftmaxLists>& lists);

  at::Tensor workspace_;  // kept from call to call
};

}  // namespace fovea
