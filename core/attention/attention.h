#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/attention/executor.h"
#include "core/attention/planner.h"

namespace fovea {

/// Sees each call with its plan and what came out of it, see `AttentionProbe`.
using AttentionObserver =
    std::function<void(const AttentionCall&, const AttentionPlan&, const AttentionResult&)>;

/// The attention that every network calls: asks the planner, picks the executor, runs.
///
/// One object serves a whole run, so that what a planner remembers between steps belongs to the
/// run. Not thread-safe.
class Attention {
 public:
  /// options   of the planner, see `make_planner`
  /// executor  of all calls, see `pick_executor`
  /// throws    Error usage for an unknown planner, option or executor
  explicit Attention(const std::string& planner = "dense", const Json& options = Json::object(),
                     std::string executor = "auto");

  /// returns  [batch, num_heads, q_len, value_dim]; rows without a valid key are 0
  /// throws   Error internal when shapes and layouts disagree, usage when the planner's options do
  ///          not fit the layout, device when no executor accepts, non_finite when a checked one
  ///          finds a wrong result
  at::Tensor run(const AttentionCall& call);

  void set_observer(AttentionObserver observer) { observer_ = std::move(observer); }

  /// Calls so far per "role: planner on executor", for the report.
  const std::map<std::string, int64_t>& counts() const { return counts_; }

 private:
  // A plan, and what the executor that runs it made of it.
  struct Planned {
    AttentionPlan plan;
    std::shared_ptr<const LoweredPlan> lowered;
    const Executor* lowered_by = nullptr;
    bool is_kept = false;
  };
  Planned& plan_of(const AttentionCall& call);

  std::unique_ptr<Planner> planner_;
  std::string executor_;
  std::map<std::string, Planned> plans_;  // by cache key
  Planned last_;                          // of a call without one
  std::vector<std::unique_ptr<Executor>> executors_;
  std::map<std::string, int64_t> counts_;
  AttentionObserver observer_;
};

}  // namespace fovea
