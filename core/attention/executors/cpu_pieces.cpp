#include "core/attention/executors/cpu_pieces.h"

#include <algorithm>

#include <ATen/ATen.h>
#include <ATen/ExpandUtils.h>
#include <torch/csrc/autograd/custom_function.h>

#include "core/attention/block_pool.h"
#include "core/attention/lower.h"
#include "core/check.h"
#include "core/ops/block_scores.h"
#include "core/ops/product.h"

namespace fovea {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// What is saved beside them comes first.
variable_list saved_with(variable_list others, const PieceRows& pieces) {
  others.insert(others.end(), {pieces.rows, pieces.offsets, pieces.valid});
  others.insert(others.end(), pieces.piece.begin(), pieces.piece.end());
  return others;
}

PieceRows pieces_behind(size_t others, const variable_list& saved) {
  return {saved[others],
          saved[others + 1],
          saved[others + 2],
          {saved.begin() + static_cast<int64_t>(others) + 3, saved.end()}};
}

at::Tensor at_pieces(const at::Tensor& x, const at::Tensor& piece) {
  if (piece.size(0) == 1 && piece.size(1) == 1) return x.index_select(2, piece[0][0]);
  return x.gather(2, piece.unsqueeze(3).expand({x.size(0), x.size(1), piece.size(2), x.size(3)}));
}

class SumOfPieces : public torch::autograd::Function<SumOfPieces> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x,
                            const PieceRows& pieces) {
    context->save_for_backward(saved_with({}, pieces));
    context->saved_data["type"] = static_cast<int64_t>(x.scalar_type());
    return ops::block_sums(x, {pieces.offsets, pieces.rows, pieces.valid}).rows;
  }
  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const at::Tensor rows =
        rows_of_pieces(gradients[0], pieces_behind(0, context->get_saved_variables()));
    const auto type = static_cast<at::ScalarType>(context->saved_data["type"].toInt());
    return {rows.to(type), at::Tensor()};
  }
};

// Sums over counts, which have no gradients.
class MeanOfPieces : public torch::autograd::Function<MeanOfPieces> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const PieceRows& pieces,
                            const at::Tensor& count) {
    const at::Tensor divisor = count.clamp_min(1).unsqueeze(3);
    context->save_for_backward(saved_with({divisor}, pieces));
    context->saved_data["type"] = static_cast<int64_t>(x.scalar_type());
    return ops::block_sums(x, {pieces.offsets, pieces.rows, pieces.valid}).rows.div_(divisor);
  }
  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const variable_list saved = context->get_saved_variables();
    const at::Tensor rows = rows_of_pieces(gradients[0] / saved[0], pieces_behind(1, saved));
    const auto type = static_cast<at::ScalarType>(context->saved_data["type"].toInt());
    return {rows.to(type), at::Tensor(), at::Tensor()};
  }
};

class RowsOfPieces : public torch::autograd::Function<RowsOfPieces> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x,
                            const PieceRows& pieces) {
    context->save_for_backward(saved_with({}, pieces));
    at::Tensor out = at_pieces(x, pieces.piece[0]);
    for (size_t i = 1; i < pieces.piece.size(); ++i) out += at_pieces(x, pieces.piece[i]);
    if (!pieces.valid.defined()) return out;
    return out.masked_fill(pieces.valid.logical_not().unsqueeze(1).unsqueeze(3), 0);
  }
  static variable_list backward(AutogradContext* context, variable_list gradients) {
    return {sum_of_pieces(gradients[0], pieces_behind(0, context->get_saved_variables())),
            at::Tensor()};
  }
};

// Valid tokens of each piece, fp32 [batch or 1, heads or 1, pieces].
at::Tensor count_of_pieces(const PieceRows& pieces, int64_t heads) {
  if (!pieces.valid.defined()) return pieces.offsets.diff().clamp_min(0).to(at::kFloat);
  const at::Tensor valid = pieces.valid.to(at::kFloat).unsqueeze(1).unsqueeze(3);
  const int64_t own = pieces.offsets.size(1) == 1 && pieces.piece[0].size(1) == 1 ? 1 : heads;
  const at::Tensor each = valid.expand({valid.size(0), own, valid.size(2), 1}).contiguous();
  return ops::block_sums(each, {pieces.offsets, pieces.rows, pieces.valid}).rows.squeeze(3);
}

