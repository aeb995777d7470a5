#include "core/attention/planners/xattention.h"

#include <algorithm>
#include <limits>
#include <vector>

#include <ATen/ATen.h>

#include "core/attention/block_pool.h"
#include "core/attention/device_constants.h"
#include "core/attention/select.h"
#include "core/ops/block_scores.h"

namespace fovea {
namespace {

// One side in pieces.
struct Pieces {
  at::Tensor rows;   // int64 [batch or 1, pieces, stride]: the row of each token, repeated where
                     // the piece is shorter
  at::Tensor count;  // [batch or 1, pieces]: tokens that are not padding
  std::vector<int64_t> first;  // piece of each block, and the number of pieces
  bool is_even = false;        // whether all have as many tokens, none of them padding
};

Pieces cut(const BlockAxis& blocks, const TokenOrder& order, const TokenLayout& layout,
           int64_t stride, at::Device device) {
  const std::vector<int64_t>& offsets = blocks.host_offsets();
  std::vector<int64_t> start, length;
  Pieces out;
  for (size_t i = 0; i + 1 < offsets.size(); ++i) {
    out.first.push_back(static_cast<int64_t>(start.size()));
    for (int64_t at = offsets[i]; at < offsets[i + 1]; at += stride) {
      start.push_back(at);
      length.push_back(std::min(stride, offsets[i + 1] - at));
    }
  }
  out.first.push_back(static_cast<int64_t>(start.size()));
  out.is_even = !layout.valid_mask().defined() && !length.empty() &&
                std::all_of(length.begin(), length.end(),
                            [&](int64_t tokens) { return tokens == length[0]; });
  const auto tensor = [&](const std::vector<int64_t>& values) {
    return device_numbers(values, device).view({1, -1, 1});
  };
  const at::Tensor begin = tensor(start), size = tensor(length);
  const at::Tensor phase = at::arange(stride, at::device(device).dtype(at::kLong)).view({1, 1, -1});
  const at::Tensor rows = order.rows(layout, device)[0][0];
  at::Tensor count = size;
  const at::Tensor valid = layout.valid_mask();
  if (valid.defined()) {
    const at::Tensor whole = rows.index_select(0, (begin + phase.remainder(size)).flatten());
    const at::Tensor seen = valid.to(device).squeeze(1).squeeze(1).index_select(1, whole);
    count =
        seen.view({-1, size.size(1), stride}).logical_and(phase.lt(size)).sum(2, /*keepdim=*/true);
  }
  // Padding comes last in a segment, so the tokens of a piece that count are its first ones.
  const at::Tensor position = begin + phase.remainder(count.clamp_min(1));
  out.rows = rows.index_select(0, position.flatten()).view(position.sizes());
  out.count = count.squeeze(2);
  return out;
}

// [batch, heads, pieces, stride · dim]; 0 for a piece of padding
at::Tensor tokens_of(const at::Tensor& x, const Pieces& pieces) {
  std::vector<at::Tensor> items;
  for (int64_t item = 0; item < x.size(0); ++item) {
    const at::Tensor rows = pieces.rows[pieces.rows.size(0) == 1 ? 0 : item];
    items.push_back(x[item]
                        .index_select(1, rows.flatten())
                        .unflatten(1, {rows.size(0), rows.size(1)})
                        .flatten(2));
  }
  const at::Tensor all = items.size() == 1 ? items[0].unsqueeze(0) : at::stack(items);
  if (pieces.is_even) return all;
  return all.masked_fill(pieces.count.eq(0).unsqueeze(1).unsqueeze(3), 0);
}

// A tensor [batch, heads, .., pieces, ..] added up over the pieces of each block, in one order on
// every device: consecutive blocks of as many pieces at a time.
at::Tensor sum_blocks(const at::Tensor& x, const Pieces& pieces, int64_t axis) {
  const std::vector<int64_t>& first = pieces.first;
  std::vector<at::Tensor> parts;
  for (size_t begin = 0; begin + 1 < first.size();) {
    const int64_t size = first[begin + 1] - first[begin];
    size_t end = begin + 1;
    while (end + 1 < first.size() && first[end + 1] - first[end] == size) ++end;
    const auto blocks = static_cast<int64_t>(end - begin);
    parts.push_back(
        x.slice(axis, first[begin], first[end]).unflatten(axis, {blocks, size}).sum(axis + 1));
    begin = end;
  }
  return parts.size() == 1 ? parts[0] : at::cat(parts, axis);
}

// [batch, heads, q blocks, kv blocks]: per pair of blocks the sum of the softmax between pieces, up
// to one factor for all.
at::Tensor shares_between(const AttentionCall& call, Pieces q, const Pieces& k, double scale) {
  q.rows = q.rows.flip(2);  // antidiagonals
  if (ops::has_block_shares(call.q)) {
    const auto groups = [&](const Pieces& pieces, int64_t item) -> ops::TokenGroups {
      const int64_t own = pieces.rows.size(0) == 1 ? 0 : item;
      return {pieces.rows[own].t(), device_numbers(pieces.first, call.q.device()),
              pieces.count[own]};
    };
    std::vector<at::Tensor> items;
    for (int64_t item = 0; item < call.q.size(0); ++item) {
      items.push_back(ops::block_shares(call.q[item], groups(q, item), call.k[item],
                                        groups(k, item), scale, ops::Shares::sum));
    }
    return at::stack(items);
  }
  at::Tensor scores =
      ops::wide_product(tokens_of(call.q, q),
                        per_head(tokens_of(call.k, k), call.q.size(1)).transpose(2, 3)) *
      scale;
  if (!k.is_even) {
    // ln 0 = -inf keeps pieces of padding out.
    scores = scores + k.count.to(scores.scalar_type()).log().unsqueeze(1).unsqueeze(2);
  }
  // Rows that see nothing are NaN.
  at::Tensor shares = k.is_even ? at::softmax(scores, -1) : shares_of(scores);
  if (!q.is_even) {
    shares = shares * q.count.to(scores.scalar_type()).unsqueeze(1).unsqueeze(3);
  }
  return sum_blocks(sum_blocks(shares, k, 3), q, 2);
}

}  // namespace

XAttentionPlanner::XAttentionPlanner(Config& options)
    : top_p_(options.number("top_p", 0.9)),
      stride_(options.integer("stride", 8, 1, 64)),
      sink_(options.boolean("sink", false)),
      blocks_(BlockSizes::read(options, 128, 128)) {
  if (!(top_p_ >= 0 && top_p_ <= 1)) options.refuse("top_p", "expected a share up to 1");
}

AttentionPlan XAttentionPlanner::plan(const AttentionCall& call) {
  AttentionPlan plan = AttentionPlan::dense(name());
  Selection& selection = blocks_.cut(plan, call);
  const at::Device device = call.q.device();
  const Pieces q = cut(selection.q_blocks, plan.q_order, call.q_layout, stride_, device);
  const Pieces k = cut(selection.kv_blocks, plan.kv_order, call.kv_layout, stride_, device);
  at::Tensor share = shares_between(call, q, k, sm_scale_of(call) / static_cast<double>(stride_));
  share = share / share.sum(3, /*keepdim=*/true).clamp_min(std::numeric_limits<float>::min());
  at::Tensor classes = keep_top_p(share, top_p_, Crossing::kept, 1).to(at::kByte);
  if (sink_) classes.slice(3, 0, 1).fill_(block_class::exact);
  set_classes(selection, classes, call);
  return plan;
}

}  // namespace fovea
