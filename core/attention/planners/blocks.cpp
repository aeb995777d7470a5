#include "core/attention/planners/blocks.h"

#include <cmath>
#include <limits>

#include <ATen/ATen.h>

#include "core/attention/block_pool.h"
#include "core/attention/planners/grid.h"
#include "core/attention/select.h"

namespace fovea {
namespace {

// What kernels make scores of on a GPU, where they can.
std::optional<ops::MeansOfBlocks> means_on_gpu(const AttentionCall& call, const AttentionPlan& plan,
                                               const Selection& selection) {
  const bool fits = call.q.is_cuda() && call.q.scalar_type() == call.k.scalar_type() &&
                    has_sums_of_blocks(call.q, selection.q_blocks, plan.q_order, call.q_layout) &&
                    has_sums_of_blocks(call.k, selection.kv_blocks, plan.kv_order, call.kv_layout);
  if (!fits) return std::nullopt;
  const ops::SharedBlocks keys =
      shared_blocks(call.k, selection.kv_blocks, plan.kv_order, call.kv_layout);
  const std::vector<at::Tensor> means = ops::block_means(
      {shared_blocks(call.q, selection.q_blocks, plan.q_order, call.q_layout), keys});
  return ops::MeansOfBlocks{means[0], means[1], keys.offsets};
}

}  // namespace

BlockSizes BlockSizes::read(Config& options, int64_t q, int64_t kv) {
  BlockSizes out;
  out.q = options.integer("block_q", q, 16, 1024);
  out.kv = options.integer("block_kv", kv, 16, 1024);
  options.ignore({"tile"});  // or it would be known only where it is given
  if (options.has("tile")) out.tile = three(options, "tile", {4, 8, 8});
  return out;
}

Selection& BlockSizes::cut(AttentionPlan& plan, const AttentionCall& call) const {
  Selection& selection = std::get<SoftmaxBranch>(plan.branches[0].kind).selection;
  if (tile) {
    plan.q_order = plan.kv_order = TokenOrder::tiles(*tile);
    selection.q_blocks = BlockAxis::tiles(call.q_layout, *tile);
    selection.kv_blocks = BlockAxis::tiles(call.kv_layout, *tile);
  } else {
    selection.q_blocks = BlockAxis::uniform(call.q_layout, q);
    selection.kv_blocks = BlockAxis::uniform(call.kv_layout, kv);
  }
  return selection;
}

double sm_scale_of(const AttentionCall& call) {
  return call.sm_scale.value_or(1 / std::sqrt(static_cast<double>(call.q.size(3))));
}

at::Tensor mean_of_all(const PooledTokens& blocks) {
  if (blocks.share.defined()) return (blocks.mean * blocks.share).sum(2, /*keepdim=*/true);
  const at::Tensor all = blocks.count.sum(2, /*keepdim=*/true).clamp_min(1).unsqueeze(3);
  return (blocks.mean * blocks.count.unsqueeze(3)).sum(2, /*keepdim=*/true) / all;
}

at::Tensor mean_scores(const AttentionCall& call, const AttentionPlan& plan,
                       const Selection& selection) {
  if (const auto means = means_on_gpu(call, plan, selection)) {
    if (const auto scores = ops::mean_scores(*means, sm_scale_of(call))) return *scores;
  }
  return mean_scores(call, pool_blocks(call.q, selection.q_blocks, plan.q_order, call.q_layout),
                     pool_blocks(call.k, selection.kv_blocks, plan.kv_order, call.kv_layout));
}

at::Tensor keep_highest_means(const AttentionCall& call, const AttentionPlan& plan,
                              const Selection& selection, double density) {
  const int64_t count = kept_blocks(density, selection.kv_blocks.num_blocks());
  if (const auto means = means_on_gpu(call, plan, selection)) {
    const auto kept = ops::highest_mean_scores(*means, sm_scale_of(call), count);
    if (kept) return *kept;
  }
  return keep_top_k(mean_scores(call, plan, selection), count);
}

at::Tensor mean_scores(const AttentionCall& call, const PooledTokens& q, const PooledTokens& k) {
  const at::Tensor scores =
      at::matmul(q.mean, per_head(k.mean - mean_of_all(k), call.q.size(1)).transpose(2, 3))
          .mul(sm_scale_of(call));
  if (k.share.defined()) return scores;  // no block is empty
  const at::Tensor empty = per_head(k.count.eq(0), call.q.size(1)).unsqueeze(2);
  return scores.masked_fill(empty, -std::numeric_limits<double>::infinity());
}

at::Tensor shares_of(const at::Tensor& scores) { return at::softmax(scores, -1).nan_to_num(0); }

}  // namespace fovea
