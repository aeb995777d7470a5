#include "core/attention/plan.h"

#include <algorithm>

#include <ATen/ATen.h>

#include "core/check.h"

namespace fovea {
namespace {

template <typename... Parts>
void need(bool condition, const AttentionPlan& plan, const Parts&... parts) {
  require(condition, ErrorCode::usage, "plan of " + plan.planner, parts...);
}

bool broadcasts(int64_t size, int64_t to) { return size == 1 || size == to; }

// [batch or 1, heads or 1, rows, columns]
bool is_map(const at::Tensor& map, const AttentionCall& call, int64_t rows, int64_t columns) {
  return map.dim() == 4 && broadcasts(map.size(0), call.q.size(0)) &&
         broadcasts(map.size(1), call.q.size(1)) && map.size(2) == rows && map.size(3) == columns;
}

void check_blocks(const AttentionPlan& plan, const BlockAxis& axis, const char* side,
                  int64_t seq_len) {
  if (axis.device_offsets().defined()) return;  // `check_data` reads them
  const std::vector<int64_t>& offsets = axis.host_offsets();
  const int64_t covered = offsets.empty() ? 0 : offsets.back();
  need(covered == seq_len, plan, side, " blocks cover ", covered, " positions of ", seq_len);
}

void check_selection(const AttentionPlan& plan, const Selection& selection,
                     const AttentionCall& call, int64_t kv_len) {
  for (const Summary& summary : selection.summaries) {
    need(summary.pool >= 0, plan, "a summary of ", summary.pool, " keys");
  }
  need(selection.summaries.size() < 250, plan, selection.summaries.size(), " summaries");
  if (!selection.classes.defined()) {
    need(selection.summaries.empty(), plan, "summaries without a class map");
    return;
  }
  const int64_t nq = selection.q_blocks.num_blocks(), nk = selection.kv_blocks.num_blocks();
  need(selection.classes.scalar_type() == at::kByte && is_map(selection.classes, call, nq, nk),
       plan, "expected a class map uint8 [batch or 1, heads or 1, ", nq, ", ", nk, "], got ",
       selection.classes.scalar_type(), " ", selection.classes.sizes());
  check_blocks(plan, selection.q_blocks, "query", call.q.size(2));
  check_blocks(plan, selection.kv_blocks, "key", kv_len);
}

void check_scale(const AttentionPlan& plan, const Quantized& operand, const BlockAxis& axis,
                 bool allowed, const char* name) {
  if (operand.format == NumberFormat::storage) return;
  need(allowed, plan, name, " cannot have scales of this unit");
  need(operand.group >= 0, plan, name, ": a scale for ", operand.group, " positions");
  need(operand.unit != ScaleUnit::block || axis.num_blocks() > 0, plan, name,
       " has scales per block, but no blocks");
}

void check_precision(const AttentionPlan& plan, const SoftmaxBranch& branch,
                     const AttentionCall& call) {
  const Precision& precision = branch.precision;
  if (precision.is_storage()) return;
  const Selection& selection = branch.selection;
  need(!branch.keys && selection.summaries.empty(), plan,
       "quantized branches take the call's own keys only");
  const auto is_channel = [](const Quantized& x) { return x.unit == ScaleUnit::channel; };
  const auto is_token = [](const Quantized& x) { return x.unit == ScaleUnit::token; };
  check_scale(plan, precision.q, selection.q_blocks, !is_channel(precision.q), "q");
  check_scale(plan, precision.k, selection.kv_blocks, !is_channel(precision.k), "k");
  check_scale(plan, precision.v, selection.kv_blocks, !is_token(precision.v), "v");
  const bool p_fits = !is_channel(precision.p) && !is_token(precision.p) && precision.p.group == 0;
  check_scale(plan, precision.p, selection.q_blocks, p_fits, "p");
  check_scale(plan, precision.p, selection.kv_blocks, p_fits, "p");
  // Without a class map nothing else has looked at the blocks.
  if (selection.q_blocks.num_blocks() > 0) {
    check_blocks(plan, selection.q_blocks, "query", call.q.size(2));
  }
  if (selection.kv_blocks.num_blocks() > 0) {
    check_blocks(plan, selection.kv_blocks, "key", call.k.size(2));
  }
}

void check_branch(const AttentionPlan& plan, const SoftmaxBranch& branch,
                  const AttentionCall& call) {
  check_precision(plan, branch, call);
  int64_t kv_len = call.k.size(2);
  if (branch.keys) {
    const GivenKeys& keys = *branch.keys;
    need(keys.k.defined() && keys.v.defined() && keys.k.dim() == 4 && keys.v.dim() == 4, plan,
         "given keys are [batch, kv_heads, keys, head_dim], values the same");
    kv_len = keys.k.size(2);
    need(keys.v.size(2) == kv_len && keys.k.size(3) == call.k.size(3) &&
             keys.v.size(3) == call.v.size(3) && keys.k.size(0) == call.k.size(0) &&
             keys.v.sizes().slice(0, 2) == keys.k.sizes().slice(0, 2) &&
             call.q.size(1) % std::max<int64_t>(keys.k.size(1), 1) == 0,
         plan, "given keys ", keys.k.sizes(), " and values ", keys.v.sizes(),
         " do not go with queries ", call.q.sizes());
    need(branch.selection.predicates.empty(), plan, "predicates speak of the call's own keys");
  }
  check_selection(plan, branch.selection, call, kv_len);
}

void check_branch(const AttentionPlan& plan, const LinearBranch& branch,
                  const AttentionCall& call) {
  const int64_t dim = call.v.size(3);
  need(branch.epsilon >= 0, plan, "epsilon ", branch.epsilon);
  need(!branch.proj_weight.defined() || branch.proj_weight.sizes() == at::IntArrayRef{dim, dim},
       plan, "a projection of ", dim, " channels expected");
  need(!branch.proj_bias.defined() || branch.proj_bias.sizes() == at::IntArrayRef{dim}, plan,
       "a projection's bias of ", dim, " channels expected");
  if (!branch.complement_of) return;
  need(*branch.complement_of < plan.branches.size() &&
           std::holds_alternative<SoftmaxBranch>(plan.branches[*branch.complement_of].kind),
       plan, "branch ", *branch.complement_of, " is no softmax to complement");
  need(!std::get<SoftmaxBranch>(plan.branches[*branch.complement_of].kind).keys, plan,
       "given keys have no complement");
}

void check_branch(const AttentionPlan& plan, const PooledValuesBranch& branch,
                  const AttentionCall& call) {
  const int64_t nq = branch.q_blocks.num_blocks(), nk = branch.kv_blocks.num_blocks();
  need(branch.weights.defined() && is_map(branch.weights, call, nq, nk), plan,
       "expected weights [batch or 1, heads or 1, ", nq, ", ", nk, "]");
  check_blocks(plan, branch.q_blocks, "query", call.q.size(2));
  check_blocks(plan, branch.kv_blocks, "key", call.k.size(2));
}

void check_branch(const AttentionPlan& plan, const ReuseBranch& branch, const AttentionCall& call) {
  const std::vector<int64_t> shape = {call.q.size(0), call.q.size(1), call.q.size(2),
                                      call.v.size(3)};
  need(branch.out.defined() && branch.out.sizes() == shape, plan, "an earlier output of shape ",
       at::IntArrayRef(shape), " expected");
  need(!branch.lse.defined() || branch.lse.sizes() == at::IntArrayRef(shape).slice(0, 3), plan,
       "the earlier log-sum-exp has another shape");
}

bool has_lse(const Branch& branch) {
  if (const auto* reuse = std::get_if<ReuseBranch>(&branch.kind)) return reuse->lse.defined();
  return std::holds_alternative<SoftmaxBranch>(branch.kind);
}

void check_groups(const AttentionPlan& plan) {
  std::vector<int64_t> members(plan.branches.size(), 0), without_lse(plan.branches.size(), 0);
  for (const Branch& branch : plan.branches) {
    need(branch.group < plan.branches.size(), plan, "group ", branch.group, " of ",
         plan.branches.size(), " branches");
    ++members[branch.group];
    if (!has_lse(branch)) ++without_lse[branch.group];
  }
  for (size_t group = 0; group < plan.num_groups(); ++group) {
    need(members[group] > 0, plan, "group ", group, " is empty");
    need(members[group] == 1 || without_lse[group] == 0, plan, "group ", group,
         " merges branches of which one has no log-sum-exp");
  }
  need(plan.group_weights.size() <= plan.num_groups(), plan, plan.group_weights.size(),
       " weights of ", plan.num_groups(), " groups");
}

std::string describe_branch(const Branch& branch) {
  if (const auto* softmax = std::get_if<SoftmaxBranch>(&branch.kind)) {
    const Selection& selection = softmax->selection;
    std::string out = softmax->keys ? str("softmax over ", softmax->keys->k.size(2), " given keys")
                                    : std::string("softmax");
    if (selection.classes.defined()) {
      out += str(", ", selection.q_blocks.describe(), " by ", selection.kv_blocks.describe());
    }
    if (!selection.summaries.empty()) out += str(", ", selection.summaries.size(), " summaries");
    if (!selection.predicates.empty()) {
      out += str(", ", selection.predicates.size(), " predicates");
    }
    if (!softmax->precision.is_storage()) out += ", " + softmax->precision.describe();
    return out;
  }
  if (const auto* linear = std::get_if<LinearBranch>(&branch.kind)) {
    return linear->complement_of ? str("linear over what branch ", *linear->complement_of, " skips")
                                 : std::string("linear over all keys");
  }
  return std::holds_alternative<PooledValuesBranch>(branch.kind) ? "pooled values" : "reuse";
}

}  // namespace

AttentionPlan AttentionPlan::dense(std::string planner) {
  AttentionPlan plan;
  plan.planner = std::move(planner);
  plan.branches.push_back({SoftmaxBranch{}});
  return plan;
}

bool AttentionPlan::is_dense() const {
  if (branches.size() != 1) return false;
  const auto* softmax = std::get_if<SoftmaxBranch>(&branches[0].kind);
  const bool weighted = !group_weights.empty() && group_weights[0].defined();
  return softmax != nullptr && !softmax->keys && softmax->selection.is_everything() &&
         softmax->precision.is_storage() && !weighted;
}

size_t AttentionPlan::num_groups() const {
  size_t groups = 0;
  for (const Branch& branch : branches) groups = std::max(groups, branch.group + 1);
  return groups;
}

std::string AttentionPlan::describe() const {
  std::string out = str(planner, ": q ", q_order.describe(), ", kv ", kv_order.describe());
  for (const Branch& branch : branches) {
    out += str("; ", describe_branch(branch));
    if (num_groups() > 1) out += str(" (group ", branch.group, ")");
  }
  return out;
}

void validate(const AttentionPlan& plan, const AttentionCall& call) {
  need(!plan.branches.empty() && plan.branches.size() <= 4, plan, plan.branches.size(),
       " branches: one to four expected");
  check_groups(plan);
  for (const Branch& branch : plan.branches) {
    std::visit([&](const auto& kind) { check_branch(plan, kind, call); }, branch.kind);
  }
}

at::Tensor block_density(const Selection& selection, at::Device device) {
  if (!selection.classes.defined()) return at::ones({1, 1}, at::device(device));
  const auto sizes = [&](const BlockAxis& axis) {
    return axis.offsets(device).diff().to(at::kDouble);
  };
  const at::Tensor rows = sizes(selection.q_blocks).unsqueeze(3);
  const at::Tensor keys = sizes(selection.kv_blocks).unsqueeze(2);
  at::Tensor computed = selection.classes.eq(block_class::exact).to(at::kDouble) * keys;
  for (size_t i = 0; i < selection.summaries.size(); ++i) {
    const int64_t pool = selection.summaries[i].pool;
    const at::Tensor pooled =
        pool == 0 ? keys.gt(0).to(at::kDouble) : (keys / static_cast<double>(pool)).ceil();
    const auto value = static_cast<int64_t>(block_class::first_summary + i);
    computed = computed + selection.classes.eq(value).to(at::kDouble) * pooled;
  }
  const at::Tensor all = rows.sum({2, 3}) * keys.sum({2, 3});
  return ((computed * rows).sum({2, 3}) / all.clamp_min(1)).to(at::kFloat);
}

}  // namespace fovea
