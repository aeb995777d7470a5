#pragma once

#include <memory>
#include <string>
#include <vector>

#include "core/attention/call.h"
#include "core/attention/plan.h"

namespace fovea {

/// Decides which part of an attention is computed. One planner per paper, one file each.
class Planner {
 public:
  virtual ~Planner() = default;
  virtual std::string name() const = 0;
  /// Never touches the host: no device-to-host copy, no data-dependent size.
  virtual AttentionPlan plan(const AttentionCall& call) = 0;
};

/// Names of all planners, in the order of `planner_list.cpp`.
std::vector<std::string> planner_names();
/// throws Error usage for a name that is not on the list
std::unique_ptr<Planner> make_planner(const std::string& name);

}  // namespace fovea
