#include "core/attention/plan_of_head.h"

#include <ATen/ATen.h>

#include "core/check.h"

namespace fovea {
namespace {

// Takes one head out of everything that has an axis of heads: of queries, of keys, or of 1.
class Cut {
 public:
  Cut(int64_t head, int64_t heads) : head_(head), heads_(heads) {}

  // The axis of heads counted from the first one, or from the last one where it is negative.
  at::Tensor operator()(const at::Tensor& x, int64_t axis = 1) const {
    if (!x.defined() || -axis > x.dim()) return x;
    const int64_t own = x.size(axis);
    return own == 1 ? x : x.narrow(axis, head_ * own / heads_, 1);
  }
  TokenOrder operator()(const TokenOrder& order) const {
    if (order.kind() == TokenOrder::Kind::index)
      return TokenOrder::index((*this)(order.index_rows()));
    if (order.kind() != TokenOrder::Kind::axes) return order;
    const auto own = static_cast<int64_t>(order.axes_per_head().size());
    const int64_t place = own == 1 ? 0 : head_ * own / heads_;
    return TokenOrder::axes({order.axes_per_head()[static_cast<size_t>(place)]});
  }
  BlockAxis operator()(const BlockAxis& axis) const {
    if (!axis.device_offsets().defined()) return axis;
    return BlockAxis::from_offsets((*this)(axis.device_offsets()), axis.max_size());
  }

  void cut(SoftmaxBranch& branch) const {
    Selection& selection = branch.selection;
    selection.q_blocks = (*this)(selection.q_blocks);
    selection.kv_blocks = (*this)(selection.kv_blocks);
    selection.classes = (*this)(selection.classes);
    for (Predicate& predicate : selection.predicates) {
      auto* stored = std::get_if<StoredPredicate>(&predicate);
      if (stored != nullptr) stored->visible = (*this)(stored->visible);
    }
    if (!branch.keys) return;
    GivenKeys& keys = *branch.keys;
    keys = {(*this)(keys.k), (*this)(keys.v), (*this)(keys.bias)};
  }
  void cut(LinearBranch&) const {}
  void cut(PooledValuesBranch& branch) const {
    branch.q_blocks = (*this)(branch.q_blocks);
    branch.kv_blocks = (*this)(branch.kv_blocks);
    branch.weights = (*this)(branch.weights);
  }
  void cut(ReuseBranch& branch) const {
    branch.out = (*this)(branch.out);
    branch.lse = (*this)(branch.lse);
  }

 private:
  int64_t head_, heads_;
};

}  // namespace

AttentionPlan plan_of_head(const AttentionPlan& plan, int64_t head, const AttentionCall& call) {
  require(head >= 0 && head < call.q.size(1), ErrorCode::usage, "plan of " + plan.planner, "head ",
          head, " of ", call.q.size(1));
  const Cut cut(head, call.q.size(1));
  AttentionPlan out = plan;
  out.q_order = cut(plan.q_order);
  out.kv_order = cut(plan.kv_order);
  for (Branch& branch : out.branches) {
    std::visit([&](auto& kind) { cut.cut(kind); }, branch.kind);
  }
  // Weights broadcast from the last axis on.
  for (at::Tensor& weight : out.group_weights) weight = cut(weight, -3);
  return out;
}

AttentionCall call_of_head(const AttentionCall& call, int64_t head) {
  const Cut cut(head, call.q.size(1));
  AttentionCall out = call;
  out.q = cut(call.q);
  out.k = cut(call.k);
  out.v = cut(call.v);
  out.bias = cut(call.bias, -3);
  return out;
}

}  // namespace fovea
