#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "core/attention/executor.h"

namespace fovea {

/// Measures what the plans of a run compute and what they lose: the density of every call, and of
/// every seventh call that is not dense, on rows spread over it, error and recall against dense
/// attention of the same q, k and v. Of roles `self` and `joint`; the others count as nothing.
///
/// It takes time of its own, which `seconds()` says, so that it can be taken off a run's.
class AttentionProbe {
 public:
  /// An observer for `Attention`.
  void observe(const AttentionCall& call, const AttentionPlan& plan, const AttentionResult& result);

  /// Share of query-key products computed, mean over calls, dense ones included, see
  /// `plan_density`; nullopt without a call, or where a plan does not say it.
  std::optional<double> density() const;
  /// ‖out - dense‖ / ‖dense‖ over the rows, mean over the calls measured; nullopt without any.
  std::optional<double> error() const;
  /// Share of the dense softmax's mass on the keys that a plan takes one by one, neither pooled nor
  /// by linear attention, mean over rows; nullopt where no call says it (plans whose first group is
  /// not their only softmax, over the call's own keys).
  std::optional<double> recall() const;
  double seconds() const { return seconds_; }

 private:
  struct Mean {
    double sum = 0;
    int64_t count = 0;
    void add(double value) { sum += value, ++count; }
    std::optional<double> value() const;
  };
  void count_density(const AttentionCall& call, const AttentionPlan& plan);
  void measure(const AttentionCall& call, const AttentionPlan& plan, const AttentionResult& result);

  Mean density_, error_, recall_;
  bool unknown_density_ = false;
  int64_t sparse_calls_ = 0;
  double seconds_ = 0;
  std::map<std::string, double> by_predicate_;  // density of plans that only geometry decides
};

}  // namespace fovea
