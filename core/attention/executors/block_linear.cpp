#include "core/attention/executors/block_linear.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "core/attention/block_pool.h"
#include "core/attention/executors/cuda_linear.h"
#include "core/check.h"
#include "core/ops/product.h"
#include "core/ops/widened.h"

namespace fovea {
namespace {

using ops::widened;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// x's rows where a permutation has them: row rows[i] of x becomes row i.
//
// rows, inverse  int64 [batch or 1, heads or 1, len]
at::Tensor permuted(const at::Tensor& x, const at::Tensor& rows, const at::Tensor& inverse);

class Permute : public torch::autograd::Function<Permute> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& rows,
                            const at::Tensor& inverse) {
    context->save_for_backward({rows, inverse});
    if (rows.size(0) == 1 && rows.size(1) == 1) return x.index_select(2, rows[0][0]);
    return x.gather(2, rows.unsqueeze(3).expand(x.sizes()));
  }
  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const variable_list saved = context->get_saved_variables();
    return {permuted(gradients[0], saved[1], saved[0]), at::Tensor(), at::Tensor()};
  }
};

at::Tensor permuted(const at::Tensor& x, const at::Tensor& rows, const at::Tensor& inverse) {
  return Permute::apply(x, rows, inverse);
}

// The blocks of one side, in its order.
struct Side {
  at::Tensor offsets;          // int64 [batch or 1, heads or 1, blocks + 1]
  at::Tensor rows, positions;  // int64 [batch or 1, heads or 1, len], undefined: identity

  Side(const BlockAxis& axis, const TokenOrder& order, const TokenLayout& layout, int64_t heads)
      : offsets(per_head(axis.offsets(at::kCPU), heads)) {
    if (order.is_identity()) return;
    rows = per_head(order.rows(layout, at::kCPU), heads);
    positions = positions_of_rows(rows);
  }
  at::Tensor in_order(const at::Tensor& x) const {
    return rows.defined() ? permuted(x, rows, positions) : x;
  }
  at::Tensor as_before(const at::Tensor& x) const {
    return rows.defined() ? permuted(x, positions, rows) : x;
  }
};

// How many times its tokens a side may take in padded blocks.
constexpr int64_t kMostPadding = 8;

// Blocks of one side, each padded to the size of the largest.
class PaddedBlocks {
 public:
  // x  [batch, heads, len, channels]: what the blocks are of
  PaddedBlocks(const BlockAxis& axis, const TokenOrder& order, const TokenLayout& layout,
               const at::Tensor& x)
      : size_(axis.max_size()), blocks_(axis.num_blocks()) {
    const at::Device device = x.device();
    const int64_t batch = x.size(0), heads = x.size(1), len = x.size(2);
    const at::Tensor offsets =
        per_head(axis.offsets(device), heads).expand({batch, heads, blocks_ + 1});
    const at::Tensor position = offsets.slice(2, 0, -1).unsqueeze(3) +
                                at::arange(size_, at::device(device).dtype(at::kLong));
    is_padding_ = position.ge(offsets.slice(2, 1).unsqueeze(3));
    const at::Tensor row = per_head(order.rows(layout, device), heads).expand({batch, heads, len});
    // A sequence of no tokens has no row, and nothing but padding.
    const at::Tensor near = position.clamp(0, std::max<int64_t>(len - 1, 0)).flatten(2);
    rows_ = len == 0 ? near : row.gather(2, near);
    const at::Tensor block = block_of_row(axis, order, layout, device);
    const auto lead = at::infer_size(block.sizes(), {batch, 1, len});
    const at::Tensor own = per_head(block.expand(lead), heads).expand({batch, heads, len});
    const at::Tensor inside = positions_of_rows(row.contiguous()) - offsets.gather(2, own);
    places_ = own * size_ + inside;
  }
  // Of one head [batch, blocks, size, channels]; padding is 0.
  at::Tensor of(const at::Tensor& x, int64_t head) const {
    const at::Tensor own = x.select(1, head), rows = rows_.select(1, head).unsqueeze(2);
    return own.gather(1, rows.expand({-1, -1, x.size(3)}))
        .unflatten(1, {blocks_, size_})
        .masked_fill(is_padding_.select(1, head).unsqueeze(3), 0);
  }
  // Back to [batch, len, channels].
  at::Tensor by_row(const at::Tensor& x, int64_t head) const {
    const at::Tensor places = places_.select(1, head).unsqueeze(2);
    return x.flatten(1, 2).gather(1, places.expand({-1, -1, x.size(3)}));
  }

