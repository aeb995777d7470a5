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

/// What of a plan is computed, and in what type.
struct ReferenceOptions {
  /// int64 [count] of queries on the device of q: nothing else is computed; undefined: all rows.
  at::Tensor rows = at::Tensor();
  /// In q's own type throughout, nothing widened: how far plain tensor algebra of that type is off.
  bool in_storage_type = false;
  /// Softmax weights get so much more of themselves before they are quantized: what it changes is
  /// what rounding errors before may change.
  double nudge = 0;
  /// e4m3 weights that the format has fewer bits for are left as they are: as far from the others
  /// as an executor may be that rounds them more finely (`Precision::p`).
  bool keeps_small_weights = false;
};

/// A plan by the reference; out and lse have one row for each of `rows`. Where the weights of a
/// softmax are quantized per block all rows are computed, and those of `rows` returned.
AttentionResult reference_attention(const AttentionPlan& plan, const AttentionCall& call,
                                    const ReferenceOptions& options = {});

/// bool, broadcasts to [batch, heads, q_len, kv_len]: the pairs of tokens, by row, that a softmax
/// branch of the plan takes exactly; padding among the keys never is.
at::Tensor exact_pairs(const AttentionPlan& plan, const SoftmaxBranch& branch,
                       const AttentionCall& call);

}  // namespace fovea
