#pragma once

#include <cstring>
#include <limits>
#include <vector>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "core/attention/executors/reference.h"
#include "core/attention/planner.h"
#include "tests/core/attention/executor_case.h"
#include "tests/support/attention_cases.h"

// Plans with everything that a plan can hold, and whether two are equal bit for bit.

namespace fovea::test {

inline void expect_same_bits(const at::Tensor& a, const at::Tensor& b, const std::string& what) {
  ASSERT_EQ(a.defined(), b.defined()) << what;
  if (!a.defined()) return;
  EXPECT_EQ(a.scalar_type(), b.scalar_type()) << what;
  ASSERT_EQ(a.sizes(), b.sizes()) << what;
  const at::Tensor x = a.detach().cpu().contiguous(), y = b.detach().cpu().contiguous();
  EXPECT_EQ(std::memcmp(x.const_data_ptr(), y.const_data_ptr(), x.nbytes()), 0) << what;
}

inline void expect_same(const TokenOrder& a, const TokenOrder& b) {
  ASSERT_EQ(a.kind(), b.kind());
  EXPECT_EQ(a.axes_per_head(), b.axes_per_head());
  expect_same_bits(a.index_rows(), b.index_rows(), "order");
}

inline void expect_same(const BlockAxis& a, const BlockAxis& b) {
  EXPECT_EQ(a.host_offsets(), b.host_offsets());
  EXPECT_EQ(a.max_size(), b.max_size());
  expect_same_bits(a.device_offsets(), b.device_offsets(), "offsets");
}

inline void expect_same(const SoftmaxBranch& a, const SoftmaxBranch& b) {
  expect_same(a.selection.q_blocks, b.selection.q_blocks);
  expect_same(a.selection.kv_blocks, b.selection.kv_blocks);
  expect_same_bits(a.selection.classes, b.selection.classes, "classes");
  EXPECT_EQ(a.selection.summaries, b.selection.summaries);
  ASSERT_EQ(a.selection.predicates.size(), b.selection.predicates.size());
  for (size_t i = 0; i < a.selection.predicates.size(); ++i) {
    const Predicate &x = a.selection.predicates[i], &y = b.selection.predicates[i];
    ASSERT_EQ(x.index(), y.index());
    if (const auto* stored = std::get_if<StoredPredicate>(&x)) {
      expect_same_bits(stored->visible, std::get<StoredPredicate>(y).visible, "stored bits");
    } else {
      EXPECT_EQ(x, y);
    }
  }
  ASSERT_EQ(a.keys.has_value(), b.keys.has_value());
  if (a.keys) {
    expect_same_bits(a.keys->k, b.keys->k, "given k");
    expect_same_bits(a.keys->v, b.keys->v, "given v");
    expect_same_bits(a.keys->bias, b.keys->bias, "given bias");
  }
  EXPECT_EQ(a.precision, b.precision);
}

inline void expect_same(const LinearBranch& a, const LinearBranch& b) {
  EXPECT_EQ(a.feature_map, b.feature_map);
  EXPECT_EQ(a.complement_of, b.complement_of);
  EXPECT_EQ(a.epsilon, b.epsilon);
  expect_same_bits(a.proj_weight, b.proj_weight, "proj_weight");
  expect_same_bits(a.proj_bias, b.proj_bias, "proj_bias");
}

inline void expect_same(const PooledValuesBranch& a, const PooledValuesBranch& b) {
  expect_same(a.q_blocks, b.q_blocks);
  expect_same(a.kv_blocks, b.kv_blocks);
  expect_same_bits(a.weights, b.weights, "weights");
}

inline void expect_same(const ReuseBranch& a, const ReuseBranch& b) {
  expect_same_bits(a.out, b.out, "out");
  expect_same_bits(a.lse, b.lse, "lse");
}

/// Every field, and what the reference makes of both.
inline void expect_same(const AttentionPlan& a, const AttentionPlan& b, const AttentionCall& call) {
  EXPECT_EQ(a.planner, b.planner);
  EXPECT_EQ(a.describe(), b.describe());
  expect_same(a.q_order, b.q_order);
  expect_same(a.kv_order, b.kv_order);
  ASSERT_EQ(a.branches.size(), b.branches.size());
  for (size_t i = 0; i < a.branches.size(); ++i) {
    EXPECT_EQ(a.branches[i].group, b.branches[i].group);
    ASSERT_EQ(a.branches[i].kind.index(), b.branches[i].kind.index());
    std::visit(
        [&](const auto& kind) {
          expect_same(kind, std::get<std::decay_t<decltype(kind)>>(b.branches[i].kind));
        },
        a.branches[i].kind);
  }
  ASSERT_EQ(a.group_weights.size(), b.group_weights.size());
  for (size_t i = 0; i < a.group_weights.size(); ++i) {
    expect_same_bits(a.group_weights[i], b.group_weights[i], "group weight");
  }
  validate(b, call);
  const AttentionResult x = ReferenceExecutor().run(a, call), y = ReferenceExecutor().run(b, call);
  expect_same_bits(x.out, y.out, "result");
  expect_same_bits(x.lse, y.lse, "log-sum-exp");
}

// Blocks that the host knows, and all predicates.
inline AttentionPlan plan_of_predicates(const AttentionCall& call) {
  AttentionPlan plan = AttentionPlan::dense("predicates");
  plan.q_order = TokenOrder::tiles({1, 2, 3});
  plan.kv_order = TokenOrder::axes({{2, 0, 1}, {1, 2, 0}});
  Selection& selection = selection_of(plan);
  selection.q_blocks = BlockAxis::uniform(call.q_layout, 16);
  selection.kv_blocks = BlockAxis::from_host({0, 0, 10, 10, call.k.size(2)});
  selection.classes = random_classes(selection, 2, 4, 2);
  WindowPredicate window;
  window.axes[0] = {.size = 2, .stride = 2, .causal = true};
  window.axes[2] = {.size = 3, .dilation = 2};
  const at::Tensor visible = at::rand({2, 1, call.q.size(2), call.k.size(2)}).lt(0.9);
  selection.predicates = {window,
                          DiscPredicate{4.1},
                          DiscPredicate{std::numeric_limits<double>::infinity()},
                          BandPredicate{.width = 90},
                          BandPredicate{.width = 80, .in_order = true},
                          CausalPredicate{},
                          StoredPredicate{visible}};
  return plan;
}

// Index orders, blocks that only the device knows, summaries, and a linear branch beside them.
inline AttentionPlan plan_of_summaries(const AttentionCall& call) {
  const int64_t length = call.q.size(2);
  AttentionPlan plan = AttentionPlan::dense("summaries");
  plan.q_order = random_order(2, 4, length);
  plan.kv_order = TokenOrder::index(random_order(1, 2, length).index_rows().to(at::kLong));
  Selection& selection = selection_of(plan);
  selection.q_blocks = random_blocks(2, 4, 5, length);
  selection.kv_blocks = random_blocks(1, 2, 11, length);
  selection.summaries = {{.pool = 0}, {.pool = 3, .log_count = false}, {.pool = 8}};
  selection.classes = random_classes(selection, 2, 4, 5);
  LinearBranch linear;
  linear.feature_map = FeatureMap::elu_plus_one;
  linear.complement_of = 0;
  linear.epsilon = 1e-7 / 3;
  linear.proj_weight = at::randn({6, 6}, at::kDouble);
  linear.proj_bias = at::randn({6}, at::kDouble);
  plan.branches.push_back({linear, 1});
  plan.group_weights = {at::Tensor(), at::rand({1, 4, length, 1}, at::kDouble)};
  return plan;
}

// Given keys and an earlier result in one group, pooled values in another.
inline AttentionPlan plan_of_branches(const AttentionCall& call) {
  const int64_t length = call.q.size(2);
  AttentionPlan plan = AttentionPlan::dense("branches");
  SoftmaxBranch given;
  given.keys = GivenKeys{at::randn({2, 2, 7, 8}, at::kDouble), at::randn({2, 2, 7, 6}, at::kDouble),
                         at::randn({1, 4, 7}, at::kDouble)};
  given.selection.q_blocks = BlockAxis::uniform(call.q_layout, 16);
  given.selection.kv_blocks = BlockAxis::uniform(TokenLayout::extra(7), 2);
  given.selection.classes = random_classes(given.selection, 1, 4, 2);
  plan.branches.push_back({given, 0});
  ReuseBranch reuse{at::randn({2, 4, length, 6}, at::kDouble),
                    at::randn({2, 4, length}, at::kDouble)};
  reuse.lse[0][1][2] = -std::numeric_limits<double>::infinity();
  plan.branches.push_back({reuse, 0});
  PooledValuesBranch pooled;
  pooled.q_blocks = BlockAxis::tiles(call.q_layout, {2, 2, 2});
  pooled.kv_blocks = random_blocks(1, 1, 6, length);
  pooled.weights = at::rand({1, 4, pooled.q_blocks.num_blocks(), 6}, at::kDouble);
  plan.branches.push_back({pooled, 1});
  plan.group_weights = {at::rand({2, 1, 1, 1}, at::kFloat)};
  return plan;
}

inline AttentionPlan quantized_plan(const AttentionCall& call) {
  AttentionPlan plan = AttentionPlan::dense("quantized");
  auto& branch = std::get<SoftmaxBranch>(plan.branches[0].kind);
  branch.selection.q_blocks = BlockAxis::uniform(call.q_layout, 32);
  branch.selection.kv_blocks = BlockAxis::uniform(call.kv_layout, 16);
  branch.precision.q = {.format = NumberFormat::int8, .unit = ScaleUnit::token};
  branch.precision.k = {.format = NumberFormat::int8, .unit = ScaleUnit::block, .group = 4};
  branch.precision.v = {.format = NumberFormat::e4m3, .unit = ScaleUnit::channel};
  branch.precision.p = {.format = NumberFormat::e4m3, .unit = ScaleUnit::head};
  branch.precision.smooth_k = true;
  return plan;
}

/// A grid and padded text, as `awkward_call` makes it.
inline AttentionCall call_of_all() {
  TokenLayout layout = TokenLayout::grid(2, 5, 7);
  return awkward_call(layout.append(TokenLayout::text(20, at::tensor({11, 3}, at::kLong))));
}

/// Made by hand; for a call as of `call_of_all`.
inline std::vector<AttentionPlan> hand_made_plans(const AttentionCall& call) {
  return {AttentionPlan::dense("dense"), plan_of_predicates(call), plan_of_summaries(call),
          plan_of_branches(call), quantized_plan(call)};
}

/// Of every planner on the list that makes plans of its own, with options that leave something out.
inline std::vector<AttentionPlan> plans_of_all_planners(const AttentionCall& call) {
  const std::map<std::string, Json> options = {
      {"fps", {{"tile", {1, 2, 3}}, {"window", {1, 3, 3}}}},
      {"neighborhood", {{"window", {1, 3, 3}}}},
      {"psa", {{"block_q", 16}, {"block_kv", 16}}},
      {"radial", {{"block", 16}}},
      {"sla", {{"projection", "identity"}, {"block_q", 16}, {"block_kv", 16}}},
      {"sparge", {{"block_q", 16}, {"block_kv", 16}, {"density", 0.4}, {"similarity", -1}}},
      {"svg2", {{"q_clusters", 4}, {"kv_clusters", 6}, {"top_p", 0.5}}},
      {"topk", {{"tile", {1, 3, 3}}, {"density", 0.3}}},
      {"window", {{"tile", {1, 2, 3}}, {"window", {1, 1, 1}}}},
      {"xattention", {{"block_q", 16}, {"block_kv", 16}, {"top_p", 0.5}}}};
  std::vector<AttentionPlan> out;
  for (const std::string& name : planner_names()) {
    if (name == "saved") continue;
    const auto found = options.find(name);
    const Json own = found == options.end() ? Json::object() : found->second;
    out.push_back(make_planner(name, own)->plan(call));
  }
  return out;
}

}  // namespace fovea::test
