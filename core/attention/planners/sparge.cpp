#include "core/attention/planners/sparge.h"

#include <limits>

#include <ATen/ATen.h>

#include "core/attention/block_pool.h"
#include "core/attention/class_sets.h"
#include "core/attention/select.h"
#include "core/ops/widened.h"

namespace fovea {
namespace {

// bool [batch, heads, blocks]: the mean cosine of all pairs of tokens, which is the square of the
// mean of their directions, is above the threshold.
at::Tensor alike(const at::Tensor& x, const BlockAxis& blocks, const TokenOrder& order,
                 const TokenLayout& layout, double threshold) {
  const at::Tensor wide = ops::widened(x);
  const at::Tensor length = wide.norm(2, {3}, /*keepdim=*/true).clamp_min(1e-12);
  return pool_blocks(wide / length, blocks, order, layout).mean.square().sum(3).gt(threshold);
}

}  // namespace

SpargePlanner::SpargePlanner(Config& options)
    : similarity_(options.number("similarity", 0.6)),
      top_p_(options.number("top_p", 0.98)),
      density_(options.number("density", 0)),
      sink_(options.boolean("sink", false)),
      blocks_(BlockSizes::read(options, 128, 64)) {
  if (!(similarity_ >= -1 && similarity_ <= 1)) {
    options.refuse("similarity", "expected a cosine");
  }
  if (!(top_p_ >= 0 && top_p_ <= 1)) options.refuse("top_p", "expected a share up to 1");
  if (!(density_ >= 0 && density_ <= 1)) options.refuse("density", "expected a share up to 1");
}

AttentionPlan SpargePlanner::plan(const AttentionCall& call) {
  AttentionPlan plan = AttentionPlan::dense(name());
  Selection& selection = blocks_.cut(plan, call);
  const at::Tensor q_alike =
      alike(call.q, selection.q_blocks, plan.q_order, call.q_layout, similarity_).unsqueeze(3);
  const at::Tensor k_alike = per_head(alike(centred_keys(call), selection.kv_blocks, plan.kv_order,
                                            call.kv_layout, similarity_),
                                      call.q.size(1))
                                 .unsqueeze(2);
  const at::Tensor scores =
      mean_scores(call, plan, selection)
          .masked_fill(k_alike.logical_not(), -std::numeric_limits<double>::infinity());
  const at::Tensor kept = density_ > 0
                              ? keep_top_k(scores, kept_blocks(density_, scores.size(3)))
                              : keep_top_p(shares_of(scores), top_p_, Crossing::excluded, 1);
  // A block whose mean tells nothing is looked at, by all and at all.
  const at::Tensor unlike = unite(complement(q_alike), complement(k_alike));
  at::Tensor classes = unite(kept.to(at::kByte), unlike);
  if (sink_) classes.slice(3, 0, 1).fill_(block_class::exact);
  set_classes(selection, classes, call);
  return plan;
}

}  // namespace fovea
