#include "core/attention/planners/saved.h"

#include <algorithm>

#include "core/attention/planners/grid.h"
#include "core/check.h"

namespace fovea {
namespace {

std::string folder_of(Config& options) {
  const std::string file = options.text("file", "");
  if (file.empty()) options.refuse("file", "expected a folder of saved plans");
  return file;
}

}  // namespace

SavedPlanner::SavedPlanner(Config& options)
    : file_(folder_of(options)), store_(PlanStore::open(file_, options.text("model", ""))) {
  if (!options.boolean("replan", false)) return;
  const PlanRecipe& recipe = store_.recipe();
  require(recipe.planner != name(), ErrorCode::bad_data, file_, "the recipe is to read a recipe");
  replan_ = make_planner(recipe.planner, recipe.options);
}

bool SavedPlanner::plans(AttentionRole role) const {
  const auto& entries = store_.entries();
  const bool has_plans = std::any_of(entries.begin(), entries.end(),
                                     [&](const auto& entry) { return entry.first.role == role; });
  return has_plans || (replan_ && replan_->plans(role));
}

std::vector<std::string> SavedPlanner::param_names() const {
  return replan_ ? replan_->param_names() : std::vector<std::string>();
}

std::optional<size_t> SavedPlanner::find(const AttentionCall& call, std::string& reason) const {
  const int64_t bucket = step_bucket(call.context, store_.buckets());
  const auto number = store_.find({call.layer, call.role, call.context.guidance_branch, bucket});
  if (!number) {
    reason = fovea::str("no plan for step ", call.context.step, " of layer ", call.layer);
    return std::nullopt;
  }
  const auto other_shape = store_.why_not(*number, call);
  if (!other_shape) return number;
  reason = *other_shape;
  return std::nullopt;
}

std::string SavedPlanner::cache_key(const AttentionCall& call) const {
  std::string reason;
  const auto number = find(call, reason);
  if (!number) return replan_ ? replan_->cache_key(call) : "";
  // A plan of a single step is not needed again; kept, it would only fill the memory.
  if (!store_.is_shared(*number)) return "";
  return fovea::str("saved ", *number, "; ", layouts_key(call));
}

AttentionPlan SavedPlanner::plan(const AttentionCall& call) {
  std::string reason;
  if (const auto number = find(call, reason)) return store_.read(*number, call);
  require(replan_ != nullptr, ErrorCode::usage, file_, reason, "; replan=true plans anew with '",
          store_.recipe().planner, "'");
  return replan_->plan(call);
}

}  // namespace fovea
