#include "core/attention/planners/neighborhood.h"

#include "core/attention/planners/grid.h"

namespace fovea {

NeighborhoodPlanner::NeighborhoodPlanner(Config& options) {
  const auto window = three(options, "window", {3, 7, 7});
  const auto stride = three(options, "stride", {1, 1, 1});
  const auto dilation = three(options, "dilation", {1, 1, 1});
  const std::vector<bool> causal = options.booleans("causal", {false, false, false});
  if (causal.size() != 3) options.refuse("causal", "expected three: frames, height, width");
  for (size_t axis = 0; axis < 3; ++axis) {
    axes_[axis] = {window[axis], stride[axis], dilation[axis], causal[axis]};
    if (stride[axis] > window[axis]) options.refuse("stride", "expected at most the window");
  }
}

std::string NeighborhoodPlanner::cache_key(const AttentionCall& call) const {
  return layouts_key(call);
}

AttentionPlan NeighborhoodPlanner::plan(const AttentionCall& call) {
  const GridPlace place = only_grid(call, name());
  WindowPredicate predicate{axes_};
  for (size_t axis = 0; axis < 3; ++axis) {
    AxisWindow& window = predicate.axes[axis];
    // A causal axis keeps its rule: its beginning is cut off, not moved.
    const bool is_whole = window.size >= place.grid[axis] && window.dilation == 1;
    if (is_whole && !window.causal) window = {};
    if (is_whole && window.causal) window = {.size = place.grid[axis], .causal = true};
  }
  AttentionPlan plan = AttentionPlan::dense(name());
  std::get<SoftmaxBranch>(plan.branches[0].kind).selection.predicates = {predicate};
  return plan;
}

}  // namespace fovea
