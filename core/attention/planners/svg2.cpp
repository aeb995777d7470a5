#include "core/attention/planners/svg2.h"

#include <algorithm>

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include "core/attention/block_pool.h"
#include "core/attention/device_constants.h"
#include "core/attention/planners/blocks.h"
#include "core/attention/select.h"

namespace fovea {
namespace {

constexpr int64_t kTokensPerCluster[] = {256, 76};

}  // namespace

Svg2Planner::Svg2Planner(Config& options)
    : top_p_(options.number("top_p", 0.9)),
      min_kept_(options.number("min_kept", 0.1)),
      clusters_{options.integer("q_clusters", 0, 0, 1 << 20),
                options.integer("kv_clusters", 0, 0, 1 << 20)},
      iterations_(options.integer("iterations", 50, 1, 1000)),
      later_iterations_(options.integer("later_iterations", 2, 1, 1000)) {
  if (!(top_p_ >= 0 && top_p_ <= 1)) options.refuse("top_p", "expected a share up to 1");
  if (!(min_kept_ >= 0 && min_kept_ <= 1)) options.refuse("min_kept", "expected a share up to 1");
}

// centroids: those of the step before, or undefined; becomes those of this one.
Clusters Svg2Planner::cluster(const at::Tensor& x, const at::Tensor& valid_len, int64_t stream,
                              Which which, at::Tensor& centroids) const {
  const int64_t wanted = clusters_[static_cast<size_t>(which)];
  const int64_t per = kTokensPerCluster[static_cast<size_t>(which)];
  const int64_t tokens = x.size(2);
  const int64_t count = std::min(wanted > 0 ? wanted : (tokens + per - 1) / per, tokens);
  const std::vector<int64_t> shape = {x.size(0), x.size(1), count, x.size(3)};
  const bool is_warm = centroids.defined() && centroids.sizes() == at::IntArrayRef(shape) &&
                       centroids.device() == x.device();
  if (!is_warm) centroids = first_centroids(x, count, stream, valid_len);
  const Clusters out = k_means(x, centroids, is_warm ? later_iterations_ : iterations_, valid_len);
  centroids = out.centroid;
  return out;
}

Svg2Planner::Sorted Svg2Planner::sorted(const AttentionCall& call, Which which) {
  const bool queries = which == Which::queries;
  const at::Tensor& x = queries ? call.q : call.k;
  const TokenLayout& layout = queries ? call.q_layout : call.kv_layout;
  Kept& kept = kept_[{call.role, call.layer, call.context.guidance_branch, which}];
  if (call.context.step > kept.step) kept.before = kept.after;
  if (call.context.step < kept.step) kept.before.clear();
  kept.step = call.context.step;
  const auto options = at::device(x.device()).dtype(at::kLong);
  const int64_t batch = x.size(0), heads = x.size(1);
  std::vector<at::Tensor> rows, sizes = {at::zeros({batch, heads, 1}, options)};
  std::vector<at::Tensor> centroids, counts;
  int64_t first = 0, blocks = 0, largest = 0;
  Sorted out;
  for (size_t number = 0; number < layout.segments().size(); ++number) {
    const Segment& segment = layout.segments()[number];
    const int64_t tokens = segment.capacity;
    largest = std::max(largest, tokens);
    if (segment.kind != Segment::Kind::grid) {
      rows.push_back(at::arange(first, first + tokens, options).expand({batch, heads, tokens}));
      sizes.push_back(at::full({batch, heads, 1}, tokens, options));
      ++blocks;
    } else {
      const size_t grid = centroids.size();
      // Layers, sides and grids draw other tokens.
      const int64_t side = (call.context.seed * 1021 + call.layer) * 2 + (queries ? 0 : 1);
      kept.after.resize(std::max(kept.after.size(), grid + 1));
      kept.after[grid] = grid < kept.before.size() ? kept.before[grid] : at::Tensor();
      const Clusters clusters =
          cluster(x.slice(2, first, first + tokens), layout.valid_len()[number],
                  side * 16 + static_cast<int64_t>(grid), which, kept.after[grid]);
      rows.push_back(first + clusters.order);
      sizes.push_back(clusters.count);
      centroids.push_back(clusters.centroid);
      counts.push_back(clusters.valid);
      for (int64_t i = 0; i < clusters.count.size(2); ++i) out.cluster_blocks.push_back(blocks++);
    }
    first += tokens;
  }
  out.order = TokenOrder::index(at::cat(rows, 2));
  out.blocks = BlockAxis::from_offsets(at::cat(sizes, 2).cumsum(2), largest);
  if (centroids.empty()) return out;
  out.centroid = at::cat(centroids, 2);
  out.valid = at::cat(counts, 2);
  return out;
}

AttentionPlan Svg2Planner::plan(const AttentionCall& call) {
  const c10::NoGradGuard no_grad;  // what is kept between steps must not keep graphs
  AttentionPlan plan = AttentionPlan::dense(name());
  const Sorted q = sorted(call, Which::queries), k = sorted(call, Which::keys);
  if (!q.centroid.defined() || !k.centroid.defined()) return plan;
  Selection& selection = std::get<SoftmaxBranch>(plan.branches[0].kind).selection;
  plan.q_order = q.order;
  plan.kv_order = k.order;
  selection.q_blocks = q.blocks;
  selection.kv_blocks = k.blocks;
  const at::Tensor logits =
      at::matmul(q.centroid, per_head(k.centroid, call.q.size(1)).transpose(2, 3)) *
      sm_scale_of(call);
  // ln 0 = -inf: an empty cluster weighs nothing.
  const at::Tensor weights =
      per_head(k.valid, call.q.size(1)).to(logits.scalar_type()).log().unsqueeze(2);
  const auto clusters = static_cast<double>(k.cluster_blocks.size());
  const auto least = std::max<int64_t>(1, static_cast<int64_t>(min_kept_ * clusters + 1e-9));
  const at::Tensor kept =
      keep_top_p(shares_of(logits + weights), top_p_, Crossing::kept, least).to(at::kByte);
  const auto index = [&](const std::vector<int64_t>& numbers) {
    return device_numbers(numbers, call.q.device());
  };
  const int64_t batch = call.q.size(0), heads = call.q.size(1);
  const int64_t nq = q.blocks.num_blocks(), nk = k.blocks.num_blocks();
  at::Tensor rows = at::ones({batch, heads, kept.size(2), nk}, kept.options());
  rows.index_copy_(3, index(k.cluster_blocks), kept);
  selection.classes = at::ones({batch, heads, nq, nk}, kept.options())
                          .index_copy_(2, index(q.cluster_blocks), rows);
  return plan;
}

}  // namespace fovea
