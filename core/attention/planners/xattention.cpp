#include "core/attention/planners/xattention.h"

#include <algorithm>
#include <limits>
#include <vector>

#include <ATen/ATen.h>

#include "core/attention/block_pool.h"
#include "core/attention/select.h"
#include "core/ops/widened.h"

namespace fovea {
namespace {

// The tokens of one side in pieces.
struct Pieces {
  at::Tensor tokens;  // [batch, heads, pieces, stride, dim], wide; 0 for a piece of padding
  at::Tensor count;   // [batch or 1, 1, pieces]: tokens that are not padding
  at::Tensor block;   // int64 [pieces]: the block that each is in
};

Pieces cut(const at::Tensor& x, const BlockAxis& blocks, const TokenOrder& order,
           const TokenLayout& layout, int64_t stride) {
  const std::vector<int64_t>& offsets = blocks.host_offsets();
  std::vector<int64_t> first, length, block;
  for (size_t i = 0; i + 1 < offsets.size(); ++i) {
    for (int64_t at = offsets[i]; at < offsets[i + 1]; at += stride) {
      first.push_back(at);
      length.push_back(std::min(stride, offsets[i + 1] - at));
      block.push_back(static_cast<int64_t>(i));
    }
  }
  const at::Device device = x.device();
  const auto tensor = [&](const std::vector<int64_t>& values) {
    return at::tensor(values, at::kLong).to(device);
  };
  const at::Tensor start = tensor(first).view({1, -1, 1}), size = tensor(length).view({1, -1, 1});
  const at::Tensor phase = at::arange(stride, at::device(device).dtype(at::kLong)).view({1, 1, -1});
  const at::Tensor rows = order.rows(layout, device)[0][0];
  const auto pieces = static_cast<int64_t>(first.size());
  at::Tensor count = size;
  const at::Tensor valid = layout.valid_mask();
  if (valid.defined()) {
    const at::Tensor whole = (start + phase.remainder(size)).flatten();
    const at::Tensor seen =
        valid.squeeze(1).squeeze(1).index_select(1, rows.index_select(0, whole));
    count = seen.view({-1, pieces, stride}).logical_and(phase.lt(size)).sum(2, /*keepdim=*/true);
  }
  Pieces out;
  out.count = count.squeeze(2).unsqueeze(1);
  out.block = tensor(block);
  const bool is_whole =
      std::all_of(length.begin(), length.end(), [&](int64_t tokens) { return tokens == stride; });
  if (is_whole && order.is_identity() && !valid.defined()) {
    out.tokens = ops::widened(x).unflatten(2, {pieces, stride});
    return out;
  }
  // Padding comes last in a segment, so the tokens of a piece that count are its first ones.
  const at::Tensor position = start + phase.remainder(count.clamp_min(1));  // [batch or 1, ..]
  std::vector<at::Tensor> items;
  for (int64_t item = 0; item < x.size(0); ++item) {
    const at::Tensor at = position[position.size(0) == 1 ? 0 : item].flatten();
    items.push_back(x[item].index_select(1, rows.index_select(0, at)));
  }
  out.tokens = ops::widened(at::stack(items)).unflatten(2, {pieces, stride});
  out.tokens = out.tokens.masked_fill(out.count.eq(0).unsqueeze(3).unsqueeze(4), 0);
  return out;
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
  const Pieces q = cut(call.q, selection.q_blocks, plan.q_order, call.q_layout, stride_);
  const Pieces k = cut(call.k, selection.kv_blocks, plan.kv_order, call.kv_layout, stride_);
  const at::Tensor scores =
      at::matmul(q.tokens.flip(3).flatten(3),
                 per_head(k.tokens.flatten(3), call.q.size(1)).transpose(2, 3))
          .mul(sm_scale_of(call) / static_cast<double>(stride_));
  // ln 0 = -inf keeps pieces of padding out.
  const at::Tensor weight = k.count.to(scores.scalar_type()).log().unsqueeze(2);
  at::Tensor share = shares_of(scores + weight) * q.count.to(scores.scalar_type()).unsqueeze(3);
  const int64_t nq = selection.q_blocks.num_blocks(), nk = selection.kv_blocks.num_blocks();
  const auto sizes = share.sizes();
  share =
      at::zeros({sizes[0], sizes[1], sizes[2], nk}, share.options()).index_add(3, k.block, share);
  share = at::zeros({sizes[0], sizes[1], nq, nk}, share.options()).index_add(2, q.block, share);
  share = share / share.sum(3, /*keepdim=*/true).clamp_min(std::numeric_limits<float>::min());
  at::Tensor classes = keep_top_p(share, top_p_, Crossing::kept, 1).to(at::kByte);
  if (sink_) classes.slice(3, 0, 1).fill_(block_class::exact);
  set_classes(selection, classes, call);
  return plan;
}

}  // namespace fovea
