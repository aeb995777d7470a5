#include "tests/conformance/suite.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <limits>
#include <set>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/autograd.h>

#include "core/attention/block_pool.h"
#include "core/attention/executors/checked.h"
#include "core/attention/executors/reference.h"
#include "core/attention/plan_data.h"
#include "core/check.h"
#include "core/device.h"

namespace fovea::test {
namespace {

// NaN equals NaN.
bool same_bits(const at::Tensor& a, const at::Tensor& b) {
  if (!a.defined() || !b.defined()) return a.defined() == b.defined();
  return a.sizes() == b.sizes() &&
         a.eq(b).logical_or(a.isnan().logical_and(b.isnan())).all().item<bool>();
}

bool same_bits(const AttentionResult& a, const AttentionResult& b) {
  return same_bits(a.out, b.out) && same_bits(a.lse, b.lse);
}

class Threads {
 public:
  explicit Threads(int count) : before_(at::get_num_threads()) { set_num_threads(count); }
  ~Threads() { set_num_threads(before_); }
  Threads(const Threads&) = delete;
  Threads& operator=(const Threads&) = delete;

 private:
  int before_;
};

bool is_softmax_only(const AttentionPlan& plan) {
  return std::all_of(plan.branches.begin(), plan.branches.end(), [](const Branch& branch) {
    return std::holds_alternative<SoftmaxBranch>(branch.kind) ||
           std::holds_alternative<ReuseBranch>(branch.kind);
  });
}

bool is_quantized(const AttentionPlan& plan) {
  return std::any_of(plan.branches.begin(), plan.branches.end(), [](const Branch& branch) {
    const auto* softmax = std::get_if<SoftmaxBranch>(&branch.kind);
    return softmax != nullptr && !softmax->precision.is_storage();
  });
}

// Also counts it. Why the executor does not run the problem is a reason, and said.
std::optional<Finding> refusal(const Executor& executor, const Problem& problem, Tally& tally,
                               bool& refused) {
  validate(problem.plan, problem.call);
  check_data(problem.plan, problem.call);
  const auto reason = executor.why_not(problem.plan, problem.call);
  refused = reason.has_value();
  if (!refused) {
    ++tally.ran;
    ++tally.kinds[problem.kind];
    return std::nullopt;
  }
  ++tally.refused;
  ++tally.reasons[*reason];
  if (!reason->empty()) return std::nullopt;
  return Finding{"reason", "refuses without a reason: " + problem.describe()};
}

std::optional<Finding> check_form(const Problem& problem, const AttentionResult& result) {
  const AttentionCall& call = problem.call;
  const std::vector<int64_t> sizes = {call.q.size(0), call.q.size(1), call.q.size(2),
                                      call.v.size(3)};
  if (result.out.sizes() != sizes || result.out.scalar_type() != call.q.scalar_type()) {
    return Finding{"form", fovea::str("out is ", result.out.sizes(), " ", result.out.scalar_type(),
                                      ": ", problem.describe())};
  }
  if (!result.lse.defined()) {
    if (!call.needs_lse) return std::nullopt;
    return Finding{"form", "no log-sum-exp: " + problem.describe()};
  }
  const auto wide = call.q.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  if (result.lse.sizes() == at::IntArrayRef(sizes).slice(0, 3) &&
      result.lse.scalar_type() == wide) {
    return std::nullopt;
  }
  return Finding{"form", fovea::str("lse is ", result.lse.sizes(), " ", result.lse.scalar_type(),
                                    ": ", problem.describe())};
}

std::optional<Finding> check_rules(const Executor& executor, const Problem& problem,
                                   const AttentionResult& result, Tally& tally) {
  Comparison comparison = compare_with_reference(problem.plan, problem.call, result, at::Tensor());
  if (promises_of(executor).rounds_pooled_keys) {
    comparison.key_error = pooled_key_error(problem.plan, problem.call.q.scalar_type());
  }
  const std::vector<RuleResult> rules = judge(comparison);
  for (const RuleResult& rule : rules) {
    double& worst = tally.worst[rule.rule];
    worst = std::max(worst, rule.ratio);
  }
  if (rules.empty()) return std::nullopt;
  const RuleResult& worst = worst_of(rules);
  if (worst.ratio <= promises_of(executor).allowance) return std::nullopt;
  return Finding{worst.rule, fovea::str("error ", worst.error, ", allowed ", worst.bound,
                                        ", at batch ", worst.batch, " head ", worst.head, " row ",
                                        worst.row, " of ", problem.describe())};
}

// bool [batch, kv_heads, kv_len, 1]: keys and values that nothing in the plan may depend on.
at::Tensor unused_keys(const Problem& problem) {
  const AttentionCall& call = problem.call;
  const int64_t kv_heads = call.k.size(1);
  at::Tensor used = at::zeros({call.k.size(0), kv_heads, call.k.size(2)}, at::kBool);
  used = used.to(call.k.device());
  const at::Tensor valid = call.kv_layout.valid_mask();  // [batch, 1, 1, kv_len]
  for (const Branch& branch : problem.plan.branches) {
    const auto* softmax = std::get_if<SoftmaxBranch>(&branch.kind);
    const bool exact = softmax != nullptr && softmax->selection.summaries.empty() &&
                       softmax->precision.is_storage();
    if (std::holds_alternative<ReuseBranch>(branch.kind) || (exact && softmax->keys)) continue;
    at::Tensor seen = at::ones_like(used);
    if (exact) {
      seen = exact_pairs(problem.plan, *softmax, call)
                 .expand({call.q.size(0), call.q.size(1), call.q.size(2), call.k.size(2)})
                 .any(2)
                 .unflatten(1, {kv_heads, -1})
                 .any(2);
    }
    used = used.logical_or(seen);
  }
  if (valid.defined()) used = used.logical_and(valid.squeeze(2));
  return used.logical_not().unsqueeze(3);
}

// With a number in padding, and one in all else that is not used.
Problem poisoned(const Problem& problem, double in_padding, double elsewhere) {
  Problem out = problem;
  const at::Tensor valid = problem.call.kv_layout.valid_mask();
  const at::Tensor unused = unused_keys(problem);
  for (at::Tensor* x : {&out.call.k, &out.call.v}) {
    *x = x->masked_fill(unused, elsewhere);
    if (valid.defined()) x->masked_fill_(valid.logical_not().transpose(2, 3), in_padding);
  }
  return out;
}

std::optional<Finding> check_poison(Executor& executor, const Problem& problem) {
  const double huge = problem.call.k.scalar_type() == at::kHalf ? 6e4 : 1e30;
  const Problem clean = poisoned(problem, 0, 0);
  const AttentionResult expected = executor.run(clean.plan, clean.call, nullptr);
  for (const double in_padding : {std::numeric_limits<double>::quiet_NaN(), huge}) {
    const Problem bad = poisoned(problem, in_padding, huge);
    if (same_bits(executor.run(bad.plan, bad.call, nullptr), expected)) continue;
    return Finding{"poison", "keys that are not seen change the result: " + problem.describe()};
  }
  return std::nullopt;
}

// Rows of keys at the ends of the sequence, of its blocks and of what is valid.
std::set<int64_t> retrieval_targets(const Problem& problem) {
  const AttentionCall& call = problem.call;
  const int64_t length = call.k.size(2);
  std::set<int64_t> rows = {0, length - 1, length / 2, std::min<int64_t>(length - 1, 64)};
  const auto& selection = std::get<SoftmaxBranch>(problem.plan.branches[0].kind).selection;
  if (selection.classes.defined()) {
    const at::Tensor offsets = selection.kv_blocks.offsets(at::kCPU)[0][0];
    const at::Tensor order = problem.plan.kv_order.rows(call.kv_layout, at::kCPU)[0][0];
    const int64_t edge = offsets[offsets.size(0) / 2].item<int64_t>();
    if (edge < length) rows.insert(order[edge].item<int64_t>());
    if (edge > 0) rows.insert(order[edge - 1].item<int64_t>());
  }
  int64_t begin = 0;
  for (size_t i = 0; i < call.kv_layout.segments().size(); ++i) {
    const at::Tensor& valid = call.kv_layout.valid_len()[i];
    const int64_t last = valid.defined() ? begin + valid[0].item<int64_t>() - 1 : begin;
    if (last >= begin) rows.insert(last);
    begin += call.kv_layout.segments()[i].capacity;
  }
  return rows;
}

std::optional<Finding> check_retrieval(Executor& executor, const Problem& zeros, int64_t target,
                                       Tally& tally) {
  Problem problem = zeros;
  AttentionCall& call = problem.call;
  const double dim = static_cast<double>(call.q.size(3));
  const double size = std::sqrt(64 / std::sqrt(dim));  // a logit of 64 above all others
  call.q = at::full_like(call.q, size);
  call.k = call.k.clone();
  call.k.select(2, target).fill_(size);
  const AttentionResult result = executor.run(problem.plan, call, nullptr);
  if (auto finding = check_rules(executor, problem, result, tally)) return finding;
  const auto& softmax = std::get<SoftmaxBranch>(problem.plan.branches[0].kind);
  const std::vector<int64_t> pairs = {call.q.size(0), call.q.size(1), call.q.size(2),
                                      call.k.size(2)};
  const at::Tensor sees =
      exact_pairs(problem.plan, softmax, call).expand(pairs).select(3, target).unsqueeze(3);
  const at::Tensor value = per_head(call.v.select(2, target), call.q.size(1)).unsqueeze(2);
  const at::Tensor error = (result.out - value).abs().to(at::kDouble);
  const double ulp = call.q.scalar_type() == at::kBFloat16 ? 8e-3
                     : call.q.scalar_type() == at::kHalf   ? 1e-3
                                                           : 1.2e-7;
  const at::Tensor wrong = error.gt(ulp * value.abs().to(at::kDouble) + 1e-20).logical_and(sees);
  if (!wrong.any().item<bool>()) return std::nullopt;
  return Finding{"retrieval", fovea::str("key ", target, " is not found: ", problem.describe())};
}

// Equal logits and values of 1; then values twice as large.
std::optional<Finding> check_uniform(Executor& executor, const Problem& zeros) {
  Problem problem = zeros;
  AttentionCall& call = problem.call;
  call.v = at::ones_like(call.v);
  const at::Tensor ones = executor.run(problem.plan, call, nullptr).out.to(at::kDouble);
  const double allowed = promises_of(executor).exact_averages ? 1.2e-7 : 1e-5;
  if (ones.sub(1).abs().gt(allowed).logical_and(ones.ne(0)).any().item<bool>()) {
    return Finding{"uniform", "averages of ones are not one: " + problem.describe()};
  }
  call.v = zeros.call.v;
  const at::Tensor once = executor.run(problem.plan, call, nullptr).out.clone();
  call.v = 2 * zeros.call.v;
  // Below, fp16 has fewer bits.
  const double least = once.scalar_type() == at::kHalf ? std::pow(2.0, -13) : 0;
  const at::Tensor small = once.abs().le(least);
  const at::Tensor twice = executor.run(problem.plan, call, nullptr).out;
  if (same_bits(twice.masked_fill(small, 0), (2 * once).masked_fill(small, 0))) return std::nullopt;
  return Finding{"doubling", "twice the values are not twice the output: " + problem.describe()};
}

constexpr std::array kLeaves = {&AttentionCall::q, &AttentionCall::k, &AttentionCall::v,
                                &AttentionCall::bias};
constexpr std::array kLeafNames = {"q", "k", "v", "bias"};

using Gradients = std::vector<at::Tensor>;  // of kLeaves, as far as they are there
using Run = std::function<AttentionResult(const AttentionCall&)>;

// The call in another type, with leaves that want gradients.
AttentionCall with_leaves(AttentionCall call, at::ScalarType dtype) {
  for (at::Tensor AttentionCall::*x : kLeaves) {
    if ((call.*x).defined()) call.*x = (call.*x).to(dtype).detach().clone().requires_grad_();
  }
  return call;
}

// Weights of results in a loss, the same for all executors.
at::Tensor loss_weights(const at::Tensor& like, double step) {
  return at::arange(like.numel(), like.options().dtype(at::kDouble))
      .add(1)
      .mul(step)
      .sin()
      .view(like.sizes());
}

// bool, broadcasts to out: rows that have numbers. Queries that are padding have none if quantized.
at::Tensor counted_rows(const AttentionCall& call) {
  const at::Tensor valid = call.q_layout.valid_mask();
  return valid.defined() ? valid.transpose(2, 3) : at::ones({1, 1, 1, 1}, at::kBool);
}

Gradients gradients_of(const AttentionCall& call, const Run& run) {
  const c10::AutoGradMode with_gradients(true);
  const AttentionResult result = run(call);
  const at::Tensor uncounted = counted_rows(call).to(call.q.device()).logical_not();
  at::Tensor loss =
      (result.out.to(at::kDouble) * loss_weights(result.out, 0.7)).masked_fill(uncounted, 0).sum();
  if (result.lse.defined()) {
    const at::Tensor seen = result.lse.masked_fill(result.lse.isinf(), 0).to(at::kDouble);
    loss = loss + (seen * loss_weights(seen, 0.3)).unsqueeze(3).masked_fill(uncounted, 0).sum();
  }
  std::vector<at::Tensor> leaves;
  for (at::Tensor AttentionCall::*x : kLeaves) {
    if ((call.*x).defined()) leaves.push_back(call.*x);
  }
  if (!loss.requires_grad()) return Gradients(leaves.size());
  return torch::autograd::grad({loss}, leaves, {}, std::nullopt, false, /*allow_unused=*/true);
}

// What rounding out to its type, or the logits, does to each gradient at most: it is in dout·out,
// which dout·v all but cancels where few keys are seen.
std::array<double, 4> gradient_floors(const AttentionCall& call) {
  const auto largest = [](const at::Tensor& x) {
    const at::Tensor norms = x.to(at::kDouble).nan_to_num(0, 0, 0).square().sum(3).sqrt();
    return norms.numel() == 0 ? 0 : norms.max().item<double>();
  };
  const at::Tensor padding = call.kv_layout.valid_mask();
  const auto keys = [&](const at::Tensor& x) {
    return padding.defined() ? x.masked_fill(padding.logical_not().transpose(2, 3), 0) : x;
  };
  const double scale = call.sm_scale.value_or(1 / std::sqrt(static_cast<double>(call.q.size(3))));
  const double unit = call.q.scalar_type() == at::kBFloat16 ? 0x1p-8
                      : call.q.scalar_type() == at::kHalf   ? 0x1p-11
                                                            : 0x1p-22;
  const double q = std::abs(scale) * largest(call.q), k = std::abs(scale) * largest(keys(call.k));
  const double logits = q * largest(keys(call.k));
  const double terms = std::sqrt(
      static_cast<double>(call.q.size(0) * call.q.size(1) * call.q.size(2) * call.v.size(3)));
  const double of_v = terms * (unit + 0x1p-22 * logits), of_s = of_v * (1 + largest(keys(call.v)));
  return {of_s * k, of_s * q, of_v, of_s};
}

// Rule G3. Padding among the queries holds no NaN: it would be in every key's gradient.
std::optional<Finding> check_gradients(Executor& executor, const Problem& problem) {
  AttentionCall call = problem.call;
  call.q = call.q.nan_to_num(0, 0, 0);
  const AttentionPlan& plan = problem.plan;
  const AttentionCall own = with_leaves(call, call.q.scalar_type());
  const bool refused = [&] {
    const c10::AutoGradMode with_gradients(true);
    return executor.why_not(plan, own).has_value();
  }();
  if (refused) return std::nullopt;
  const Gradients x =
      gradients_of(own, [&](const AttentionCall& c) { return executor.run(plan, c, nullptr); });
  const auto reference = [&](at::ScalarType dtype, const ReferenceOptions& options) {
    return gradients_of(with_leaves(call, dtype), [&](const AttentionCall& c) {
      return reference_attention(plan, c, options);
    });
  };
  const bool quantized = is_quantized(plan);
  const Gradients r = reference(at::kDouble, {}),
                  b = reference(call.q.scalar_type(), {.in_storage_type = !quantized});
  std::vector<Gradients> others;
  for (const ReferenceOptions& options : other_roundings(plan, call, at::Tensor())) {
    others.push_back(reference(at::kDouble, options));
  }
  const auto floors = gradient_floors(call);
  for (size_t i = 0, leaf = 0; i < kLeaves.size(); ++i) {
    if (!(call.*kLeaves[i]).defined()) continue;
    const size_t at = leaf++;
    if (!r[at].defined()) continue;
    const auto length = [&](const at::Tensor& other) {
      return (other.to(at::kDouble) - r[at]).norm().item<double>();
    };
    double bound = 3 * length(b[at]) + 1.5 * length(r[at].to((own.*kLeaves[i]).scalar_type()));
    if (!std::isfinite(bound)) continue;  // plain algebra overflows and is no measure
    // Parts that are merged are rounded once more each.
    bound += floors[i] + 0x1p-18 * r[at].norm().item<double>();
    for (const Gradients& other : others) bound += length(other[at]);
    const double error = x[at].defined() ? length(x[at]) : r[at].norm().item<double>();
    if (error <= bound * promises_of(executor).allowance) continue;
    return Finding{"G3",
                   fovea::str("gradient of ", kLeafNames[i], ": error ", error, ", allowed ", bound,
                              " of ", r[at].norm().item<double>(), ": ", problem.describe())};
  }
  return std::nullopt;
}

}  // namespace

std::string Tally::describe() const {
  std::string out = fovea::str(ran, " problems ran, ", refused, " refused;");
  for (const auto& [rule, ratio] : worst) out += fovea::str(" ", rule, " ", ratio);
  for (const auto& [kind, count] : kinds) out += fovea::str("\n  ran ", count, ": ", kind);
  for (const auto& [reason, count] : reasons)
    out += fovea::str("\n  refused ", count, ": ", reason);
  return out;
}

Promises promises_of(const Executor& executor) {
  // LibTorch adds up in another order with another number of threads, and its blocks of keys cost
  // accuracy on some processors (M1 and M4 2.2 times what is allowed); the reference divides
  // weights before it multiplies with them.
  const std::string name = executor.name();
  const bool ours = name != "sdpa" && name != "reference";
  return {.same_bits_for_any_threads = ours,
          .exact_averages = ours,
          .allowance = name == "sdpa" ? 4.0 : 1.0,
          .exact_gradients = name != "sdpa",
          .rounds_pooled_keys = name.rfind("cuda", 0) == 0};
}

std::optional<Finding> examine(Executor& executor, const Problem& problem, Tally& tally) {
  const c10::NoGradGuard no_gradients;
  bool refused = false;
  if (auto finding = refusal(executor, problem, tally, refused)) return finding;
  if (refused) return std::nullopt;
  const auto run = [&] { return executor.run(problem.plan, problem.call, nullptr); };
  const AttentionResult result = run();
  if (auto finding = check_form(problem, result)) return finding;
  if (auto finding = check_rules(executor, problem, result, tally)) return finding;
  if (!same_bits(run(), result)) {
    return Finding{"repeat", "other bits in the second run: " + problem.describe()};
  }
  // Threads are started anew each time, which takes longer than most problems.
  const bool changes_threads =
      problem.number % 8 == 0 && promises_of(executor).same_bits_for_any_threads;
  if (problem.call.q.is_cpu() && changes_threads) {
    const Threads two(at::get_num_threads() == 2 ? 1 : 2);
    if (!same_bits(run(), result)) {
      return Finding{"threads", "other bits with two threads: " + problem.describe()};
    }
  }
  if (auto finding = check_poison(executor, problem)) return finding;
  const bool differentiates = problem.number % 4 == 0 || is_quantized(problem.plan);
  if (!differentiates || !promises_of(executor).exact_gradients) return std::nullopt;
  return is_softmax_only(problem.plan) ? check_gradients(executor, problem) : std::nullopt;
}

std::optional<Finding> examine_retrieval(Executor& executor, const Problem& problem, Tally& tally) {
  const c10::NoGradGuard no_gradients;
  bool refused = false;
  if (auto finding = refusal(executor, problem, tally, refused)) return finding;
  if (refused) return std::nullopt;
  for (const int64_t target : retrieval_targets(problem)) {
    if (auto finding = check_retrieval(executor, problem, target, tally)) return finding;
  }
  return check_uniform(executor, problem);
}

}  // namespace fovea::test
