#include "core/attention/probe.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>

#include <ATen/ATen.h>

#include "core/attention/executors/reference.h"
#include "core/attention/plan_map.h"
#include "core/device.h"

namespace fovea {
namespace {

constexpr int64_t kEvery = 7;  // shares no factor with the layers and guidance branches of networks
constexpr int64_t kRows = 64;

bool is_planned(AttentionRole role) {
  return role == AttentionRole::self || role == AttentionRole::joint;
}

const SoftmaxBranch* own_softmax(const Branch& branch) {
  const auto* softmax = std::get_if<SoftmaxBranch>(&branch.kind);
  return softmax == nullptr || softmax->keys ? nullptr : softmax;
}

// The log-sum-exp of the keys that a plan takes one by one, [batch, heads, rows], or undefined.
at::Tensor kept_mass(const AttentionCall& call, const AttentionPlan& plan,
                     const AttentionResult& result, const at::Tensor& rows) {
  const SoftmaxBranch* branch = own_softmax(plan.branches[0]);
  if (branch == nullptr) return {};
  for (size_t i = 1; i < plan.branches.size(); ++i) {
    const bool is_softmax = std::holds_alternative<SoftmaxBranch>(plan.branches[i].kind);
    if (is_softmax || plan.branches[i].group == plan.branches[0].group) return {};
  }
  // A plan's is that of its first group.
  const bool is_plain = branch->precision.is_storage() && branch->selection.summaries.empty();
  if (is_plain && result.lse.defined()) return result.lse.index_select(2, rows).to(at::kFloat);
  AttentionPlan exact = plan;
  exact.branches = {{*branch, 0}};
  exact.group_weights = {};
  auto& softmax = std::get<SoftmaxBranch>(exact.branches[0].kind);
  softmax.precision = {};
  Selection& selection = softmax.selection;
  if (!selection.summaries.empty()) {
    selection.classes = selection.classes.eq(block_class::exact).to(at::kByte);
    selection.summaries.clear();
  }
  return reference_attention(exact, call, {.rows = rows}).lse.to(at::kFloat);
}

}  // namespace

std::optional<double> AttentionProbe::Mean::value() const {
  if (count == 0) return std::nullopt;
  return sum / static_cast<double>(count);
}

std::optional<double> AttentionProbe::density() const {
  return unknown_density_ ? std::nullopt : density_.value();
}
std::optional<double> AttentionProbe::error() const { return error_.value(); }
std::optional<double> AttentionProbe::recall() const { return recall_.value(); }

void AttentionProbe::observe(const AttentionCall& call, const AttentionPlan& plan,
                             const AttentionResult& result) {
  if (!is_planned(call.role)) return;
  if (plan.is_dense()) return density_.add(1);
  synchronize(call.q.device());  // what was queued before is not ours
  const auto start = std::chrono::steady_clock::now();
  count_density(call, plan);
  if (sparse_calls_++ % kEvery == 0) measure(call, plan, result);
  seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

void AttentionProbe::count_density(const AttentionCall& call, const AttentionPlan& plan) {
  const auto* branch = std::get_if<SoftmaxBranch>(&plan.branches[0].kind);
  const bool geometric = branch != nullptr && !branch->selection.predicates.empty() &&
                         !branch->selection.classes.defined();
  std::optional<double> density;
  if (geometric) {
    // Counting pairs one by one takes long, and the same predicates give the same again.
    const std::string key = plan.describe() + call.q_layout.describe() + call.kv_layout.describe();
    const auto known = by_predicate_.find(key);
    if (known == by_predicate_.end()) {
      density = plan_density(plan, call);
      if (density) by_predicate_[key] = *density;
    } else {
      density = known->second;
    }
  } else {
    density = plan_density(plan, call);
  }
  if (density) {
    density_.add(*density);
  } else {
    unknown_density_ = true;
  }
}

void AttentionProbe::measure(const AttentionCall& call, const AttentionPlan& plan,
                             const AttentionResult& result) {
  if (call.bias.defined()) return;
  const int64_t q_len = call.q.size(2), count = std::min(kRows, q_len);
  if (count == 0 || call.k.size(2) == 0) return;
  const at::Tensor rows = at::arange(count, at::TensorOptions(at::kLong).device(call.q.device()))
                              .mul(q_len)
                              .floor_divide(count);
  const auto wide = [](const at::Tensor& x) { return x.to(at::kFloat); };
  const int64_t group = call.q.size(1) / call.k.size(1);
  const at::Tensor q = wide(call.q.index_select(2, rows));
  const at::Tensor k = wide(call.k).repeat_interleave(group, 1);
  const at::Tensor v = wide(call.v).repeat_interleave(group, 1);
  const double scale = call.sm_scale.value_or(1 / std::sqrt(static_cast<double>(call.q.size(3))));
  at::Tensor logits = at::matmul(q, k.transpose(2, 3)) * scale;
  const at::Tensor valid = call.kv_layout.valid_mask();
  if (valid.defined()) {
    logits = logits.masked_fill(valid.logical_not(), -std::numeric_limits<double>::infinity());
  }
  const at::Tensor dense = at::matmul(at::softmax(logits, 3), v);
  const at::Tensor out = wide(result.out.index_select(2, rows));
  const double norm = dense.norm().item<double>();
  if (norm > 0) error_.add((out - dense).norm().item<double>() / norm);
  const at::Tensor kept = kept_mass(call, plan, result, rows);
  if (kept.defined())
    recall_.add((kept - at::logsumexp(logits, 3)).exp().clamp_max(1).mean().item<double>());
}

}  // namespace fovea