 private:
  int64_t size_, blocks_;
  at::Tensor rows_;        // int64 [batch, heads, blocks * size] of each place
  at::Tensor is_padding_;  // bool [batch, heads, blocks, size]
  at::Tensor places_;      // int64 [batch, heads, len] of each row
};

const SoftmaxBranch* complemented(const AttentionPlan& plan, const LinearBranch& branch) {
  if (!branch.complement_of) return nullptr;
  return &std::get<SoftmaxBranch>(plan.branches[*branch.complement_of].kind);
}

// Values with a last channel of ones, which sums the weights; padding is 0 in all channels.
at::Tensor counted_values(const AttentionCall& call, const at::Tensor& invalid) {
  at::Tensor out = at::constant_pad_nd(widened(call.v), {0, 1}, 1);
  if (invalid.defined()) out = out.masked_fill(invalid, 0);
  return ops::spread_heads(out, call.q.size(1));
}

// Of the sums the mean, 0 where nothing is summed.
at::Tensor mean_of(const LinearBranch& branch, const at::Tensor& weighted,
                   const at::Tensor& total) {
  const at::Tensor divisor = (total + branch.epsilon).masked_fill(total.eq(0), 1);
  return weighted / ops::spread(divisor, weighted.sizes());
}

Partial finish_on_cpu(const LinearBranch& branch, const at::Tensor& sums) {
  const int64_t dim = sums.size(3) - 1;
  Partial result;
  result.out = mean_of(branch, sums.narrow(3, 0, dim), sums.narrow(3, dim, 1));
  if (branch.proj_weight.defined()) {
    result.out = ops::product(result.out, branch.proj_weight.to(at::kFloat).t());
  }
  if (branch.proj_bias.defined()) {
    result.out = result.out + ops::spread(branch.proj_bias.to(at::kFloat), result.out.sizes());
  }
  return result;
}

}  // namespace

at::Tensor features(const at::Tensor& x, FeatureMap map) {
  if (map == FeatureMap::softmax) return at::softmax(x, 3);
  if (map == FeatureMap::relu) return at::relu(x);
  return ops::elu_plus_one(x);
}

Partial finish_linear(const LinearBranch& branch, const at::Tensor& weighted,
                      const at::Tensor& total) {
  Partial result;
  result.out = mean_of(branch, weighted, total);
  const at::ScalarType type = weighted.scalar_type();
  if (branch.proj_weight.defined()) {
    result.out = at::matmul(result.out, branch.proj_weight.to(type).t());
  }
  if (branch.proj_bias.defined()) result.out = result.out + branch.proj_bias.to(type);
  return result;
}

std::optional<std::string> why_not_block_linear(const AttentionPlan& plan,
                                                const LinearBranch& branch) {
  const SoftmaxBranch* other = complemented(plan, branch);
  if (other == nullptr) return std::nullopt;
  if (!other->selection.predicates.empty()) return "takes no complement of predicates";
  return std::nullopt;
}

