#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/attention/call.h"
#include "core/attention/plan.h"

namespace fovea {

/// What an attention gives.
struct AttentionResult {
  at::Tensor out;  ///< [batch, num_heads, q_len, value_dim], dtype of q; rows without a key are 0
  /// [batch, num_heads, q_len], natural logarithm, of the plan's first group: fp32, or fp64 where q
  /// is; -inf for rows without a key. Undefined where the executor or the group has none.
  at::Tensor lse;
};

/// Computes plans on a family of devices.
class Executor {
 public:
  virtual ~Executor() = default;
  virtual std::string name() const = 0;
  /// Why this executor cannot run the plan, or nothing when it can.
  virtual std::optional<std::string> why_not(const AttentionPlan& plan,
                                             const AttentionCall& call) const = 0;
  /// The plan has been validated.
  virtual AttentionResult run(const AttentionPlan& plan, const AttentionCall& call) = 0;
};

/// All executors in order of preference; the first without a `why_not` runs.
std::vector<std::unique_ptr<Executor>> make_executors();

}  // namespace fovea
