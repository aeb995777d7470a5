#include "core/attention/retile.h"

#include <utility>
#include <vector>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "core/attention/executors/reference.h"
#include "core/attention/planner.h"
#include "core/check.h"
#include "tests/core/attention/executor_case.h"
#include "tests/support/attention_cases.h"
#include "tests/support/files.h"

// The same plan in other blocks: the same pairs, one by one.

namespace fovea {
namespace {

using test::expect_error;
using test::random_blocks;
using test::random_classes;
using test::random_order;
using test::selection_of;

const SoftmaxBranch& softmax_of(const AttentionPlan& plan) {
  return std::get<SoftmaxBranch>(plan.branches[0].kind);
}

at::Tensor pairs(const AttentionPlan& plan, const AttentionCall& call) {
  validate(plan, call);
  return exact_pairs(plan, softmax_of(plan), call)
      .expand({call.q.size(0), call.q.size(1), call.q.size(2), call.k.size(2)});
}

// Uniform, tiles, per item and per head with empty blocks; orders of all kinds.
std::vector<AttentionPlan> plans_of(const AttentionCall& call) {
  const int64_t length = call.q.size(2);
  std::vector<AttentionPlan> out(4, AttentionPlan::dense("random"));
  selection_of(out[0]).q_blocks = BlockAxis::uniform(call.q_layout, 12);
  selection_of(out[0]).kv_blocks = BlockAxis::uniform(call.kv_layout, 8);
  out[1].q_order = out[1].kv_order = TokenOrder::tiles({2, 3, 2});
  selection_of(out[1]).q_blocks = BlockAxis::tiles(call.q_layout, {2, 3, 2});
  selection_of(out[1]).kv_blocks = BlockAxis::tiles(call.kv_layout, {2, 3, 2});
  out[2].q_order = random_order(2, 4, length);
  out[2].kv_order = random_order(2, 2, length);
  selection_of(out[2]).q_blocks = random_blocks(2, 4, 6, length);
  selection_of(out[2]).kv_blocks = random_blocks(1, 2, 9, length);
  out[3].q_order = TokenOrder::axes({{2, 1, 0}, {0, 2, 1}, {1, 0, 2}, {0, 1, 2}});
  out[3].kv_order = TokenOrder::axes({{2, 0, 1}});
  selection_of(out[3]).q_blocks = BlockAxis::from_host({0, 0, length / 3, length / 3, length});
  selection_of(out[3]).kv_blocks = BlockAxis::from_host({0, length / 2, length, length});
  for (size_t i = 0; i < out.size(); ++i) {
    Selection& selection = selection_of(out[i]);
    selection.classes = random_classes(selection, i % 2 == 0 ? 2 : 1, i < 2 ? 1 : 4, 2);
  }
  selection_of(out[1]).predicates = {CausalPredicate{.in_order = true}};
  selection_of(out[2]).predicates = {BandPredicate{.width = 9}};
  return out;
}

TEST(Retile, ChangesNoPairAtAnyTile) {
  at::manual_seed(1);
  for (const TokenLayout& layout : test::awkward_layouts()) {
    const AttentionCall call = test::awkward_call(layout);
    for (const AttentionPlan& plan : plans_of(call)) {
      const at::Tensor expected = pairs(plan, call);
      for (const auto& [q, kv] : std::vector<std::pair<int64_t, int64_t>>{
               {1, 1}, {4, 8}, {5, 3}, {12, 8}, {16, 16}, {64, 7}, {500, 500}}) {
        const AttentionPlan other = retile(plan, call, q, kv);
        ASSERT_TRUE(pairs(other, call).equal(expected))
            << layout.describe() << ": " << plan.describe() << " at " << q << "x" << kv;
        EXPECT_LE(softmax_of(other).selection.q_blocks.max_size(), q);
        EXPECT_LE(softmax_of(other).selection.kv_blocks.max_size(), kv);
      }
    }
  }
}

TEST(Retile, StoresBitsOnlyWhereBlocksStraddle) {
  at::manual_seed(2);
  const AttentionCall call = test::awkward_call(TokenLayout::grid(2, 6, 8));
  AttentionPlan plan = AttentionPlan::dense("random");
  Selection& selection = selection_of(plan);
  selection.q_blocks = BlockAxis::uniform(call.q_layout, 24);
  selection.kv_blocks = BlockAxis::uniform(call.kv_layout, 16);
  selection.classes = random_classes(selection, 1, 4, 2);
  EXPECT_TRUE(softmax_of(retile(plan, call, 8, 4)).selection.predicates.empty());
  EXPECT_EQ(softmax_of(retile(plan, call, 32, 16)).selection.predicates.size(), 1u);
  // Two blocks alike become one without bits.
  selection.classes = random_classes(selection, 1, 4, 2).slice(3, 0, 3).repeat_interleave(2, 3);
  EXPECT_TRUE(softmax_of(retile(plan, call, 24, 32)).selection.predicates.empty());
  // A density does not grow by more than the blocks that straddle.
  const AttentionPlan coarse = retile(plan, call, 24, 32);
  EXPECT_TRUE(block_density(softmax_of(coarse).selection, at::kCPU)
                  .equal(block_density(selection, at::kCPU)));
}

TEST(Retile, GivesTheSameAttentionOnTheCpuExecutor) {
  at::manual_seed(3);
  const AttentionCall call = test::make_call({.layout = test::video_and_text()});
  for (const AttentionPlan& plan : plans_of(call)) {
    const at::Tensor expected = ReferenceExecutor().run(plan, test::widened(call)).out;
    const AttentionPlan other = retile(plan, call, 50, 33);
    test::expect_reference(other, call, 2e-6);
    const at::Tensor got = ReferenceExecutor().run(other, test::widened(call)).out;
    EXPECT_LE(test::relative_error(got, expected), 1e-13);
  }
}

// Everything that depends on the selection: what it skips, other branches, weights.
TEST(Retile, LeavesTheOtherBranchesAsTheyAre) {
  at::manual_seed(4);
  const AttentionCall call = test::awkward_call(TokenLayout::grid(3, 5, 7));
  for (AttentionPlan plan : plans_of(call)) {
    plan.branches.push_back({LinearBranch{.complement_of = 0}, 1});
    const AttentionPlan other = retile(plan, call, 20, 30);
    EXPECT_LE(test::relative_error(ReferenceExecutor().run(other, call).out,
                                   ReferenceExecutor().run(plan, call).out),
              1e-13);
  }
}

class Summaries : public testing::Test {
 protected:
  Summaries() {
    at::manual_seed(5);
    Selection& selection = selection_of(plan_);
    selection.q_blocks = BlockAxis::uniform(call_.q_layout, 24);
    selection.kv_blocks = BlockAxis::uniform(call_.kv_layout, 16);
    selection.classes = random_classes(selection, 2, 4, 4);
    selection.summaries = {{.pool = 2}, {.pool = 8, .log_count = false}};
  }
  void expect_same(int64_t q, int64_t kv) const {
    const AttentionPlan other = retile(plan_, call_, q, kv);
    validate(other, call_);
    EXPECT_LE(test::relative_error(ReferenceExecutor().run(other, call_).out,
                                   ReferenceExecutor().run(plan_, call_).out),
              1e-13);
    EXPECT_EQ(softmax_of(other).selection.kv_blocks.max_size(), kv);
  }

