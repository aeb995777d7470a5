// Planning, lowering and attention captured in a CUDA graph, and replayed with other numbers.

#include <functional>

#include <ATen/ATen.h>
#include <ATen/cuda/CUDAGraph.h>
#include <c10/core/GradMode.h>
#include <c10/cuda/CUDAGuard.h>
#include <gtest/gtest.h>

#include "core/attention/executors/cuda.h"
#include "core/attention/executors/cuda_linear.h"
#include "core/attention/planner.h"
#include "core/check.h"
#include "tests/core/attention/plan_cases.h"

namespace fovea {
namespace {

using test::selection_of;

class CudaGraph : public testing::Test {
 protected:
  void SetUp() override {
    if (!at::hasCUDA()) GTEST_SKIP() << "missing: a GPU";
    at::manual_seed(1);
    set_call(TokenLayout::grid(3, 16, 20));
    for (const CudaBackend* backend : {&sm90_backend(), &sm80_backend()}) {
      if (!executor_ && !backend->why_not(call_)) {
        executor_ = std::make_unique<CudaExecutor>(*backend);
      }
    }
    if (!executor_) GTEST_SKIP() << "missing: a GPU of compute capability 8.0 or newer";
  }
  void set_call(const TokenLayout& layout) {
    const test::Case c{.layout = layout, .dim = 64, .dtype = at::kBFloat16};
    call_ = test::make_call(c);
    for (at::Tensor* x : {&call_.q, &call_.k, &call_.v}) *x = x->to(at::kCUDA);
  }
  void change_numbers() {
    for (const at::Tensor& x : {call_.q, call_.k, call_.v}) {
      x.copy_(at::randn(x.sizes()).to(at::kCUDA, x.scalar_type()));
    }
  }
  // The same bits from a graph as without one.
  void expect_same(const std::function<AttentionResult()>& step) {
    const c10::NoGradGuard no_gradients;
    const c10::cuda::CUDAStreamGuard guard(c10::cuda::getStreamFromPool());
    step();  // leaves what the host knows on the device
    at::cuda::CUDAGraph graph;
    graph.capture_begin();
    const AttentionResult captured = step();
    graph.capture_end();
    for (int turn = 0; turn < 3; ++turn) {
      change_numbers();
      graph.replay();
      const AttentionResult got = {captured.out.clone(), captured.lse.clone()};
      const AttentionResult expected = step();
      test::expect_same_bits(got.out, expected.out, "out");
      test::expect_same_bits(got.lse, expected.lse, "lse");
    }
  }
  AttentionResult run(const AttentionPlan& plan) {
    validate(plan, call_);
    const auto lowered = executor_->lower(plan, call_);
    return executor_->run(plan, call_, lowered.get());
  }

