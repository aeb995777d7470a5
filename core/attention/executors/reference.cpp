#include "core/attention/executors/reference.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include <ATen/ATen.h>

#include "core/attention/block_pool.h"
#include "core/attention/executors/block_linear.h"
#include "core/attention/executors/key_pieces.h"
#include "core/attention/executors/quantized.h"
#include "core/check.h"
#include "core/ops/widened.h"

namespace fovea {
namespace {

using ops::widened;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// bool [batch, seq_len], or undefined where all tokens are valid.
at::Tensor valid_rows(const TokenLayout& layout) {
  const at::Tensor valid = layout.valid_mask();
  return valid.defined() ? valid.squeeze(1).squeeze(1) : valid;
}

// Rows of a tensor [.., .., seq_len, ..]; all of them where `rows` is undefined.
at::Tensor rows_of(const at::Tensor& x, const at::Tensor& rows) {
  return rows.defined() ? x.index_select(2, rows) : x;
}

// The positions and blocks of the tokens of one side, by row.
struct Side {
  int64_t seq_len;
  at::Tensor position;  // int64 [batch or 1, heads or 1, rows]

  Side(const TokenOrder& order, const TokenLayout& layout, at::Device device, int64_t heads,
       const at::Tensor& rows)
      : seq_len(layout.seq_len()),
        position(rows_of(positions_of_rows(per_head(order.rows(layout, device), heads)), rows)) {}

  at::Tensor blocks(const BlockAxis& axis, int64_t heads) const {
    const at::Tensor block = per_head(axis.block_of_position(seq_len, position.device()), heads);
    const auto lead = at::infer_size(block.sizes().slice(0, 2), position.sizes().slice(0, 2));
    return block.expand({lead[0], lead[1], seq_len})
        .gather(2, position.expand({lead[0], lead[1], position.size(2)}));
  }
};

struct Problem {
  const AttentionPlan& plan;
  const AttentionCall& call;
  const ReferenceOptions& options;
  int64_t heads;
  at::Device device;
  at::Tensor q;  // the rows that are computed, widened and scaled
  Side q_side, kv_side;

  Problem(const AttentionPlan& plan, const AttentionCall& call, const ReferenceOptions& options)
      : plan(plan),
        call(call),
        options(options),
        heads(call.q.size(1)),
        device(call.q.device()),
        q(computed(rows(call.q)) * scale()),
        q_side(plan.q_order, call.q_layout, device, heads, options.rows),
        kv_side(plan.kv_order, call.kv_layout, device, heads, at::Tensor()) {}

  double scale() const {
    return call.sm_scale.value_or(1 / std::sqrt(static_cast<double>(call.q.size(3))));
  }
  // Those of a tensor [.., .., q_len or 1, ..] that are computed.
  at::Tensor rows(const at::Tensor& x) const {
    return x.size(2) == call.q.size(2) ? rows_of(x, options.rows) : x;
  }
  at::Tensor computed(const at::Tensor& x) const {
    return options.in_storage_type ? x.to(call.q.scalar_type()) : widened(x);
  }
  // In the type that the problem is computed in.
  at::Tensor wide(const at::Tensor& x) const { return x.to(q.scalar_type()); }
  at::Tensor keys() const { return of_tokens(call.k); }
  at::Tensor values() const { return of_tokens(call.v); }

