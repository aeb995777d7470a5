#pragma once

#include "core/attention/executor.h"

namespace fovea {

/// Runs any plan in plain tensor algebra, in fp32, or in fp64 where q is, and defines what plans
/// mean. Builds the whole matrix of logits: for tests and small problems. Differentiable.
class ReferenceExecutor : public Executor {
 public:
  std::string name() const override { return "reference"; }
  std::optional<std::string> why_not(const AttentionPlan& plan,
                                     const AttentionCall& call) const override;
  AttentionResult run(const AttentionPlan& plan, const AttentionCall& call,
                      const LoweredPlan* lowered = nullptr) override;
};

/// bool, broadcasts to [batch, heads, q_len, kv_len]: the pairs of tokens, by row, that a softmax
/// branch of the plan takes exactly; padding among the keys never is.
at::Tensor exact_pairs(const AttentionPlan& plan, const SoftmaxBranch& branch,
                       const AttentionCall& call);

}  // namespace fovea
