#include "core/attention/planners/topk.h"

#include <cmath>
#include <limits>

#include <ATen/ATen.h>

#include "core/attention/block_pool.h"
#include "core/attention/planners/grid.h"
#include "core/attention/select.h"

namespace fovea {
namespace {

// Mean products of blocks [batch, heads, q blocks, kv blocks]; blocks of nothing but padding get
// -inf.
at::Tensor block_scores(const AttentionCall& call, const AttentionPlan& plan,
                        const Selection& selection) {
  const PooledTokens q = pool_blocks(call.q, selection.q_blocks, plan.q_order, call.q_layout);
  const PooledTokens k = pool_blocks(call.k, selection.kv_blocks, plan.kv_order, call.kv_layout);
  const at::Tensor all = k.count.sum(2, /*keepdim=*/true).clamp_min(1).unsqueeze(3);
  const at::Tensor centre = (k.mean * k.count.unsqueeze(3)).sum(2, /*keepdim=*/true) / all;
  const int64_t group = call.q.size(1) / call.k.size(1);
  const at::Tensor keys = (k.mean - centre).repeat_interleave(group, 1);
  const at::Tensor empty = k.count.eq(0).repeat_interleave(group, 1).unsqueeze(2);
  const double scale = call.sm_scale.value_or(1 / std::sqrt(static_cast<double>(call.q.size(3))));
  return at::matmul(q.mean, keys.transpose(2, 3))
      .mul(scale)
      .masked_fill(empty, -std::numeric_limits<double>::infinity());
}

}  // namespace

TopKPlanner::TopKPlanner(Config& options)
    : density_(options.number("density", 0.25)),
      top_p_(options.number("top_p", 0)),
      block_q_(options.integer("block_q", 128, 16, 1024)),
      block_kv_(options.integer("block_kv", 128, 16, 1024)) {
  if (!(density_ > 0 && density_ <= 1)) options.refuse("density", "expected a share up to 1");
  if (!(top_p_ >= 0 && top_p_ <= 1)) options.refuse("top_p", "expected a share up to 1");
  if (options.has("tile")) tile_ = three(options, "tile", {4, 8, 8});
}

AttentionPlan TopKPlanner::plan(const AttentionCall& call) {
  AttentionPlan plan = AttentionPlan::dense(name());
  Selection& selection = std::get<SoftmaxBranch>(plan.branches[0].kind).selection;
  if (tile_) {
    plan.q_order = plan.kv_order = TokenOrder::tiles(*tile_);
    selection.q_blocks = BlockAxis::tiles(call.q_layout, *tile_);
    selection.kv_blocks = BlockAxis::tiles(call.kv_layout, *tile_);
  } else {
    selection.q_blocks = BlockAxis::uniform(call.q_layout, block_q_);
    selection.kv_blocks = BlockAxis::uniform(call.kv_layout, block_kv_);
  }
  const at::Tensor scores = block_scores(call, plan, selection);
  const at::Tensor kept = top_p_ > 0 ? keep_top_p(at::softmax(scores, 3), top_p_, Crossing::kept, 1)
                                     : keep_top_k(scores, kept_blocks(density_, scores.size(3)));
  set_classes(selection, kept.to(at::kByte), call);
  return plan;
}

}  // namespace fovea
