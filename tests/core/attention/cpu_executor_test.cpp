#include "core/attention/executors/cpu.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <gtest/gtest.h>

#include "core/attention/attention.h"
#include "core/attention/executors/reference.h"
#include "core/check.h"
#include "tests/core/attention/executor_case.h"

// The CPU's executor against the reference in fp64 on the same rounded inputs.

namespace fovea {
namespace {

using test::Case;
using test::expect_reference;
using test::make_call;
using test::random_blocks;
using test::random_order;
using test::selection_of;
using test::video_and_text;
using test::widened;

// Uniform blocks, classes per item and head, text with padding.
TEST(CpuExecutor, TakesTheBlocksOfAClassMap) {
  at::manual_seed(1);
  for (const auto& [dtype, bound] :
       {std::pair{at::kFloat, 2e-6}, {at::kBFloat16, 4e-3}, {at::kHalf, 6e-4}}) {
    const Case c{.layout = video_and_text(), .dtype = dtype};
    AttentionCall call = make_call(c);
    for (const auto& [batch, heads] : {std::pair<int64_t, int64_t>{1, 1}, {1, 4}, {2, 1}, {2, 4}}) {
      AttentionPlan plan = AttentionPlan::dense("blocks");
      Selection& selection = selection_of(plan);
      selection.q_blocks = BlockAxis::uniform(c.layout, 32);
      selection.kv_blocks = BlockAxis::uniform(c.layout, 20);
      selection.classes = at::randint(2, {batch, heads, selection.q_blocks.num_blocks(),
                                          selection.kv_blocks.num_blocks()})
                              .to(at::kByte);
      expect_reference(plan, call, bound);
    }
  }
}

TEST(CpuExecutor, FollowsOrdersAndVariableBlocks) {
  at::manual_seed(2);
  const Case c{.layout = TokenLayout::grid(2, 9, 11)};
  const AttentionCall call = make_call(c);
  const int64_t length = c.layout.seq_len();
  AttentionPlan plan = AttentionPlan::dense("clusters");
  plan.q_order = random_order(2, 4, length);
  plan.kv_order = random_order(2, 2, length);
  Selection& selection = selection_of(plan);
  selection.q_blocks = random_blocks(2, 4, 6, length);
  selection.kv_blocks = random_blocks(2, 2, 9, length);
  selection.classes = at::randint(2, {2, 4, 6, 9}).to(at::kByte);
  expect_reference(plan, call, 2e-6);

  plan.q_order = TokenOrder::axes({{2, 0, 1}, {0, 1, 2}, {1, 2, 0}, {2, 1, 0}});
  plan.kv_order = TokenOrder::tiles({1, 4, 4});
  expect_reference(plan, call, 2e-6);
}

TEST(CpuExecutor, CutsBlocksByPredicates) {
  at::manual_seed(3);
  const Case c{.layout = video_and_text()};
  AttentionCall call = make_call(c);
  const int64_t length = c.layout.seq_len();
  WindowPredicate window;
  window.axes[1] = {.size = 3, .stride = 2};
  window.axes[2] = {.size = 4, .dilation = 2};
  const at::Tensor stored = at::rand({2, 4, length, length}).lt(0.3);
  for (const std::vector<Predicate>& predicates :
       std::vector<std::vector<Predicate>>{{window},
                                           {DiscPredicate{2.5}},
                                           {BandPredicate{40}, CausalPredicate{}},
                                           {CausalPredicate{.in_order = true}},
                                           {StoredPredicate{stored}, window}}) {
    for (const bool tiled : {false, true}) {
      AttentionPlan plan = AttentionPlan::dense("predicates");
      selection_of(plan).predicates = predicates;
      if (tiled) plan.q_order = plan.kv_order = TokenOrder::tiles({1, 4, 4});
      expect_reference(plan, call, 2e-6);
      Selection& selection = selection_of(plan);
      selection.q_blocks = selection.kv_blocks = BlockAxis::uniform(c.layout, 48);
      const int64_t blocks = selection.q_blocks.num_blocks();
      selection.classes = at::randint(2, {1, 1, blocks, blocks}).to(at::kByte);
      expect_reference(plan, call, 2e-6);
    }
  }
}

TEST(CpuExecutor, AddsABias) {
  at::manual_seed(4);
  const Case c{.layout = TokenLayout::grid(1, 9, 9)};
  AttentionCall call = make_call(c);
  AttentionPlan plan = AttentionPlan::dense("bias");
  selection_of(plan).predicates = {BandPredicate{30}};
  for (const std::vector<int64_t>& shape : std::vector<std::vector<int64_t>>{
           {1, 1, 81, 81}, {2, 4, 81, 81}, {2, 1, 1, 81}, {1, 4, 81, 1}}) {
    call.bias = at::randn(shape);
    expect_reference(plan, call, 2e-6);
  }
}

TEST(CpuExecutor, PaddingMayHoldAnything) {
  at::manual_seed(5);
  const Case c{.layout = video_and_text()};
  AttentionCall call = make_call(c);
  AttentionPlan plan = AttentionPlan::dense("padding");
  selection_of(plan).predicates = {BandPredicate{50}};
  CpuExecutor cpu;
  const at::Tensor before = cpu.run(plan, call, nullptr).out.clone();
  for (at::Tensor* x : {&call.k, &call.v}) {
    (*x)[0].slice(1, 200).fill_(std::numeric_limits<float>::quiet_NaN());
  }
  EXPECT_TRUE(cpu.run(plan, call, nullptr).out.equal(before));
}

TEST(CpuExecutor, SaysWhatItDoesNotTake) {
  const Case c{.layout = TokenLayout::extra(8)};
  AttentionCall call = make_call(c);
  CpuExecutor cpu;
  const auto reason = [&](const AttentionPlan& plan) { return cpu.why_not(plan, call).value(); };
  AttentionPlan plan = AttentionPlan::dense("plan");
  EXPECT_EQ(cpu.why_not(plan, call), std::nullopt);
  call.bias = at::zeros({1, 1, 8, 8});
  EXPECT_NE(reason(plan).find("dense plans with a bias"), std::string::npos);
  call.needs_lse = true;
  EXPECT_EQ(cpu.why_not(plan, call), std::nullopt);
  call = make_call(c);
  selection_of(plan).predicates = {BandPredicate{1}};
  EXPECT_EQ(cpu.why_not(plan, call), std::nullopt);
  AttentionPlan linear = plan;
  LinearBranch complement;
  complement.complement_of = 0;
  linear.branches.push_back({complement, 1});
  EXPECT_NE(reason(linear).find("complement of predicates"), std::string::npos);
  call.q.requires_grad_();
  EXPECT_EQ(cpu.why_not(plan, call), std::nullopt);
  call.bias = at::zeros({1, 1, 8, 8}).requires_grad_();
  EXPECT_EQ(cpu.why_not(plan, call), std::nullopt);
  call.q = call.q.detach().to(at::kDouble);
  EXPECT_NE(reason(plan).find("fp32"), std::string::npos);
}

// Kept lists serve calls of one shape, with the padding of each.
TEST(CpuExecutor, KeptListsTakeEachCallsPadding) {
  at::manual_seed(6);
  Attention attention("window", {{"tile", {1, 4, 4}}, {"window", {1, 1, 1}}});
  for (const int64_t valid : {1, 17, 30}) {
    TokenLayout layout = TokenLayout::grid(2, 8, 8);
    layout.append(TokenLayout::text(30, at::tensor({valid, int64_t{9}}, at::kLong)));
    const AttentionCall call = make_call({.layout = layout});
    const AttentionPlan plan =
        make_planner("window", {{"tile", {1, 4, 4}}, {"window", {1, 1, 1}}})->plan(call);
    EXPECT_LE(
        test::relative_error(attention.run(call), ReferenceExecutor().run(plan, widened(call)).out),
        2e-6);
  }
  EXPECT_EQ(attention.counts().at("self: window on cpu"), 3);
}

}  // namespace
}  // namespace fovea
