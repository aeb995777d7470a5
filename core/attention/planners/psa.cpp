#include "core/attention/planners/psa.h"

#include <algorithm>
#include <limits>

#include <ATen/ATen.h>

#include "core/attention/block_pool.h"
#include "core/attention/class_sets.h"
#include "core/attention/device_constants.h"
#include "core/attention/planners/sampling.h"
#include "core/attention/select.h"
#include "core/ops/block_scores.h"

namespace fovea {
namespace {

constexpr int64_t kRun = 4;              // tokens of which one is sampled
constexpr int64_t kMaxLogits = 1 << 26;  // at once, of a GPU's memory
constexpr double kInfinity = std::numeric_limits<double>::infinity();

// One token of each run of a side.
struct Sample {
  at::Tensor rows;                 // int64 [batch or 1, runs]
  at::Tensor valid;                // bool [batch or 1, runs], or undefined
  std::vector<int64_t> first_run;  // of each block, and the number of runs
};

Sample sample(const BlockAxis& blocks, const TokenOrder& order, const TokenLayout& layout,
              int64_t seed, at::Device device) {
  const std::vector<int64_t>& offsets = blocks.host_offsets();
  std::vector<int64_t> first, length;
  Sample out;
  for (size_t i = 0; i + 1 < offsets.size(); ++i) {
    out.first_run.push_back(static_cast<int64_t>(first.size()));
    for (int64_t at = offsets[i]; at < offsets[i + 1]; at += kRun) {
      first.push_back(at);
      length.push_back(std::min(kRun, offsets[i + 1] - at));
    }
  }
  out.first_run.push_back(static_cast<int64_t>(first.size()));
  const at::Tensor start = device_numbers(first, device).unsqueeze(0);
  const at::Tensor rows = order.rows(layout, device)[0][0];
  at::Tensor bound = device_numbers(length, device).unsqueeze(0);
  const at::Tensor mask = layout.valid_mask();
  if (mask.defined()) {
    // Padding comes last in a segment, so the tokens of a run that count are its first ones.
    const at::Tensor seen =
        mask.to(device).squeeze(1).squeeze(1).index_select(1, rows).to(at::kLong).cumsum(1);
    const at::Tensor upto = at::cat({at::zeros_like(seen.slice(1, 0, 1)), seen}, 1);
    bound = upto.index_select(1, (start + bound)[0]) - upto.index_select(1, start[0]);
    out.valid = bound.gt(0);
  }
  const at::Tensor position =
      start + random_below(start.expand_as(bound), seed, bound.clamp_min(1));
  out.rows = rows.index_select(0, position.flatten()).view(position.sizes());
  return out;
}

at::Tensor of_item(const at::Tensor& x, int64_t item) { return x[x.size(0) == 1 ? 0 : item]; }

// [batch, heads, runs, dim]
at::Tensor tokens_of(const at::Tensor& x, const Sample& sample) {
  std::vector<at::Tensor> items;
  for (int64_t item = 0; item < x.size(0); ++item) {
    items.push_back(x[item].index_select(1, of_item(sample.rows, item)));
  }
  const at::Tensor tokens = items.size() == 1 ? items[0].unsqueeze(0) : at::stack(items);
  if (!sample.valid.defined()) return tokens;
  return tokens.masked_fill(sample.valid.logical_not().unsqueeze(1).unsqueeze(3), 0);
}

// The largest entry of each block of runs along an axis.
at::Tensor block_max(const at::Tensor& x, const std::vector<int64_t>& first_run, int64_t axis) {
  int64_t longest = 1;
  for (size_t i = 0; i + 1 < first_run.size(); ++i) {
    longest = std::max(longest, first_run[i + 1] - first_run[i]);
  }
  std::vector<int64_t> run;  // a shorter block repeats its last one
  for (size_t i = 0; i + 1 < first_run.size(); ++i) {
    for (int64_t at = 0; at < longest; ++at) {
      run.push_back(std::min(first_run[i] + at, first_run[i + 1] - 1));
    }
  }
  const bool is_whole = static_cast<int64_t>(run.size()) == first_run.back();
  const at::Tensor padded = is_whole ? x : x.index_select(axis, device_numbers(run, x.device()));
  return padded.unflatten(axis, {-1, longest}).amax(axis + 1);
}

// [batch, heads, q blocks, kv blocks], a few blocks of queries after the others.
at::Tensor largest_shares(const Sample& q, const Sample& k, const AttentionCall& call) {
  const at::Tensor queries = tokens_of(call.q, q);
  const at::Tensor keys = per_head(tokens_of(call.k, k), call.q.size(1)).transpose(2, 3);
  const int64_t row = queries.size(0) * queries.size(1) * std::max<int64_t>(keys.size(3), 1);
  std::vector<at::Tensor> parts;
  for (size_t begin = 0; begin + 1 < q.first_run.size();) {
    size_t end = begin + 1;
    while (end + 1 < q.first_run.size() &&
           (q.first_run[end + 1] - q.first_run[begin]) * row <= kMaxLogits) {
      ++end;
    }
    const int64_t first = q.first_run[begin], last = q.first_run[end];
    at::Tensor logits = ops::wide_product(queries.slice(2, first, last), keys) * sm_scale_of(call);
    if (k.valid.defined()) {
      logits = logits.masked_fill(k.valid.logical_not().unsqueeze(1).unsqueeze(2), -kInfinity);
    }
    // Rows that see nothing are NaN.
    at::Tensor shares = k.valid.defined() ? shares_of(logits) : at::softmax(logits, -1);
    if (q.valid.defined()) {
      shares = shares * q.valid.slice(1, first, last).unsqueeze(1).unsqueeze(3);
    }
    std::vector<int64_t> own(q.first_run.begin() + static_cast<int64_t>(begin),
                             q.first_run.begin() + static_cast<int64_t>(end) + 1);
    for (int64_t& run : own) run -= first;
    parts.push_back(block_max(block_max(shares, own, 2), k.first_run, 3));
    begin = end;
  }
  return at::cat(parts, 2);
}

// [batch, heads, q blocks, kv blocks], rows with sum 1
at::Tensor importance(const Sample& q, const Sample& k, const AttentionCall& call) {
  at::Tensor largest;
  if (ops::has_block_shares(call.q)) {
    const auto groups = [&](const Sample& sample, int64_t item) -> ops::TokenGroups {
      return {of_item(sample.rows, item).unsqueeze(0),
              device_numbers(sample.first_run, call.q.device()),
              sample.valid.defined() ? of_item(sample.valid, item) : at::Tensor()};
    };
    std::vector<at::Tensor> items;
    for (int64_t item = 0; item < call.q.size(0); ++item) {
      items.push_back(ops::block_shares(call.q[item], groups(q, item), call.k[item],
                                        groups(k, item), sm_scale_of(call), ops::Shares::largest));
    }
    largest = at::stack(items);
  } else {
    largest = largest_shares(q, k, call);
  }
  return largest / largest.sum(3, /*keepdim=*/true).clamp_min(std::numeric_limits<float>::min());
}

}  // namespace

PsaPlanner::PsaPlanner(Config& options)
    : thresholds_(options.numbers("thresholds", {0.4, 0.5, 0.6, 0.8})),
      shares_(options.numbers("shares", {})),
      min_exact_(options.number("min_exact", 0.06)),
      blocks_(BlockSizes::read(options, 128, 128)) {
  const auto is_share = [](double x) { return x >= 0 && x <= 1; };
  if (thresholds_.empty() || thresholds_.size() > 5 ||
      !std::all_of(thresholds_.begin(), thresholds_.end(), is_share) ||
      !std::is_sorted(thresholds_.begin(), thresholds_.end())) {
    options.refuse("thresholds", "expected one to five ascending shares up to 1");
  }
  if (shares_.size() > 5 || !std::all_of(shares_.begin(), shares_.end(), is_share)) {
    options.refuse("shares", "expected up to five shares up to 1");
  }
  if (!is_share(min_exact_)) options.refuse("min_exact", "expected a share up to 1");
}

at::Tensor PsaPlanner::levels(const at::Tensor& importance) const {
  const int64_t blocks = importance.size(3);
  const int64_t exact = kept_blocks(min_exact_, blocks);
  at::Tensor classes = at::zeros_like(importance, importance.options().dtype(at::kByte));
  const size_t count = shares_.empty() ? thresholds_.size() : shares_.size();
  double share = 0;
  for (size_t i = 0; i < count; ++i) share += shares_.empty() ? 0 : shares_[i];
  // Of a block's levels the finest one stays.
  for (size_t i = count; i-- > 0;) {
    at::Tensor kept;
    if (shares_.empty()) {
      kept = keep_top_p(importance, thresholds_[i], Crossing::excluded, i == 0 ? exact : 0);
    } else {
      const auto upto = static_cast<int64_t>(share * static_cast<double>(blocks) + 1e-9);
      kept = keep_top_k(importance, i == 0 ? std::max(upto, exact) : upto);
      share -= shares_[i];
    }
    classes = unite(classes, kept.to(at::kByte) * static_cast<int64_t>(block_class::exact + i));
  }
  return classes;
}

AttentionPlan PsaPlanner::plan(const AttentionCall& call) {
  AttentionPlan plan = AttentionPlan::dense(name());
  Selection& selection = blocks_.cut(plan, call);
  const int64_t seed = call.context.seed;
  const at::Device device = call.q.device();
  const Sample q = sample(selection.q_blocks, plan.q_order, call.q_layout, seed, device);
  const Sample k = sample(selection.kv_blocks, plan.kv_order, call.kv_layout, seed, device);
  set_classes(selection, levels(importance(q, k, call)), call);
  const size_t levels = shares_.empty() ? thresholds_.size() : shares_.size();
  for (size_t i = 1; i < levels; ++i) selection.summaries.push_back({.pool = int64_t{1} << i});
  return plan;
}

}  // namespace fovea
