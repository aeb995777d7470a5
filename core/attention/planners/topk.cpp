#include "core/attention/planners/topk.h"

#include <ATen/ATen.h>

#include "core/attention/select.h"

namespace fovea {

TopKPlanner::TopKPlanner(Config& options)
    : density_(options.number("density", 0.25)),
      top_p_(options.number("top_p", 0)),
      blocks_(BlockSizes::read(options, 128, 128)) {
  if (!(density_ > 0 && density_ <= 1)) options.refuse("density", "expected a share up to 1");
  if (!(top_p_ >= 0 && top_p_ <= 1)) options.refuse("top_p", "expected a share up to 1");
}

AttentionPlan TopKPlanner::plan(const AttentionCall& call) {
  AttentionPlan plan = AttentionPlan::dense(name());
  Selection& selection = blocks_.cut(plan, call);
  const at::Tensor kept = top_p_ > 0 ? keep_top_p(shares_of(mean_scores(call, plan, selection)),
                                                  top_p_, Crossing::kept, 1)
                                     : keep_highest_means(call, plan, selection, density_);
  set_classes(selection, kept.view(at::kByte), call);
  return plan;
}

}  // namespace fovea
