#include "core/attention/planners/sparge.h"

#include <limits>

#include <ATen/ATen.h>

#include "core/attention/block_pool.h"
#include "core/attention/class_sets.h"
#include "core/attention/select.h"
#include "core/ops/widened.h"

namespace fovea {
namespace {

// One side in blocks.
struct Blocks {
  PooledTokens tokens;
  at::Tensor likeness;  // [batch, heads, blocks] the mean cosine of all pairs of tokens, which is
                        // the square of the mean of their directions
};

// centred  whether directions are those of tokens minus the mean of all
Blocks pool(const at::Tensor& x, const BlockAxis& axis, const TokenOrder& order,
            const TokenLayout& layout, bool centred) {
  Blocks out;
  if (has_sums_of_blocks(x, axis, order, layout)) {
    const ops::BlockPositions positions = positions_of_blocks(axis, order, layout, x.device());
    ops::BlockSums sums;
    if (centred) {
      out.tokens = pool_blocks(x, axis, order, layout);
      sums = ops::block_sums(x, positions, mean_of_all(out.tokens), ops::SumsOf::directions);
    } else {
      sums = ops::block_sums(x, positions, {}, ops::SumsOf::both);
      out.tokens = pooled_sums(sums.rows, axis);
    }
    const at::Tensor counted = out.tokens.count.clamp_min(1).unsqueeze(3);
    out.likeness = (sums.directions / counted).square().sum(3);
    return out;
  }
  out.tokens = pool_blocks(x, axis, order, layout);
  at::Tensor wide = ops::widened(x);
  if (centred) wide = wide - mean_of_all(out.tokens);
  const at::Tensor length = wide.norm(2, {3}, /*keepdim=*/true).clamp_min(1e-12);
  out.likeness = pool_blocks(wide / length, axis, order, layout).mean.square().sum(3);
  return out;
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
  const Blocks q = pool(call.q, selection.q_blocks, plan.q_order, call.q_layout, /*centred=*/false);
  const Blocks k =
      pool(call.k, selection.kv_blocks, plan.kv_order, call.kv_layout, /*centred=*/true);
  const at::Tensor q_alike = q.likeness.gt(similarity_).unsqueeze(3);
  const at::Tensor k_alike = per_head(k.likeness.gt(similarity_), call.q.size(1)).unsqueeze(2);
  const at::Tensor scores =
      mean_scores(call, q.tokens, k.tokens)
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
