#pragma once

#include <string>

#include "apps/torch_ops/boxed_ops.h"
#include "core/attention/functional.h"

namespace fovea::apps {

/// What an operator's arguments ask for.
struct AttentionProblem {
  AttentionPlan plan;
  AttentionCall call;
  std::string executor;
};

/// Each throws Error bad_data or usage for arguments that make no sense.
AttentionProblem block_attention_problem(const Arguments& arguments);
AttentionProblem neighborhood_problem(const Arguments& arguments);
AttentionProblem planned_problem(const Arguments& arguments);

/// The plan that a planner makes for the operators `plan` and `plan_text`, and its call.
AttentionProblem planner_problem(const Arguments& arguments);

}  // namespace fovea::apps