at::Tensor mean_of_pieces(const at::Tensor& x, const PieceRows& pieces, const at::Tensor& count) {
  return MeanOfPieces::apply(x, pieces, count);
}

}  // namespace

PieceRows piece_rows(const BlockAxis& axis, int64_t pool, const TokenOrder& order,
                     const TokenLayout& layout, int64_t heads) {
  PieceRows out;
  if (!order.is_identity()) {
    out.rows = per_head(order.rows(layout, at::kCPU), heads).to(at::kInt).contiguous();
  }
  out.offsets = per_head(piece_offsets(axis, pool), heads).contiguous();
  out.piece = {piece_of_row(axis, pool, order, layout, at::kCPU, heads)};
  const at::Tensor valid = layout.valid_mask();
  if (valid.defined()) out.valid = valid.squeeze(1).squeeze(1).contiguous();
  return out;
}

at::Tensor sum_of_pieces(const at::Tensor& x, const PieceRows& pieces) {
  return SumOfPieces::apply(x, pieces);
}

at::Tensor rows_of_pieces(const at::Tensor& x, const PieceRows& pieces) {
  return RowsOfPieces::apply(x, pieces);
}

KeyPieces pool_levels(const AttentionPlan& plan, const AttentionCall& call,
                      const Selection& selection) {
  const BlockAxis& axis = selection.kv_blocks;
  const std::vector<int64_t> places = summary_places(selection, call.k.size(2));
  // Blocks may be those of heads that share their keys.
  const int64_t heads = std::max(call.k.size(1), axis.offsets(at::kCPU).size(1));
  PieceRows all;
  std::vector<at::Tensor> offsets;
  int64_t end = places[0];
  for (size_t i = 0; i < selection.summaries.size(); ++i) {
    PieceRows own =
        piece_rows(axis, selection.summaries[i].pool, plan.kv_order, call.kv_layout, heads);
    const int64_t count = own.offsets.size(2) - 1;
    // From the end of one level to the begin of the next is an empty piece.
    if (i > 0) {
      const at::Tensor last = offsets.back().slice(2, -1);
      offsets.push_back(last.expand({last.size(0), last.size(1), places[i] - end - 1}));
    }
    offsets.push_back(own.offsets);
    own.piece[0] = own.piece[0] + (places[i] - places[0]);
    all.piece.push_back(own.piece[0]);
    all.rows = own.rows;
    all.valid = own.valid;
    end = places[i] + count;
  }
  all.offsets = at::cat(offsets, 2);
  KeyPieces out;
  out.count = count_of_pieces(all, heads);
  out.k = mean_of_pieces(ops::spread_heads(call.k, heads), all, out.count);
  out.v = mean_of_pieces(ops::spread_heads(call.v, heads), all, out.count);
  out.count = out.count.expand(out.k.sizes().slice(0, 3));
  return out;
}

Partial run_pooled_values_on_cpu(const AttentionPlan& plan, const PooledValuesBranch& branch,
                                 const AttentionCall& call) {
  const int64_t heads = call.q.size(1), batch = call.q.size(0);
  const int64_t own = std::max(call.v.size(1), branch.kv_blocks.offsets(at::kCPU).size(1));
  const PieceRows keys = piece_rows(branch.kv_blocks, 0, plan.kv_order, call.kv_layout, own);
  const at::Tensor values =
      mean_of_pieces(ops::spread_heads(call.v, own), keys, count_of_pieces(keys, own));
  const at::Tensor blocks =
      ops::product(branch.weights.to(at::kFloat), ops::spread_heads(values, heads));
  PieceRows rows = piece_rows(branch.q_blocks, 0, plan.q_order, call.q_layout, heads);
  rows.valid = at::Tensor();  // padding gets what its block gets
  const at::Tensor whole = blocks.expand({batch, heads, blocks.size(2), blocks.size(3)});
  return {rows_of_pieces(whole, rows), {}};
}

}  // namespace fovea