 private:
  // Padding may hold anything, also NaN.
  at::Tensor of_tokens(const at::Tensor& x) const {
    const at::Tensor valid = call.kv_layout.valid_mask();
    const at::Tensor wide = per_head(computed(x), heads);
    return valid.defined() ? wide.masked_fill(valid.logical_not().transpose(2, 3), 0) : wide;
  }
};

// See `exact_pairs`.
at::Tensor exact_pairs_of(const Problem& problem, const SoftmaxBranch& branch) {
  const AttentionCall& call = problem.call;
  const Selection& selection = branch.selection;
  at::Tensor visible = at::ones({1, 1, 1, 1}, at::device(problem.device).dtype(at::kBool));
  if (selection.classes.defined()) {
    visible = at_blocks(selection.classes, problem.q_side.blocks(selection.q_blocks, problem.heads),
                        problem.kv_side.blocks(selection.kv_blocks, problem.heads))
                  .eq(block_class::exact);
  }
  const PredicateSpace space{call.q_layout, call.kv_layout, problem.q_side.position,
                             problem.kv_side.position, problem.options.rows};
  for (const Predicate& predicate : selection.predicates) {
    visible = visible.logical_and(visible_pairs(predicate, space));
  }
  const at::Tensor valid = call.kv_layout.valid_mask();
  return valid.defined() ? visible.logical_and(valid) : visible;
}

// Keys of one softmax: logits, which of them are seen, and values.
struct Columns {
  at::Tensor logits;   // [batch, heads, q_len, keys]
  at::Tensor visible;  // bool, broadcasts to that; undefined: all
  at::Tensor values;   // [batch, heads, keys, value_dim]
};

Columns own_keys(const Problem& problem, const SoftmaxBranch& branch) {
  Columns out;
  out.logits = at::matmul(problem.q, problem.keys().transpose(2, 3));
  if (problem.call.bias.defined()) {
    out.logits = out.logits + problem.wide(problem.rows(problem.call.bias));
  }
  out.visible = exact_pairs_of(problem, branch);
  out.values = problem.values();
  return out;
}

Columns given_keys(const Problem& problem, const SoftmaxBranch& branch) {
  const GivenKeys& keys = *branch.keys;
  Columns out;
  const at::Tensor k = per_head(problem.wide(keys.k), problem.heads);
  out.logits = at::matmul(problem.q, k.transpose(2, 3));
  if (keys.bias.defined()) out.logits = out.logits + problem.wide(keys.bias).unsqueeze(2);
  out.values = per_head(problem.wide(keys.v), problem.heads);
  const Selection& selection = branch.selection;
  if (selection.classes.defined()) {
    const at::Tensor kv_block =
        per_head(selection.kv_blocks.block_of_position(k.size(2), problem.device), problem.heads);
    out.visible = at_blocks(selection.classes,
                            problem.q_side.blocks(selection.q_blocks, problem.heads), kv_block)
                      .eq(block_class::exact);
  }
  return out;
}

Columns summary_keys(const Problem& problem, const Selection& selection, size_t number) {
  const Summary& summary = selection.summaries[number];
  const KeyPieces pooled = pool_keys(problem.plan, problem.call, selection.kv_blocks, summary.pool);
  const at::Tensor count = per_head(pooled.count, problem.heads);
  const int64_t per_block = pieces_per_block(selection.kv_blocks, summary.pool);
  Columns out;
  const at::Tensor keys = problem.wide(per_head(pooled.k, problem.heads));
  out.logits = at::matmul(problem.q, keys.transpose(2, 3));
  if (summary.log_count) {
    out.logits = out.logits + problem.wide(count.clamp_min(1).log().unsqueeze(2));
  }
  const at::Tensor block_of_piece =
      at::arange(pooled.k.size(2), at::device(problem.device).dtype(at::kLong))
          .floor_divide(per_block)
          .view({1, 1, -1});
  const auto value = static_cast<int64_t>(block_class::first_summary + number);
  out.visible = at_blocks(selection.classes,
                          problem.q_side.blocks(selection.q_blocks, problem.heads), block_of_piece)
                    .eq(value)
                    .logical_and(count.gt(0).unsqueeze(2));
  out.values = problem.wide(per_head(pooled.v, problem.heads));
  return out;
}

// exp(logits - the largest of the row).
struct Weights {
  at::Tensor p;    // [batch, heads, q_len, keys]
  at::Tensor top;  // [batch, heads, q_len, 1], constant; 0 for rows without a key
};

Weights weights_of(const at::Tensor& logits) {
  // Rows without a key get no gradient, and no NaN from -inf - -inf.
  at::Tensor top = logits.detach().amax(3, /*keepdim=*/true);
  top = top.masked_fill(top.eq(-kInfinity), 0);
  return {(logits - top).exp(), top};
}

// The mean of values with these weights, and ln of the sum of exp(logits).
Partial weighted_mean(const Weights& weights, const at::Tensor& values) {
  const at::Tensor sum = weights.p.sum(3, /*keepdim=*/true);
  const at::Tensor empty = sum.eq(0), safe = sum.masked_fill(empty, 1);
  return {at::matmul(weights.p / safe, values),
          (safe.log() + weights.top).masked_fill(empty, -kInfinity).squeeze(3)};
}

Partial softmax(const std::vector<Columns>& parts) {
  std::vector<at::Tensor> logits, values;
  for (const Columns& part : parts) {
    const at::Tensor& x = part.logits;
    logits.push_back(part.visible.defined() ? x.masked_fill(part.visible.logical_not(), -kInfinity)
                                            : x);
    values.push_back(part.values);
  }
  const at::Tensor all = at::cat(logits, 3);
  Partial result;
  if (all.size(3) == 0) {
    result.lse = at::full(all.sizes().slice(0, 3), -kInfinity, all.options());
    result.out = at::matmul(all, at::cat(values, 2));
    return result;
  }
  return weighted_mean(weights_of(all), at::cat(values, 2));
}

// e4m3 numbers relative to a power of 2: see `Precision::p`.
at::Tensor weights_by_powers_of_2(const Weights& weights, const ReferenceOptions& options) {
  const at::Tensor top = weights.top.to(at::kDouble) / std::log(2.0);
  const at::Tensor factor = (8 + top - top.ceil()).exp2().to(weights.p.options());
  const at::Tensor x = weights.p * (1 + options.nudge) * factor;
  at::Tensor numbers = quantize(x, NumberFormat::e4m3, at::full({1}, 448, x.options()));
  if (options.keeps_small_weights) numbers = at::where(x.lt(std::pow(2.0, -6)), x, numbers);
  return numbers / factor;
}

// The largest weight of each pair of blocks, for all pairs of tokens.
at::Tensor largest_of_pairs(const Problem& problem, const at::Tensor& p, const OperandSide& q_side,
                            const OperandSide& kv_side) {
  const at::Tensor valid = problem.call.q_layout.valid_mask();  // padding has no part in a scale
  at::Tensor amax = p.detach();
  if (valid.defined()) amax = amax.masked_fill(valid.logical_not().transpose(2, 3), 0);
  amax = largest_of_pieces(amax, q_side.pieces(problem.heads, problem.device, 0),
                           q_side.blocks.num_blocks());
  amax = largest_of_pieces(amax.transpose(2, 3), kv_side.pieces(problem.heads, problem.device, 0),
                           kv_side.blocks.num_blocks());
  return amax.transpose(2, 3);
}

// The same as a softmax over the own keys, in the numbers of the branch: see `Precision`.
Partial quantized_softmax(const Problem& problem, const SoftmaxBranch& branch) {
  const Precision& precision = branch.precision;
  const Selection& selection = branch.selection;
  const double scale = problem.scale();
  at::Tensor k = problem.keys(), lost;
  if (precision.smooth_k) {
    const PooledTokens all =
        pool_tokens(k, at::zeros({1, 1, k.size(2)}, at::device(problem.device).dtype(at::kLong)), 1,
                    valid_rows(problem.call.kv_layout));
    k = k - all.mean;
    lost = at::matmul(problem.q, all.mean.transpose(2, 3));
  }
  const OperandSide q_side{problem.plan.q_order, problem.call.q_layout, selection.q_blocks};
  const OperandSide kv_side{problem.plan.kv_order, problem.call.kv_layout, selection.kv_blocks};
  const at::Tensor q =
      problem.rows(quantized_operand(widened(problem.call.q), precision.q, q_side));
  k = quantized_operand(k, precision.k, kv_side);
  const at::Tensor v = quantized_operand(problem.values(), precision.v, kv_side);
  at::Tensor logits = at::matmul(q, k.transpose(2, 3)) * scale;
  if (problem.call.bias.defined()) {
    logits = logits + problem.wide(problem.rows(problem.call.bias));
  }
  logits = logits.masked_fill(exact_pairs_of(problem, branch).logical_not(), -kInfinity);
  Weights weights = weights_of(logits);
  const Quantized& how = precision.p;
  if (how.unit == ScaleUnit::head && how.format == NumberFormat::e4m3) {
    weights.p = weights_by_powers_of_2(weights, problem.options);
  } else {
    const at::Tensor amax = how.unit == ScaleUnit::head
                                ? at::ones({1}, weights.p.options())
                                : largest_of_pairs(problem, weights.p, q_side, kv_side);
    weights.p = quantize(weights.p * (1 + problem.options.nudge), how.format, amax);
  }
  Partial out = weighted_mean(weights, v);
  if (lost.defined()) out.lse = out.lse + lost.squeeze(3);
  return out;
}

Partial run_branch(const Problem& problem, const SoftmaxBranch& branch) {
  if (!branch.precision.is_storage() && problem.call.k.size(2) > 0) {
    return quantized_softmax(problem, branch);
  }
  if (branch.keys) return softmax({given_keys(problem, branch)});
  std::vector<Columns> parts = {own_keys(problem, branch)};
  for (size_t i = 0; i < branch.selection.summaries.size(); ++i) {
    parts.push_back(summary_keys(problem, branch.selection, i));
  }
  return softmax(parts);
}

Partial run_branch(const Problem& problem, const LinearBranch& branch) {
  const at::Tensor q = features(problem.computed(problem.rows(problem.call.q)), branch.feature_map);
  const at::Tensor k = features(problem.keys(), branch.feature_map);
  at::Tensor weights = at::matmul(q, k.transpose(2, 3));
  const at::Tensor valid = problem.call.kv_layout.valid_mask();
  if (valid.defined()) weights = weights * valid;
  if (branch.complement_of) {
    const auto& softmax =
        std::get<SoftmaxBranch>(problem.plan.branches[*branch.complement_of].kind);
    // A block that a summary stands for is not skipped.
    at::Tensor taken = exact_pairs_of(problem, softmax);
    const Selection& selection = softmax.selection;
    if (selection.classes.defined() && !selection.summaries.empty()) {
      taken = taken.logical_or(at_blocks(selection.classes,
                                         problem.q_side.blocks(selection.q_blocks, problem.heads),
                                         problem.kv_side.blocks(selection.kv_blocks, problem.heads))
                                   .ge(block_class::first_summary));
    }
    weights = weights.masked_fill(taken, 0);
  }
  return finish_linear(branch, at::matmul(weights, problem.values()),
                       weights.sum(3, /*keepdim=*/true));
}

Partial run_branch(const Problem& problem, const PooledValuesBranch& branch) {
  return {problem.wide(problem.rows(run_pooled_values(problem.plan, branch, problem.call).out)),
          at::Tensor()};
}

Partial run_branch(const Problem& problem, const ReuseBranch& branch) {
  return {problem.wide(problem.rows(branch.out)),
          branch.lse.defined() ? problem.wide(problem.rows(branch.lse)) : at::Tensor()};
}

// Weights of groups as they are for some rows; others broadcast.
AttentionPlan with_weights_of_rows(const AttentionPlan& plan, const AttentionCall& call,
                                   const at::Tensor& rows) {
  AttentionPlan out = plan;
  for (at::Tensor& weight : out.group_weights) {
    if (!weight.defined() || weight.dim() < 2 || weight.size(-2) != call.q.size(2)) continue;
    weight = weight.index_select(-2, rows);
  }
  return out;
}

AttentionResult run_reference(const AttentionPlan& plan, const AttentionCall& call,
                              const ReferenceOptions& options) {
  const Problem problem(plan, call, options);
  std::vector<Partial> parts;
  for (const Branch& branch : plan.branches) {
    parts.push_back(
        std::visit([&](const auto& kind) { return run_branch(problem, kind); }, branch.kind));
  }
  if (!options.rows.defined()) return combine(plan, parts, call.q.scalar_type());
  return combine(with_weights_of_rows(plan, call, options.rows), parts, call.q.scalar_type());
}

// Whether scales of a plan's weights are those of whole blocks of queries.
bool needs_whole_blocks(const AttentionPlan& plan) {
  for (const Branch& branch : plan.branches) {
    const auto* softmax = std::get_if<SoftmaxBranch>(&branch.kind);
    if (softmax != nullptr && softmax->precision.p.format != NumberFormat::storage &&
        softmax->precision.p.unit == ScaleUnit::block) {
      return true;
    }
  }
  return false;
}

}  // namespace

at::Tensor exact_pairs(const AttentionPlan& plan, const SoftmaxBranch& branch,
                       const AttentionCall& call) {
  return exact_pairs_of(Problem(plan, call, ReferenceOptions{}), branch);
}

AttentionResult reference_attention(const AttentionPlan& plan, const AttentionCall& call,
                                    const ReferenceOptions& options) {
  if (!options.rows.defined() || !needs_whole_blocks(plan)) {
    return run_reference(plan, call, options);
  }
  ReferenceOptions of_all = options;
  of_all.rows = at::Tensor();
  const AttentionResult whole = run_reference(plan, call, of_all);
  return {rows_of(whole.out, options.rows),
          whole.lse.defined() ? rows_of(whole.lse, options.rows) : whole.lse};
}

std::optional<std::string> ReferenceExecutor::why_not(const AttentionPlan&,
                                                      const AttentionCall&) const {
  return std::nullopt;
}

AttentionResult ReferenceExecutor::run(const AttentionPlan& plan, const AttentionCall& call,
                                       const LoweredPlan*) {
  return reference_attention(plan, call);
}

}  // namespace fovea