  AttentionCall call_;
  std::unique_ptr<CudaExecutor> executor_;
};

TEST_F(CudaGraph, HoldsDenseAttention) {
  const AttentionPlan plan = AttentionPlan::dense("dense");
  expect_same([&] { return run(plan); });
}

TEST_F(CudaGraph, HoldsAPlannerTooThatLooksAtNumbers) {
  for (const Json& options :
       {Json{{"density", 0.3}}, Json{{"density", 0.3}, {"tile", {1, 8, 8}}}}) {
    const auto planner = make_planner("topk", options);
    expect_same([&] { return run(planner->plan(call_)); });
  }
}

TEST_F(CudaGraph, HoldsAllPlannersThatLookAtNumbers) {
  const std::vector<std::pair<const char*, Json>> planners = {
      {"topk", {{"top_p", 0.5}}},
      {"sparge", {{"density", 0.3}}},
      {"sparge", {{"top_p", 0.5}, {"tile", {1, 8, 8}}}},
      {"xattention", {{"top_p", 0.5}}},
      {"psa", Json::object()},
      {"psa", {{"shares", {0.2, 0.2, 0.3}}}},
      {"sla", {{"density", 0.3}, {"projection", "identity"}}},
      {"sla", {{"density", 0.3}, {"projection", "identity"}, {"linear_over", "all"}}}};
  TokenLayout with_text = TokenLayout::grid(2, 15, 20);
  with_text.append(TokenLayout::text(40));
  for (const TokenLayout& layout : {TokenLayout::grid(3, 16, 20), with_text}) {
    set_call(layout);
    for (const auto& [name, options] : planners) {
      SCOPED_TRACE(str(name, " ", options.dump(), ", ", layout.describe()));
      const auto planner = make_planner(name, options);
      expect_same([&] { return run(planner->plan(call_)); });
    }
  }
}

TEST_F(CudaGraph, HoldsSparseLinearAttentionByItsKernels) {
  const test::Case c{
      .layout = TokenLayout::grid(3, 16, 20), .kv_heads = 4, .dim = 64, .dtype = at::kBFloat16};
  call_ = test::make_call(c);
  for (at::Tensor* x : {&call_.q, &call_.k, &call_.v}) *x = x->to(at::kCUDA);
  const auto planner = make_planner("sla", {{"density", 0.3}, {"projection", "identity"}});
  ASSERT_NE(linear_to_add(planner->plan(call_), call_), nullptr);
  expect_same([&] { return run(planner->plan(call_)); });
}

TEST_F(CudaGraph, HoldsClustersThatGoOnFromTheStepBefore) {
  const auto planner = make_planner("svg2", {{"top_p", 0.5}, {"iterations", 3}});
  run(planner->plan(call_));
  call_.context.step = 1;  // from now on the same centroids to begin with
  expect_same([&] { return run(planner->plan(call_)); });
}

TEST_F(CudaGraph, HoldsOrdersBlocksSummariesAndPadding) {
  const at::Tensor valid = at::tensor({90, 17}, at::kLong).to(at::kCUDA);
  set_call(TokenLayout::grid(2, 9, 16).append(TokenLayout::text(100, valid)));
  AttentionPlan plan = AttentionPlan::dense("all");
  expect_same([&] { return run(plan); });
  const int64_t length = call_.q.size(2);
  plan.q_order = TokenOrder::tiles({1, 4, 4});
  Selection& selection = selection_of(plan);
  selection.q_blocks = BlockAxis::uniform(call_.q_layout, 64);
  selection.kv_blocks = BlockAxis::uniform(call_.kv_layout, 64);
  selection.summaries = {{.pool = 0}, {.pool = 4}};
  selection.classes = test::random_classes(selection, 1, 4, 4).to(at::kCUDA);
  expect_same([&] { return run(plan); });
  plan.kv_order = TokenOrder::index(test::random_order(2, 2, length).index_rows().to(at::kCUDA));
  const BlockAxis blocks = test::random_blocks(2, 2, 7, length);
  selection.kv_blocks =
      BlockAxis::from_offsets(blocks.device_offsets().to(at::kCUDA), blocks.max_size());
  selection.classes = test::random_classes(selection, 2, 4, 4).to(at::kCUDA);
  expect_same([&] { return run(plan); });
}

TEST_F(CudaGraph, HoldsOtherBranches) {
  AttentionPlan plan = AttentionPlan::dense("branches");
  const BlockAxis q_blocks = BlockAxis::uniform(call_.q_layout, 128);
  const BlockAxis kv_blocks = BlockAxis::uniform(call_.kv_layout, 64);
  {
    Selection& selection = selection_of(plan);  // until branches are added
    selection.q_blocks = q_blocks, selection.kv_blocks = kv_blocks;
    selection.classes = test::random_classes(selection, 1, 4, 2).to(at::kCUDA);
  }
  LinearBranch linear;
  linear.complement_of = 0;
  plan.branches.push_back({linear, 1});
  PooledValuesBranch pooled;
  pooled.q_blocks = q_blocks, pooled.kv_blocks = kv_blocks;
  pooled.weights =
      at::rand({1, 4, pooled.q_blocks.num_blocks(), pooled.kv_blocks.num_blocks()}).to(at::kCUDA);
  plan.branches.push_back({pooled, 2});
  expect_same([&] { return run(plan); });
}

TEST_F(CudaGraph, HoldsAPlanWithPredicatesThatWasLoweredBefore) {
  AttentionPlan plan = AttentionPlan::dense("window");
  WindowPredicate window;
  window.axes[1] = {.size = 5};
  window.axes[2] = {.size = 7};
  selection_of(plan).predicates = {window};
  const auto lowered = executor_->lower(plan, call_);
  expect_same([&] { return executor_->run(plan, call_, lowered.get()); });
}

}  // namespace
}  // namespace fovea
