#include "core/attention/class_sets.h"

#include <algorithm>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "core/attention/executors/reference.h"
#include "core/check.h"
#include "tests/core/attention/executor_case.h"
#include "tests/support/attention_cases.h"
#include "tests/support/files.h"

namespace fovea {
namespace {

using test::expect_error;

// All classes up to the second summary against each other.
TEST(ClassSets, FollowTheRuleForEachPairOfClasses) {
  const at::Tensor a = at::arange(4, at::kByte).view({1, 1, 4, 1});
  const at::Tensor b = at::arange(4, at::kByte).view({1, 1, 1, 4});
  const auto expect = [&](const at::Tensor& got, const std::vector<int>& by_hand) {
    EXPECT_EQ(got.scalar_type(), at::kByte);
    EXPECT_TRUE(got.flatten().to(at::kInt).equal(at::tensor(by_hand))) << got;
  };
  // Rows: skip, exact, summary 0, summary 1.
  expect(unite(a, b), {0, 1, 2, 3, 1, 1, 1, 1, 2, 1, 2, 2, 3, 1, 2, 3});
  expect(intersect(a, b), {0, 0, 0, 0, 0, 1, 1, 1, 0, 1, 2, 2, 0, 1, 2, 3});
  expect(without(a, b), {0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0});
  expect(complement(a), {1, 0, 0, 0});
}

TEST(ClassSets, KeepTheLawsOfSets) {
  at::manual_seed(1);
  const auto draw = [] { return at::randint(5, {2, 3, 7, 9}).to(at::kByte); };
  for (int round = 0; round < 20; ++round) {
    const at::Tensor a = draw(), b = draw(), c = draw();
    EXPECT_TRUE(unite(a, b).equal(unite(b, a)));
    EXPECT_TRUE(unite(a, unite(b, c)).equal(unite(unite(a, b), c)));
    EXPECT_TRUE(intersect(a, intersect(b, c)).equal(intersect(intersect(a, b), c)));
    EXPECT_TRUE(intersect(a, unite(b, c)).equal(unite(intersect(a, b), intersect(a, c))));
    EXPECT_TRUE(unite(without(a, b), intersect(a, b)).ne(0).equal(a.ne(0)));
    EXPECT_TRUE(intersect(without(a, b), b).eq(0).all().item<bool>());
    EXPECT_TRUE(complement(unite(a, b)).equal(intersect(complement(a), complement(b))));
    EXPECT_TRUE(complement(complement(a)).equal(a.ne(0).to(at::kByte)));
  }
}

class Selections : public testing::Test {
 protected:
  Selections() { at::manual_seed(2); }

  Selection draw(int64_t classes = 2) const {
    Selection out;
    out.q_blocks = BlockAxis::uniform(call_.q_layout, 10);
    out.kv_blocks = BlockAxis::uniform(call_.kv_layout, 7);
    out.classes = test::random_classes(out, 2, 4, classes);
    return out;
  }
  at::Tensor pairs(const Selection& selection) const {
    AttentionPlan plan = AttentionPlan::dense("sets");
    test::selection_of(plan) = selection;
    validate(plan, call_);
    return exact_pairs(plan, std::get<SoftmaxBranch>(plan.branches[0].kind), call_)
        .expand({2, 4, call_.q.size(2), call_.k.size(2)});
  }

  AttentionCall call_ = test::awkward_call(TokenLayout::grid(3, 5, 7));
};

TEST_F(Selections, AreSetsOfPairs) {
  const Selection a = draw(), b = draw();
  const at::Tensor in_a = pairs(a), in_b = pairs(b);
  EXPECT_TRUE(pairs(unite(a, b)).equal(in_a.logical_or(in_b)));
  EXPECT_TRUE(pairs(intersect(a, b)).equal(in_a.logical_and(in_b)));
  EXPECT_TRUE(pairs(without(a, b)).equal(in_a.logical_and(in_b.logical_not())));
  EXPECT_TRUE(pairs(complement(a)).equal(in_a.logical_not()));
}

TEST_F(Selections, KeepWhatPredicatesLeave) {
  Selection a = draw(), b = draw();
  a.predicates = {BandPredicate{20}};
  b.predicates = {CausalPredicate{}, BandPredicate{20}};
  const Selection both = intersect(a, b);
  EXPECT_EQ(both.predicates.size(), 2u);
  EXPECT_TRUE(pairs(both).equal(pairs(a).logical_and(pairs(b))));
  expect_error(ErrorCode::usage, "predicates", [&] { unite(a, b); });
  expect_error(ErrorCode::usage, "predicates", [&] { without(a, b); });
  expect_error(ErrorCode::usage, "predicates", [&] { complement(b); });
  b.predicates.clear();
  EXPECT_TRUE(pairs(without(a, b)).equal(pairs(a).logical_and(pairs(b).logical_not())));
  b.predicates = a.predicates;
  EXPECT_TRUE(pairs(unite(a, b)).equal(pairs(a).logical_or(pairs(b))));
}

TEST_F(Selections, WithoutAMapKeepAll) {
  const Selection all, some = draw();
  EXPECT_TRUE(pairs(unite(all, some)).all().item<bool>());
  EXPECT_TRUE(pairs(intersect(some, all)).equal(pairs(some)));
  EXPECT_TRUE(pairs(without(all, some)).equal(pairs(complement(some))));
  EXPECT_TRUE(unite(all, all).is_everything());
  EXPECT_TRUE(intersect(all, all).is_everything());
  expect_error(ErrorCode::usage, "blocks", [&] { without(all, all); });
  expect_error(ErrorCode::usage, "no class map", [&] { complement(all); });
}

TEST_F(Selections, CountSummariesThatBothHaveAsOne) {
  Selection a = draw(4), b = draw(4);
  a.summaries = {{.pool = 2}, {.pool = 4}};
  b.summaries = {{.pool = 4}, {.pool = 4, .log_count = false}};
  const Selection either = unite(a, b);
  EXPECT_EQ(either.summaries,
            (std::vector<Summary>{{.pool = 2}, {.pool = 4}, {.pool = 4, .log_count = false}}));
  const at::Tensor of_b = b.classes + b.classes.ge(block_class::first_summary);
  EXPECT_TRUE(either.classes.equal(unite(a.classes, of_b)));
}

TEST_F(Selections, OfOtherBlocksAreRefused) {
  Selection a = draw(), b = draw();
  b.kv_blocks = BlockAxis::uniform(call_.kv_layout, 8);
  b.classes = test::random_classes(b, 1, 1, 2);
  expect_error(ErrorCode::usage, "keys are in 15 blocks of 7 and in 14 blocks of 8",
               [&] { unite(a, b); });
  a.q_blocks = test::random_blocks(1, 1, 11, 105);
  b = a;
  EXPECT_TRUE(pairs(unite(a, b)).equal(pairs(a)));
  b.q_blocks = test::random_blocks(1, 1, 11, 105);
  expect_error(ErrorCode::usage, "queries", [&] { intersect(a, b); });
}

}  // namespace
}  // namespace fovea
