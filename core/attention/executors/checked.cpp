#include "core/attention/executors/checked.h"

#include <algorithm>
#include <cmath>
#include <set>

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include "core/attention/executors/reference.h"
#include "core/attention/planners/sampling.h"
#include "core/check.h"

namespace fovea {
namespace {

constexpr int64_t kEdges = 2;  // blocks of queries whose first and last rows are checked

// Numbers below `bound`, always the same for a call of one layer, step and guidance branch.
class Draw {
 public:
  explicit Draw(const AttentionCall& call)
      : seed_((call.context.step * 4096 + call.layer) * 2 +
              static_cast<int64_t>(call.context.guidance_branch)) {}
  int64_t below(int64_t bound) {
    const at::Tensor counter = at::full({1}, count_++, at::kLong);
    return random_below(counter, seed_, at::full({1}, bound, at::kLong)).item<int64_t>();
  }

 private:
  int64_t seed_, count_ = 0;
};

at::Tensor of_head(const at::Tensor& x, int64_t item, int64_t head, int64_t heads) {
  return x[x.size(0) == 1 ? 0 : item][head * x.size(1) / heads];
}

void add_block_edges(const AttentionPlan& plan, const AttentionCall& call, Draw& draw,
                     std::set<int64_t>& rows) {
  const auto* softmax = std::get_if<SoftmaxBranch>(&plan.branches[0].kind);
  if (softmax == nullptr || softmax->selection.q_blocks.num_blocks() == 0) return;
  const BlockAxis& axis = softmax->selection.q_blocks;
  const int64_t item = draw.below(call.q.size(0)), heads = call.q.size(1);
  const int64_t head = draw.below(heads);
  const at::Tensor offsets = of_head(axis.offsets(at::kCPU), item, head, heads);
  const at::Tensor order = of_head(plan.q_order.rows(call.q_layout, at::kCPU), item, head, heads);
  for (int64_t i = 0; i < kEdges; ++i) {
    const int64_t block = draw.below(axis.num_blocks());
    const int64_t begin = offsets[block].item<int64_t>(), end = offsets[block + 1].item<int64_t>();
    if (begin >= end) continue;
    rows.insert(order[begin].item<int64_t>());
    rows.insert(order[end - 1].item<int64_t>());
  }
}

// Whether a softmax of the plan has such numbers.
template <typename F>
bool any_precision(const AttentionPlan& plan, F f) {
  return std::any_of(plan.branches.begin(), plan.branches.end(), [&](const Branch& branch) {
    const auto* softmax = std::get_if<SoftmaxBranch>(&branch.kind);
    return softmax != nullptr && f(softmax->precision);
  });
}

bool is_quantized(const AttentionPlan& plan) {
  return any_precision(plan, [](const Precision& x) { return !x.is_storage(); });
}

bool quantizes_weights(const AttentionPlan& plan) {
  return any_precision(plan,
                       [](const Precision& x) { return x.p.format != NumberFormat::storage; });
}

bool has_weights_by_powers_of_2(const AttentionPlan& plan) {
  return any_precision(plan, [](const Precision& x) {
    return x.p.format == NumberFormat::e4m3 && x.p.unit == ScaleUnit::head;
  });
}

AttentionPlan unquantized(AttentionPlan plan) {
  for (Branch& branch : plan.branches) {
    if (auto* softmax = std::get_if<SoftmaxBranch>(&branch.kind)) softmax->precision = {};
  }
  return plan;
}

AttentionCall in_doubles(AttentionCall call) {
  for (at::Tensor* x : {&call.q, &call.k, &call.v, &call.bias}) {
    if (x->defined()) *x = x->to(at::kDouble);
  }
  return call;
}

// See `Comparison::logit_size`; what is not finite counts as 0.
at::Tensor logit_size(const AttentionPlan& plan, const AttentionCall& wide,
                      const at::Tensor& rows) {
  const auto norms = [](const at::Tensor& x) {
    return x.to(at::kDouble).square().sum(3).sqrt().nan_to_num(0, 0);
  };
  at::Tensor keys = norms(wide.k);  // [batch, kv_heads, kv_len]
  const at::Tensor valid = wide.kv_layout.valid_mask();
  if (valid.defined()) keys = keys.masked_fill(valid.squeeze(2).logical_not(), 0);
  at::Tensor largest = keys.size(2) == 0 ? at::zeros({1}, keys.options()) : keys.amax();
  for (const Branch& branch : plan.branches) {
    const auto* softmax = std::get_if<SoftmaxBranch>(&branch.kind);
    if (softmax == nullptr || !softmax->keys || softmax->keys->k.numel() == 0) continue;
    largest = at::maximum(largest, norms(softmax->keys->k).amax());
  }
  const double scale = wide.sm_scale.value_or(1 / std::sqrt(static_cast<double>(wide.q.size(3))));
  const at::Tensor q = rows.defined() ? wide.q.index_select(2, rows) : wide.q;
  return norms(q) * largest * std::abs(scale);
}

// See `Comparison::jump` and `sum_jump`; undefined where no weights are quantized.
//
// wide  the call in fp64
void add_jumps(Comparison& comparison, const AttentionPlan& plan, const AttentionCall& call,
               const AttentionCall& wide, const at::Tensor& rows) {
  const auto add = [](at::Tensor& to, const at::Tensor& jump) {
    to = to.defined() ? to + jump.abs() : jump.abs();
  };
  const auto add_jump = [&](const AttentionResult& from, const AttentionResult& to) {
    add(comparison.jump, (to.out - from.out).to(at::kDouble));
    if (!to.lse.defined()) return;
    add(comparison.sum_jump, (to.lse - from.lse).to(at::kDouble).expm1().nan_to_num(0, 0, 0));
  };
  for (const ReferenceOptions& options : other_roundings(plan, call, rows)) {
    add_jump(comparison.exact, reference_attention(plan, wide, options));
    add_jump(comparison.plain, reference_attention(plan, call, options));
  }
}

}  // namespace

double weight_error(const AttentionPlan& plan, const AttentionCall& call) {
  if (!quantizes_weights(plan) || call.q.scalar_type() == at::kDouble) return 0;
  const bool cut_off = call.q.is_cuda() && any_precision(plan, [](const Precision& x) {
                         return x.q.format == NumberFormat::e4m3;
                       });
  const at::Tensor size = logit_size(plan, call, at::Tensor());
  return std::pow(2.0, -20) +
         std::pow(2.0, cut_off ? -13 : -22) * (size.numel() == 0 ? 0 : size.max().item<double>());
}

std::vector<ReferenceOptions> other_roundings(const AttentionPlan& plan, const AttentionCall& call,
                                              const at::Tensor& rows) {
  const double nudge = weight_error(plan, call);
  if (nudge == 0) return {};
  std::vector<ReferenceOptions> out = {{.rows = rows, .nudge = -nudge},
                                       {.rows = rows, .nudge = nudge}};
  if (has_weights_by_powers_of_2(plan)) out.push_back({.rows = rows, .keeps_small_weights = true});
  return out;
}

double weight_sum_error(const AttentionPlan& plan, at::Device device) {
  return device.is_cuda() && has_weights_by_powers_of_2(plan) ? 4e-3 : 1e-3;
}

at::Tensor sampled_rows(const AttentionPlan& plan, const AttentionCall& call, int64_t count) {
  const int64_t q_len = call.q.size(2);
  if (q_len <= count) return at::arange(q_len, at::kLong);
  std::set<int64_t> rows = {0, q_len - 1};
  Draw draw(call);
  if (call.q.size(0) > 0 && call.q.size(1) > 0) add_block_edges(plan, call, draw, rows);
  while (static_cast<int64_t>(rows.size()) < count) rows.insert(draw.below(q_len));
  return at::tensor(std::vector<int64_t>(rows.begin(), rows.end()), at::kLong);
}

double pooled_key_error(const AttentionPlan& plan, at::ScalarType dtype) {
  const bool pools =
      std::any_of(plan.branches.begin(), plan.branches.end(), [](const Branch& branch) {
        const auto* softmax = std::get_if<SoftmaxBranch>(&branch.kind);
        return softmax != nullptr && !softmax->selection.summaries.empty();
      });
  if (!pools || (dtype != at::kBFloat16 && dtype != at::kHalf)) return 0;
  return std::pow(2.0, dtype == at::kBFloat16 ? -8 : -11);
}

Comparison compare_with_reference(const AttentionPlan& plan, const AttentionCall& call,
                                  const AttentionResult& result, const at::Tensor& rows) {
  const c10::NoGradGuard no_gradients;
  const auto some = [&](const at::Tensor& x) {
    return x.defined() && rows.defined() ? x.index_select(2, rows) : x;
  };
  const AttentionCall wide = in_doubles(call);
  Comparison out;
  // A product of matrices may be off by 4 √k ulp, k its inner size.
  for (const Branch& branch : plan.branches) {
    if (!std::holds_alternative<LinearBranch>(branch.kind)) continue;
    const auto inner = static_cast<double>(call.k.size(2) + call.k.size(3));
    out.slack = call.q.scalar_type() == at::kDouble ? 0 : 4 * std::sqrt(inner) * std::pow(2.0, -24);
  }
  out.logit_size = logit_size(plan, wide, rows);
  if (call.q.is_cuda()) out.key_error = pooled_key_error(plan, call.q.scalar_type());
  out.result = {some(result.out), some(result.lse)};
  out.exact = reference_attention(plan, wide, {.rows = rows});
  const bool quantized = is_quantized(plan);
  out.plain = reference_attention(plan, call, {.rows = rows, .in_storage_type = !quantized});
  if (quantized) {
    add_jumps(out, plan, call, wide, rows);
    out.sum_error = weight_sum_error(plan, call.q.device());
    // Queries that are padding have no part in scales, and so none to be held to.
    at::Tensor padding = call.q_layout.valid_mask();
    if (padding.defined()) {
      padding = some(padding.logical_not().transpose(2, 3));  // [batch, 1, rows, 1]
      for (AttentionResult* x : {&out.result, &out.exact, &out.plain}) {
        x->out = x->out.masked_fill(padding, 0);
        if (x->lse.defined()) x->lse = x->lse.masked_fill(padding.squeeze(3), 0);
      }
      if (out.jump.defined()) out.jump = out.jump.masked_fill(padding, 0);
    }
    out.unquantized = reference_attention(unquantized(plan), wide, {.rows = rows}).out;
  }
  return out;
}

CheckedExecutor::CheckedExecutor(std::unique_ptr<Executor> executor, int64_t rows)
    : executor_(std::move(executor)), rows_(rows) {}

AttentionResult CheckedExecutor::run(const AttentionPlan& plan, const AttentionCall& call,
                                     const LoweredPlan* lowered) {
  AttentionResult result = executor_->run(plan, call, lowered);
  if (result.out.numel() == 0) return result;
  const at::Tensor rows = sampled_rows(plan, call, rows_);
  const std::vector<RuleResult> rules =
      judge(compare_with_reference(plan, call, result, rows.to(call.q.device())));
  if (rules.empty()) return result;
  const RuleResult& worst = worst_of(rules);
  require(worst.ratio <= 1, ErrorCode::non_finite, "attention", "executor ", executor_->name(),
          ", plan of ", plan.planner, ", layer ", call.layer, ", step ", call.context.step,
          ": batch ", worst.batch, ", head ", worst.head, ", row ", rows[worst.row].item<int64_t>(),
          ": rule ", worst.rule, ": error ", worst.error, ", allowed ", worst.bound);
  return result;
}

}  // namespace fovea
