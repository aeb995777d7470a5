#include "core/attention/executors/block_linear.h"

#include <algorithm>

#include <ATen/ATen.h>

#include "core/attention/block_pool.h"
#include "core/check.h"
#include "core/ops/widened.h"

namespace fovea {
namespace {

using ops::widened;

// Blocks are padded to the largest; more padding than this share of the tokens is not worth it.
constexpr int64_t kMostPadding = 4;

// The tokens of one side, block by block, each block padded to the largest one.
struct Blocked {
  int64_t heads, blocks, width;
  at::Tensor row;     // int64 [batch or 1, heads or 1, blocks * width]: of each place
  at::Tensor is_own;  // bool, the same: not padding of a block
  at::Tensor place;   // int64 [batch or 1, heads or 1, tokens]: of each row

  Blocked(const BlockAxis& axis, const TokenOrder& order, const TokenLayout& layout,
          at::Device device, int64_t heads)
      : heads(heads), blocks(axis.num_blocks()), width(std::max<int64_t>(axis.max_size(), 1)) {
    const at::Tensor rows = per_head(order.rows(layout, device), heads);
    const at::Tensor offsets = per_head(axis.offsets(device), heads);
    const at::Tensor begin = offsets.slice(2, 0, blocks).unsqueeze(3);
    const at::Tensor end = offsets.slice(2, 1, blocks + 1).unsqueeze(3);
    const at::Tensor position = begin + at::arange(width, begin.options());
    is_own = position.lt(end).flatten(2);
    const auto lead = at::infer_size(rows.sizes().slice(0, 2), offsets.sizes().slice(0, 2));
    const int64_t tokens = rows.size(2);
    const at::Tensor whole = rows.expand({lead[0], lead[1], tokens});
    row = whole.gather(
        2, position.clamp_max(tokens - 1).flatten(2).expand({lead[0], lead[1], blocks * width}));
    const at::Tensor block =
        per_head(axis.block_of_position(tokens, device), heads).expand({lead[0], lead[1], tokens});
    const at::Tensor first = offsets.expand({lead[0], lead[1], blocks + 1}).gather(2, block);
    const at::Tensor by_position =
        block * width + at::arange(tokens, rows.options()).expand_as(block) - first;
    place = by_position.gather(2, positions_of_rows(whole));
  }

  // [batch, heads or 1, tokens, channels] -> [batch, heads, blocks, width, channels], padding 0
  at::Tensor split(const at::Tensor& x) const {
    const int64_t batch = x.size(0), channels = x.size(3);
    const at::Tensor index = row.unsqueeze(3).expand({batch, heads, blocks * width, channels});
    return x.expand({batch, heads, x.size(2), channels})
        .gather(2, index)
        .masked_fill(is_own.logical_not().unsqueeze(3), 0)
        .view({batch, heads, blocks, width, channels});
  }

  // and back
  at::Tensor join(const at::Tensor& x) const {
    const int64_t batch = x.size(0), channels = x.size(4);
    const at::Tensor index = place.unsqueeze(3).expand({batch, heads, place.size(2), channels});
    return x.reshape({batch, heads, blocks * width, channels}).gather(2, index);
  }
};

const SoftmaxBranch* complemented(const AttentionPlan& plan, const LinearBranch& branch) {
  if (!branch.complement_of) return nullptr;
  return &std::get<SoftmaxBranch>(plan.branches[*branch.complement_of].kind);
}

// Values with a last channel of ones, which sums the weights; padding is 0 in all channels.
at::Tensor counted_values(const AttentionCall& call, const at::Tensor& invalid) {
  const at::Tensor v = per_head(widened(call.v), call.q.size(1));
  const at::Tensor out = at::constant_pad_nd(v, {0, 1}, 1);
  return invalid.defined() ? out.masked_fill(invalid, 0) : out;
}

}  // namespace

at::Tensor features(const at::Tensor& x, FeatureMap map) {
  if (map == FeatureMap::softmax) return at::softmax(x, 3);
  if (map == FeatureMap::relu) return at::relu(x);
  return at::elu(x) + 1;
}

Partial finish_linear(const LinearBranch& branch, const at::Tensor& weighted,
                      const at::Tensor& total) {
  Partial result;
  result.out = weighted / (total + branch.epsilon).masked_fill(total.eq(0), 1);
  const at::ScalarType type = weighted.scalar_type();
  if (branch.proj_weight.defined()) {
    result.out = at::matmul(result.out, branch.proj_weight.to(type).t());
  }
  if (branch.proj_bias.defined()) result.out = result.out + branch.proj_bias.to(type);
  return result;
}

std::optional<std::string> why_not_block_linear(const AttentionPlan& plan,
                                                const LinearBranch& branch,
                                                const AttentionCall& call) {
  const SoftmaxBranch* other = complemented(plan, branch);
  if (other == nullptr) return std::nullopt;
  const Selection& selection = other->selection;
  if (!selection.predicates.empty()) return "takes no complement of predicates";
  const auto wasteful = [](const BlockAxis& axis, int64_t tokens) {
    return axis.num_blocks() * axis.max_size() > kMostPadding * tokens + axis.max_size();
  };
  if (selection.classes.defined() && (wasteful(selection.q_blocks, call.q.size(2)) ||
                                      wasteful(selection.kv_blocks, call.k.size(2)))) {
    return "takes no complement of blocks of very different sizes";
  }
  return std::nullopt;
}

Partial run_block_linear(const AttentionPlan& plan, const LinearBranch& branch,
                         const AttentionCall& call) {
  const int64_t heads = call.q.size(1), dim = call.v.size(3);
  const at::Device device = call.q.device();
  const at::Tensor q = features(widened(call.q), branch.feature_map);
  at::Tensor invalid = call.kv_layout.valid_mask();
  if (invalid.defined()) invalid = invalid.logical_not().transpose(2, 3);
  at::Tensor k = features(per_head(widened(call.k), heads), branch.feature_map);
  if (invalid.defined()) k = k.masked_fill(invalid, 0);
  const at::Tensor v = counted_values(call, invalid);
  const SoftmaxBranch* other = complemented(plan, branch);
  at::Tensor sums;
  if (other == nullptr) {
    sums = at::matmul(q, at::matmul(k.transpose(2, 3), v));
  } else if (!other->selection.classes.defined()) {
    sums = q.new_zeros({q.size(0), heads, q.size(2), dim + 1});
  } else {
    const Selection& selection = other->selection;
    const Blocked rows(selection.q_blocks, plan.q_order, call.q_layout, device, heads);
    const Blocked keys(selection.kv_blocks, plan.kv_order, call.kv_layout, device, heads);
    const at::Tensor states = at::matmul(keys.split(k).transpose(3, 4), keys.split(v));
    const at::Tensor skipped = selection.classes.eq(block_class::skip).to(states.scalar_type());
    const at::Tensor taken =
        at::matmul(skipped, states.flatten(3)).unflatten(3, {states.size(3), states.size(4)});
    sums = rows.join(at::matmul(rows.split(q), taken));
  }
  return finish_linear(branch, sums.narrow(3, 0, dim), sums.narrow(3, dim, 1));
}

}  // namespace fovea
