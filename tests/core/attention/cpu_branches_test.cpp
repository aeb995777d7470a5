#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "tests/core/attention/executor_case.h"

// All kinds of branches, and what merges them, on the CPU's executor.

namespace fovea {
namespace {

using test::Case;
using test::expect_reference;
using test::make_call;
using test::random_blocks;
using test::random_classes;
using test::random_order;
using test::selection_of;
using test::video_and_text;

constexpr double kBound = 3e-6;

void set_blocks(Selection& selection, const TokenLayout& layout, int64_t block_q,
                int64_t block_kv) {
  selection.q_blocks = BlockAxis::uniform(layout, block_q);
  selection.kv_blocks = BlockAxis::uniform(layout, block_kv);
}

TEST(CpuBranches, SummariesStandForTheirBlocks) {
  at::manual_seed(1);
  for (const auto& [dtype, bound] : {std::pair{at::kFloat, kBound}, {at::kBFloat16, 4e-3}}) {
    const Case c{.layout = video_and_text(), .dtype = dtype};
    const AttentionCall call = make_call(c);
    for (const bool tiled : {false, true}) {
      AttentionPlan plan = AttentionPlan::dense("summaries");
      if (tiled) plan.q_order = plan.kv_order = TokenOrder::tiles({1, 4, 4});
      Selection& selection = selection_of(plan);
      set_blocks(selection, c.layout, 32, 24);
      selection.summaries = {{.pool = 5}, {.pool = 0, .log_count = false}, {.pool = 0}};
      selection.classes = random_classes(selection, 2, 4, 5);
      expect_reference(plan, call, bound);
      selection.predicates = {BandPredicate{40}};  // cuts exact blocks only
      expect_reference(plan, call, bound);
    }
  }
}

TEST(CpuBranches, SummariesOfVariableBlocksOfAnIndex) {
  at::manual_seed(2);
  const Case c{.layout = TokenLayout::grid(2, 9, 11)};
  const AttentionCall call = make_call(c);
  const int64_t length = c.layout.seq_len();
  for (const int64_t kv_block_heads : {2, 4}) {
    AttentionPlan plan = AttentionPlan::dense("clusters");
    plan.q_order = random_order(2, 4, length);
    plan.kv_order = random_order(2, 2, length);
    Selection& selection = selection_of(plan);
    selection.q_blocks = random_blocks(2, 4, 6, length);
    selection.kv_blocks = random_blocks(2, kv_block_heads, 9, length);
    selection.summaries = {{.pool = 7}, {.pool = 0}};
    selection.classes = random_classes(selection, 2, 4, 4);
    expect_reference(plan, call, kBound);
  }
}

TEST(CpuBranches, PaddingThatAnIndexScatters) {
  at::manual_seed(3);
  const Case c{.layout = video_and_text()};
  AttentionCall call = make_call(c);
  AttentionPlan plan = AttentionPlan::dense("scattered");
  plan.q_order = random_order(1, 4, c.layout.seq_len());
  plan.kv_order = random_order(2, 2, c.layout.seq_len());
  Selection& selection = selection_of(plan);
  set_blocks(selection, c.layout, 32, 24);
  selection.classes = random_classes(selection, 2, 4, 2);
  expect_reference(plan, call, kBound);
  CpuExecutor cpu;
  const at::Tensor before = cpu.run(plan, call, nullptr).out;
  // Of the first text 11 tokens are valid.
  for (at::Tensor* x : {&call.k, &call.v}) {
    (*x)[0].slice(1, 200).fill_(std::numeric_limits<float>::quiet_NaN());
  }
  EXPECT_TRUE(cpu.run(plan, call, nullptr).out.equal(before));
}

// Blocks that begin in the video and end in the text's padding.
TEST(CpuBranches, PaddingWithinBlocksOfTwoSegments) {
  at::manual_seed(9);
  TokenLayout layout = TokenLayout::text(20, at::tensor({11, 0}, at::kLong));
  layout.append(TokenLayout::grid(1, 7, 9))
      .append(TokenLayout::text(30, at::tensor({4, 30}, at::kLong)));
  const Case c{.layout = layout};
  AttentionPlan plan = AttentionPlan::dense("straddling");
  Selection& selection = selection_of(plan);
  selection.q_blocks = BlockAxis::uniform(c.layout, 32);
  const at::Tensor ends = at::tensor({0, 7, 25, 50, 101, 113}, at::kInt).view({1, 1, 6});
  selection.kv_blocks = BlockAxis::from_offsets(ends, 51);
  selection.classes = random_classes(selection, 2, 4, 2);
  expect_reference(plan, make_call(c), kBound);
}

TEST(CpuBranches, GivenKeysTakeThePlaceOfTheCalls) {
  at::manual_seed(4);
  const Case c{.layout = video_and_text()};
  const AttentionCall call = make_call(c);
  for (const int64_t kv_heads : {1, 4}) {
    AttentionPlan plan = AttentionPlan::dense("given");
    plan.q_order = TokenOrder::tiles({1, 4, 4});
    auto& branch = std::get<SoftmaxBranch>(plan.branches[0].kind);
    branch.keys = GivenKeys{.k = at::randn({2, kv_heads, 150, c.dim}),
                            .v = at::randn({2, kv_heads, 150, c.dim})};
    expect_reference(plan, call, kBound);
    branch.keys->bias = at::randn({1, 4, 150});
    expect_reference(plan, call, kBound);
    branch.selection.q_blocks = BlockAxis::uniform(c.layout, 32);
    branch.selection.kv_blocks = BlockAxis::uniform(TokenLayout::extra(150), 16);
    branch.selection.classes = random_classes(branch.selection, 1, 4, 2);
    expect_reference(plan, call, kBound);
  }
}

// A window of own keys and pooled ones of everything, as one softmax; then beside an earlier result
// with its share of the softmax.
TEST(CpuBranches, MergeByTheirLogSumExp) {
  at::manual_seed(5);
  const Case c{.layout = video_and_text()};
  const AttentionCall call = make_call(c);
  AttentionPlan plan = AttentionPlan::dense("merged");
  selection_of(plan).predicates = {BandPredicate{3}};
  SoftmaxBranch pooled;
  pooled.keys = GivenKeys{.k = at::randn({2, 2, 9, c.dim}), .v = at::randn({2, 2, 9, c.dim})};
  plan.branches.push_back({pooled, 0});
  expect_reference(plan, call, kBound);
  ReuseBranch earlier{.out = at::randn({2, 4, c.layout.seq_len(), c.dim}),
                      .lse = at::randn({2, 4, c.layout.seq_len()}) * 4};
  earlier.lse.slice(2, 0, 7).fill_(-std::numeric_limits<double>::infinity());
  plan.branches.push_back({earlier, 0});
  expect_reference(plan, call, kBound);
  // A group of its own is added with its weight instead.
  plan.branches[2].group = 1;
  plan.group_weights = {at::rand({1, 4, 1, 1}), at::rand({c.layout.seq_len(), 1})};
  expect_reference(plan, call, kBound);
}

TEST(CpuBranches, PooledValues) {
  at::manual_seed(6);
  const Case c{.layout = video_and_text()};
  AttentionPlan plan = AttentionPlan::dense("values");
  selection_of(plan).predicates = {BandPredicate{3}};
  plan.q_order = plan.kv_order = TokenOrder::tiles({1, 4, 4});
  PooledValuesBranch branch;
  branch.q_blocks = BlockAxis::uniform(c.layout, 16);
  branch.kv_blocks = BlockAxis::uniform(c.layout, 40);
  branch.weights = at::rand({1, 4, branch.q_blocks.num_blocks(), branch.kv_blocks.num_blocks()});
  plan.branches.push_back({branch, 1});
  expect_reference(plan, make_call(c), kBound);
}

// All that is one for all heads, on both executors.
TEST(CpuBranches, OneHeadOfKeysForAll) {
  at::manual_seed(10);
  const Case c{.layout = video_and_text(), .kv_heads = 1};
  AttentionPlan plan = AttentionPlan::dense("shared");
  plan.q_order = TokenOrder::tiles({1, 4, 4});
  Selection& selection = selection_of(plan);
  set_blocks(selection, c.layout, 32, 24);
  selection.summaries = {{.pool = 5}};
  selection.classes = random_classes(selection, 1, 1, 3);
  PooledValuesBranch pooled;
  pooled.q_blocks = pooled.kv_blocks = BlockAxis::uniform(c.layout, 40);
  const int64_t blocks = pooled.q_blocks.num_blocks();
  pooled.weights = at::rand({1, 1, blocks, blocks});
  plan.branches.push_back({pooled, 1});
  plan.branches.push_back({LinearBranch{.complement_of = 0, .epsilon = 1e-3}, 2});
  expect_reference(plan, make_call(c), kBound);
}

class LinearFeatures : public testing::TestWithParam<FeatureMap> {};

TEST_P(LinearFeatures, AllKeysOrThoseThatASoftmaxSkips) {
  at::manual_seed(7);
  for (const auto& [dtype, bound] : {std::pair{at::kFloat, kBound}, {at::kBFloat16, 4e-3}}) {
    const Case c{.layout = video_and_text(), .dtype = dtype};
    const AttentionCall call = make_call(c);
    AttentionPlan plan = AttentionPlan::dense("linear");
    Selection& selection = selection_of(plan);
    set_blocks(selection, c.layout, 32, 24);
    selection.summaries = {{.pool = 0}};
    selection.classes = random_classes(selection, 2, 4, 3);
    selection.classes.select(2, 1).fill_(block_class::exact);  // nothing is left to the linear one
    LinearBranch linear{.feature_map = GetParam(), .epsilon = 1e-3};
    plan.branches.push_back({linear, 1});
    expect_reference(plan, call, bound);
    linear.complement_of = 0;
    plan.branches[1].kind = linear;
    expect_reference(plan, call, bound);
    linear.proj_weight = at::randn({c.dim, c.dim}) / 6;
    linear.proj_bias = at::randn({c.dim});
    plan.branches[1].kind = linear;
    plan.q_order = TokenOrder::tiles({1, 4, 4});
    plan.kv_order = TokenOrder::tiles({3, 2, 2});
    expect_reference(plan, call, bound);
  }
}

INSTANTIATE_TEST_SUITE_P(Maps, LinearFeatures,
                         testing::Values(FeatureMap::softmax, FeatureMap::elu_plus_one,
                                         FeatureMap::relu));

TEST(CpuBranches, AnEmptyComplementIsExactlyZero) {
  at::manual_seed(8);
  const Case c{.layout = TokenLayout::grid(1, 8, 8)};
  const AttentionCall call = make_call(c);
  for (const bool mapped : {false, true}) {
    AttentionPlan plan = AttentionPlan::dense("nothing");
    Selection& selection = selection_of(plan);
    set_blocks(selection, c.layout, 16, 16);
    if (mapped) selection.classes = at::ones({1, 1, 4, 4}, at::kByte);
    LinearBranch linear;
    linear.complement_of = 0;
    linear.epsilon = 0;
    plan.branches.push_back({linear, 1});
    plan.group_weights = {at::zeros({1}), at::ones({1})};
    CpuExecutor cpu;
    ASSERT_EQ(cpu.why_not(plan, call), std::nullopt);
    EXPECT_EQ(cpu.run(plan, call, nullptr).out.abs().max().item<double>(), 0);
  }
}

}  // namespace
}  // namespace fovea