Partial run_block_linear(const AttentionPlan& plan, const LinearBranch& branch,
                         const AttentionCall& call) {
  const int64_t heads = call.q.size(1);
  const at::Tensor q = features(widened(call.q), branch.feature_map);
  at::Tensor invalid = call.kv_layout.valid_mask();
  if (invalid.defined()) invalid = invalid.logical_not().transpose(2, 3);
  at::Tensor k = features(widened(call.k), branch.feature_map);
  if (invalid.defined()) k = k.masked_fill(invalid, 0);
  k = ops::spread_heads(k, heads);
  const at::Tensor v = counted_values(call, invalid);
  const SoftmaxBranch* other = complemented(plan, branch);
  at::Tensor sums;
  if (other == nullptr) {
    sums = ops::product(q, ops::product(k.transpose(2, 3), v));
  } else if (!other->selection.classes.defined()) {
    sums = q.new_zeros({q.size(0), heads, q.size(2), v.size(3)});
  } else {
    const Selection& selection = other->selection;
    const Side rows(selection.q_blocks, plan.q_order, call.q_layout, heads);
    const Side keys(selection.kv_blocks, plan.kv_order, call.kv_layout, heads);
    const at::Tensor states =
        ops::product_of_blocks(keys.in_order(k), keys.in_order(v), keys.offsets);
    const at::Tensor skipped = selection.classes.eq(block_class::skip).to(at::kFloat);
    const at::Tensor taken =
        ops::product(skipped, states.flatten(3)).unflatten(3, {states.size(3), states.size(4)});
    sums = rows.as_before(ops::rows_times_blocks(rows.in_order(q), taken, rows.offsets));
  }
  return finish_on_cpu(branch, sums);
}

std::optional<std::string> why_not_linear_on_device(const AttentionPlan& plan,
                                                    const LinearBranch& branch,
                                                    const AttentionCall& call) {
  if (const auto reason = why_not_block_linear(plan, branch)) return reason;
  const SoftmaxBranch* other = complemented(plan, branch);
  if (other == nullptr || !other->selection.classes.defined()) return std::nullopt;
  const auto is_even = [](const BlockAxis& axis, int64_t len) {
    return axis.num_blocks() * axis.max_size() <= kMostPadding * std::max<int64_t>(len, 1);
  };
  if (is_even(other->selection.q_blocks, call.q.size(2)) &&
      is_even(other->selection.kv_blocks, call.k.size(2))) {
    return std::nullopt;
  }
  return "takes complements of blocks of about one size";
}

Partial run_linear_on_device(const AttentionPlan& plan, const LinearBranch& branch,
                             const AttentionCall& call) {
  if (has_linear_kernel(plan, branch, call)) {
    return {run_linear_kernel(plan, branch, call, /*added=*/{}), {}};
  }
  const int64_t heads = call.q.size(1);
  const at::Tensor q = features(widened(call.q), branch.feature_map);
  at::Tensor invalid = call.kv_layout.valid_mask();
  if (invalid.defined()) invalid = invalid.logical_not().transpose(2, 3);
  at::Tensor k = features(widened(call.k), branch.feature_map);
  if (invalid.defined()) k = k.masked_fill(invalid, 0);
  k = ops::spread_heads(k, heads);
  const at::Tensor v = counted_values(call, invalid);
  const SoftmaxBranch* other = complemented(plan, branch);
  at::Tensor sums;
  if (other == nullptr) {
    sums = at::matmul(q, at::matmul(k.transpose(2, 3), v));
  } else if (!other->selection.classes.defined()) {
    sums = q.new_zeros({q.size(0), heads, q.size(2), v.size(3)});
  } else {
    const Selection& selection = other->selection;
    const PaddedBlocks rows(selection.q_blocks, plan.q_order, call.q_layout, q);
    const PaddedBlocks keys(selection.kv_blocks, plan.kv_order, call.kv_layout, k);
    const at::Tensor skipped =
        selection.classes.eq(block_class::skip).to(at::kFloat).expand({q.size(0), heads, -1, -1});
    // Heads one after the other: states take many times what keys do.
    std::vector<at::Tensor> of_heads;
    for (int64_t head = 0; head < heads; ++head) {
      const at::Tensor states = at::matmul(keys.of(k, head).transpose(2, 3), keys.of(v, head));
      const at::Tensor taken = at::matmul(skipped.select(1, head), states.flatten(2))
                                   .unflatten(2, {states.size(2), states.size(3)});
      of_heads.push_back(rows.by_row(at::matmul(rows.of(q, head), taken), head));
    }
    sums = at::stack(of_heads, 1);
  }
  const int64_t dim = sums.size(3) - 1;
  return finish_linear(branch, sums.narrow(3, 0, dim), sums.narrow(3, dim, 1));
}

}  // namespace fovea
