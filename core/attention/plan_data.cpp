#include "core/attention/plan_data.h"

#include <ATen/ATen.h>

#include "core/check.h"

namespace fovea {
namespace {

template <typename... Parts>
void need(bool condition, const AttentionPlan& plan, const Parts&... parts) {
  require(condition, ErrorCode::bad_data, "plan of " + plan.planner, parts...);
}

bool fits(int64_t size, int64_t to) { return size == 1 || size == to; }

// Of tokens on another device no more than the shape.
void check_order(const AttentionPlan& plan, const TokenOrder& order, const TokenLayout& layout,
                 const char* side, const at::Tensor& tokens) {
  const bool is_index = order.kind() == TokenOrder::Kind::index;
  if (order.is_identity() || !(is_index || tokens.is_cpu())) return;
  const at::Tensor rows = tokens.is_cpu() ? order.rows(layout, at::kCPU) : order.index_rows();
  need(fits(rows.size(0), tokens.size(0)) && fits(rows.size(1), tokens.size(1)), plan, side,
       " order of shape ", rows.sizes(), " for ", tokens.size(0), " items and ", tokens.size(1),
       " heads");
  if (!is_index || !tokens.is_cpu()) return;
  const at::Tensor sorted = std::get<0>(rows.sort(2));
  need(sorted.eq(at::arange(rows.size(2), rows.options())).all().item<bool>(), plan, side,
       " order is no permutation of the rows 0 .. ", rows.size(2) - 1);
}

// lead  batch, heads, and heads that may share theirs
void check_axis(const AttentionPlan& plan, const BlockAxis& axis, int64_t tokens, const char* side,
                std::array<int64_t, 3> lead) {
  if (!axis.device_offsets().defined()) return;  // `validate` knows the others
  const at::Tensor offsets = axis.offsets(at::kCPU);
  const int64_t heads = offsets.size(1);
  need(offsets.size(2) > 0 && fits(offsets.size(0), lead[0]) &&
           (fits(heads, lead[1]) || heads == lead[2]),
       plan, side, " offsets of shape ", offsets.sizes(), " for ", lead[0], " items and ", lead[1],
       " heads");
  const at::Tensor sizes = offsets.diff();
  need(offsets.select(2, 0).eq(0).all().item<bool>() &&
           offsets.select(2, -1).eq(tokens).all().item<bool>() && sizes.ge(0).all().item<bool>(),
       plan, side, " offsets do not ascend from 0 to ", tokens);
  need(sizes.le(axis.max_size()).all().item<bool>(), plan, side, " blocks exceed ", axis.max_size(),
       " positions, their largest size");
}

bool broadcasts(const at::Tensor& x, at::IntArrayRef to) {
  if (x.dim() > static_cast<int64_t>(to.size())) return false;
  for (int64_t axis = 1; axis <= x.dim(); ++axis) {
    if (!fits(x.size(-axis), to[to.size() - static_cast<size_t>(axis)])) return false;
  }
  return true;
}

void check_branch(const AttentionPlan& plan, const SoftmaxBranch& branch,
                  const AttentionCall& call) {
  const int64_t batch = call.q.size(0), heads = call.q.size(1);
  const Selection& selection = branch.selection;
  if (branch.keys && branch.keys->bias.defined()) {
    const at::Tensor& bias = branch.keys->bias;
    need(bias.dim() == 3 && broadcasts(bias, {batch, heads, branch.keys->k.size(2)}), plan,
         "a bias of given keys of shape ", bias.sizes());
  }
  for (const Predicate& predicate : selection.predicates) {
    const auto* stored = std::get_if<StoredPredicate>(&predicate);
    if (stored == nullptr) continue;
    need(stored->visible.scalar_type() == at::kBool && stored->visible.dim() == 4 &&
             broadcasts(stored->visible, {batch, heads, call.q.size(2), call.k.size(2)}),
         plan, "stored bits of shape ", stored->visible.sizes(), " of ",
         stored->visible.scalar_type());
  }
  if (!selection.classes.defined() && branch.precision.is_storage()) return;
  const int64_t keys = branch.keys ? branch.keys->k.size(2) : call.k.size(2);
  check_axis(plan, selection.q_blocks, call.q.size(2), "query", {batch, heads, heads});
  const int64_t kv_heads = branch.keys ? branch.keys->k.size(1) : call.k.size(1);
  check_axis(plan, selection.kv_blocks, keys, "key", {batch, heads, kv_heads});
  if (!selection.classes.defined() || !selection.classes.is_cpu() || selection.classes.numel() == 0)
    return;
  const auto known = static_cast<int64_t>(block_class::first_summary + selection.summaries.size());
  const int64_t highest = selection.classes.max().item<int64_t>();
  need(highest < known, plan, "class ", highest, " of a block: below ", known, " expected");
}

void check_branch(const AttentionPlan& plan, const PooledValuesBranch& branch,
                  const AttentionCall& call) {
  const int64_t batch = call.q.size(0), heads = call.q.size(1);
  check_axis(plan, branch.q_blocks, call.q.size(2), "query", {batch, heads, heads});
  check_axis(plan, branch.kv_blocks, call.k.size(2), "key", {batch, heads, call.k.size(1)});
}

}  // namespace

void check_data(const AttentionPlan& plan, const AttentionCall& call) {
  check_order(plan, plan.q_order, call.q_layout, "query", call.q);
  check_order(plan, plan.kv_order, call.kv_layout, "key", call.k);
  for (const Branch& branch : plan.branches) {
    if (const auto* softmax = std::get_if<SoftmaxBranch>(&branch.kind)) {
      check_branch(plan, *softmax, call);
    } else if (const auto* pooled = std::get_if<PooledValuesBranch>(&branch.kind)) {
      check_branch(plan, *pooled, call);
    }
  }
  const std::vector<int64_t> out = {call.q.size(0), call.q.size(1), call.q.size(2), call.v.size(3)};
  for (const at::Tensor& weight : plan.group_weights) {
    need(!weight.defined() || broadcasts(weight, out), plan, "weights of shape ", weight.sizes(),
         " do not broadcast to ", at::IntArrayRef(out));
  }
}

}  // namespace fovea
