#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "core/attention/executors/checked.h"
#include "core/attention/executors/reference.h"
#include "tests/conformance/suite.h"

// What holds for every plan, on every executor.

namespace fovea::test {
namespace {

// The same keys in two branches of one group: the even blocks of keys and the odd ones, or those
// before a key and those from it on.
std::optional<AttentionPlan> split(const Problem& problem) {
  const AttentionPlan& plan = problem.plan;
  const auto* whole = std::get_if<SoftmaxBranch>(&plan.branches[0].kind);
  if (whole == nullptr || whole->keys || plan.branches.size() != 1 ||
      !whole->precision.is_storage()) {
    return std::nullopt;
  }
  AttentionPlan out = plan;
  out.branches.push_back(out.branches[0]);
  for (int64_t half = 0; half < 2; ++half) {
    Selection& selection = std::get<SoftmaxBranch>(out.branches[size_t(half)].kind).selection;
    if (selection.classes.defined()) {
      const at::Tensor column = at::arange(selection.classes.size(3));
      selection.classes = selection.classes.masked_fill(column.remainder(2).eq(half), 0);
    } else {
      const int64_t length = problem.call.k.size(2);
      const at::Tensor first = at::arange(length).lt(length / 3).view({1, 1, 1, length});
      const at::Tensor own = half == 0 ? first : first.logical_not();
      selection.predicates.emplace_back(
          StoredPredicate{own.expand({1, 1, problem.call.q.size(2), length})});
    }
  }
  return out;
}

class EveryPlan : public testing::TestWithParam<at::ScalarType> {};

TEST_P(EveryPlan, IsTheMergeOfItsParts) {
  for (const auto& executor : make_executors()) {
    if (executor->name().rfind(kChecked, 0) == 0) continue;
    int64_t ran = 0;
    for (int64_t i = 0; i < 300; ++i) {
      const Problem problem = make_problem(i, GetParam(), at::kCPU);
      const auto parts = split(problem);
      if (!parts || executor->why_not(*parts, problem.call)) continue;
      ++ran;
      const AttentionResult merged = executor->run(*parts, problem.call, nullptr);
      const auto rules =
          judge(compare_with_reference(problem.plan, problem.call, merged, at::Tensor()));
      if (rules.empty()) continue;
      const RuleResult& worst = worst_of(rules);
      EXPECT_LE(worst.ratio, 1) << executor->name() << ": " << worst.rule << ": error "
                                << worst.error << ", allowed " << worst.bound << " of "
                                << problem.describe();
    }
    if (executor->name() == "reference") {
      EXPECT_GE(ran, 100);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Types, EveryPlan, testing::Values(at::kFloat, at::kBFloat16, at::kHalf),
                         [](const auto& info) { return std::string(toString(info.param)); });

}  // namespace
}  // namespace fovea::test
