#include "core/attention/executors/cpu_pieces.h"

#include <algorithm>

#include <ATen/ATen.h>
#include <ATen/ExpandUtils.h>
#include <torch/csrc/autograd/custom_function.h>

#include "core/attention/block_pool.h"
#include "core/check.h"
#include "core/ops/block_scores.h"
#include "core/ops/product.h"

namespace fovea {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

variable_list saved_pieces(const PieceRows& pieces) {
  return {pieces.rows, pieces.offsets, pieces.piece, pieces.valid};
}

PieceRows pieces_of(const variable_list& saved) { return {saved[0], saved[1], saved[2], saved[3]}; }

class SumOfPieces : public torch::autograd::Function<SumOfPieces> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x,
                            const PieceRows& pieces) {
    context->save_for_backward(saved_pieces(pieces));
    context->saved_data["type"] = static_cast<int64_t>(x.scalar_type());
    return ops::piece_sums(x, pieces.rows, pieces.offsets, pieces.valid);
  }
  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const at::Tensor rows = rows_of_pieces(gradients[0], pieces_of(context->get_saved_variables()));
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
    variable_list saved = saved_pieces(pieces);
    saved.push_back(divisor);
    context->save_for_backward(std::move(saved));
    context->saved_data["type"] = static_cast<int64_t>(x.scalar_type());
    return ops::piece_sums(x, pieces.rows, pieces.offsets, pieces.valid).div_(divisor);
  }
  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const variable_list saved = context->get_saved_variables();
    const at::Tensor rows = rows_of_pieces(gradients[0] / saved[4], pieces_of(saved));
    const auto type = static_cast<at::ScalarType>(context->saved_data["type"].toInt());
    return {rows.to(type), at::Tensor(), at::Tensor()};
  }
};

class RowsOfPieces : public torch::autograd::Function<RowsOfPieces> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x,
                            const PieceRows& pieces) {
    context->save_for_backward(saved_pieces(pieces));
    const at::Tensor& piece = pieces.piece;
    at::Tensor out;
    if (piece.size(0) == 1 && piece.size(1) == 1) {
      out = x.index_select(2, piece[0][0]);
    } else {
      out =
          x.gather(2, piece.unsqueeze(3).expand({x.size(0), x.size(1), piece.size(2), x.size(3)}));
    }
    if (!pieces.valid.defined()) return out;
    return out.masked_fill(pieces.valid.logical_not().unsqueeze(1).unsqueeze(3), 0);
  }
  static variable_list backward(AutogradContext* context, variable_list gradients) {
    return {sum_of_pieces(gradients[0], pieces_of(context->get_saved_variables())), at::Tensor()};
  }
};

// Valid tokens of each piece, fp32 [batch or 1, heads or 1, pieces].
at::Tensor count_of_pieces(const PieceRows& pieces, int64_t heads) {
  if (!pieces.valid.defined()) return pieces.offsets.diff().to(at::kFloat);
  const at::Tensor valid = pieces.valid.to(at::kFloat).unsqueeze(1).unsqueeze(3);
  const int64_t own = pieces.offsets.size(1) == 1 && pieces.piece.size(1) == 1 ? 1 : heads;
  const at::Tensor each = valid.expand({valid.size(0), own, valid.size(2), 1}).contiguous();
  return ops::piece_sums(each, pieces.rows, pieces.offsets, pieces.valid).squeeze(3);
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
  out.piece = piece_of_row(axis, pool, order, layout, at::kCPU, heads);
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

KeyPieces pool_keys_on_cpu(const AttentionPlan& plan, const AttentionCall& call,
                           const BlockAxis& axis, int64_t pool) {
  // Blocks and orders may be those of heads that share their keys.
  const int64_t heads = std::max(call.k.size(1), axis.offsets(at::kCPU).size(1));
  const PieceRows pieces = piece_rows(axis, pool, plan.kv_order, call.kv_layout, heads);
  KeyPieces out;
  out.count = count_of_pieces(pieces, heads);
  out.k = mean_of_pieces(ops::spread_heads(call.k, heads), pieces, out.count);
  out.v = mean_of_pieces(ops::spread_heads(call.v, heads), pieces, out.count);
  out.count = out.count.expand(out.k.sizes().slice(0, 3));
  return out;
}

Partial run_pooled_values_on_cpu(const AttentionPlan& plan, const PooledValuesBranch& branch,
                                 const AttentionCall& call) {
  const int64_t heads = call.q.size(1), batch = call.q.size(0);
  const KeyPieces pooled = pool_keys_on_cpu(plan, call, branch.kv_blocks, 0);
  const at::Tensor blocks =
      ops::product(branch.weights.to(at::kFloat), ops::spread_heads(pooled.v, heads));
  PieceRows rows = piece_rows(branch.q_blocks, 0, plan.q_order, call.q_layout, heads);
  rows.valid = at::Tensor();  // padding gets what its block gets
  const at::Tensor whole = blocks.expand({batch, heads, blocks.size(2), blocks.size(3)});
  return {rows_of_pieces(whole, rows), {}};
}

}  // namespace fovea
