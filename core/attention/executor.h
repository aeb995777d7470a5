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

/// A plan as an executor wants it: its lists, its orders. Another executor cannot read it.
struct LoweredPlan {
  virtual ~LoweredPlan() = default;
};

/// Computes plans on a family of devices.
class Executor {
 public:
  virtual ~Executor() = default;
  virtual std::string name() const = 0;
  /// Why this executor cannot run the plan, or nothing when it can.
  virtual std::optional<std::string> why_not(const AttentionPlan& plan,
                                             const AttentionCall& call) const = 0;
  /// What of a plan can be made ready once for all calls that share it: with these layouts, heads
  /// and batch. Null where there is nothing to make.
  virtual std::shared_ptr<const LoweredPlan> lower(const AttentionPlan&,
                                                   const AttentionCall&) const {
    return nullptr;
  }
  /// The plan has been validated, and `why_not` had no reason; `lowered` is what `lower` gave for
  /// it, or null: then it is made for this call.
  virtual AttentionResult run(const AttentionPlan& plan, const AttentionCall& call,
                              const LoweredPlan* lowered) = 0;
};

/// The first of `executors` that can run the plan, or the one of that name if it can.
///
/// name    "auto" for any, "checked" for the same one, checked (see `CheckedExecutor`)
/// throws  Error device with the reasons when none can, usage for a name that is not there
Executor& pick_executor(const std::vector<std::unique_ptr<Executor>>& executors,
                        const AttentionPlan& plan, const AttentionCall& call,
                        const std::string& name = "auto");

/// throws  Error usage for a name that `pick_executor` does not know
void check_executor_name(const std::vector<std::unique_ptr<Executor>>& executors,
                         const std::string& name);

/// All executors in order of preference, the first without a `why_not` runs; behind them the same
/// ones, checked.
std::vector<std::unique_ptr<Executor>> make_executors();

}  // namespace fovea