  AttentionCall call_ = test::awkward_call(TokenLayout::grid(3, 6, 7));
  AttentionPlan plan_ = AttentionPlan::dense("pooled");
};

TEST_F(Summaries, AreCutBetweenTheirMeans) {
  expect_same(24, 8);
  expect_same(12, 16);
  expect_same(6, 8);
}

TEST_F(Summaries, AreRefusedWhereTheyWouldChange) {
  const auto refused = [&](int64_t q, int64_t kv, const std::string& why) {
    expect_error(ErrorCode::usage, why, [&] { retile(plan_, call_, q, kv); });
  };
  refused(24, 4, "means of 8 keys");
  refused(24, 32, "of keys cannot be merged");
  refused(32, 16, "of queries cannot be");
  selection_of(plan_).summaries[1].pool = 0;
  refused(24, 8, "means of 0 keys");
  expect_same(8, 16);
}

TEST(RetileRefuses, ScalesPerBlockAndOtherLengths) {
  at::manual_seed(6);
  const AttentionCall call = test::awkward_call(TokenLayout::grid(3, 6, 7));
  AttentionPlan plan = plans_of(call)[0];
  expect_error(ErrorCode::usage, "126 queries", [&] {
    retile(plan, call, BlockAxis::from_host({0, 64, 125}), BlockAxis::from_host({0, 126}));
  });
  auto& branch = std::get<SoftmaxBranch>(plan.branches[0].kind);
  branch.precision.k = {.format = NumberFormat::int8, .unit = ScaleUnit::block};
  expect_error(ErrorCode::usage, "scales are per block", [&] { retile(plan, call, 6, 8); });
  retile(plan, call, 12, 8);
}

TEST(RetileRefuses, GivenKeysThatQueriesOfABlockDifferIn) {
  at::manual_seed(7);
  const AttentionCall call = test::awkward_call(TokenLayout::grid(3, 6, 7));
  AttentionPlan plan = AttentionPlan::dense("given");
  auto& branch = std::get<SoftmaxBranch>(plan.branches[0].kind);
  branch.keys = GivenKeys{at::randn({2, 2, 5, 8}, at::kDouble),
                          at::randn({2, 2, 5, 6}, at::kDouble), at::Tensor()};
  branch.selection.q_blocks = BlockAxis::uniform(call.q_layout, 12);
  branch.selection.kv_blocks = BlockAxis::uniform(TokenLayout::extra(5), 1);
  branch.selection.classes = random_classes(branch.selection, 1, 4, 2);
  const AttentionPlan finer = retile(plan, call, 4, 64);
  EXPECT_LE(test::relative_error(ReferenceExecutor().run(finer, call).out,
                                 ReferenceExecutor().run(plan, call).out),
            1e-13);
  expect_error(ErrorCode::usage, "given keys", [&] { retile(plan, call, 20, 64); });
}

}  // namespace
}  // namespace fovea
