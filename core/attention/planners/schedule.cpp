#include "core/attention/planners/schedule.h"

#include "core/check.h"

namespace fovea {

DenseSchedule DenseSchedule::read(Config& options) {
  constexpr int64_t kMax = 1 << 20;
  return {options.integer("dense_steps", 0, 0, kMax), options.integer("dense_layers", 0, 0, kMax)};
}

bool SchedulePlanner::is_dense(const AttentionCall& call) const {
  return call.context.step < schedule_.steps || call.layer < schedule_.layers;
}

PlanRecipe SchedulePlanner::recipe(const Json& options) const {
  PlanRecipe out = planner_->recipe(options);
  if (schedule_.steps > 0) out.options["dense_steps"] = schedule_.steps;
  if (schedule_.layers > 0) out.options["dense_layers"] = schedule_.layers;
  return out;
}

std::string SchedulePlanner::cache_key(const AttentionCall& call) const {
  return is_dense(call) ? "dense" : planner_->cache_key(call);
}

AttentionPlan SchedulePlanner::plan(const AttentionCall& call) {
  return is_dense(call) ? AttentionPlan::dense("dense") : planner_->plan(call);
}

}  // namespace fovea
