// Results of executors of GPUs, emulated and on a GPU where there is one.

#include "core/attention/executors/cuda.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <gtest/gtest.h>

#include "core/attention/executors/cuda_linear.h"
#include "core/attention/planners/sla.h"
#include "core/check.h"
#include "tests/conformance/suite.h"
#include "tests/core/attention/cuda_case.h"
#include "tests/core/attention/plan_cases.h"

namespace fovea {
namespace {

using test::selection_of;

class CudaExecutorTest : public test::CudaBackendTest {};

TEST_P(CudaExecutorTest, MeetsTheRulesOfConformance) {
  for (const at::ScalarType dtype : {at::kBFloat16, at::kHalf}) {
    test::Tally tally;
    for (int64_t i = 0; tally.ran < 150; ++i) {
      ASSERT_LT(i, 8000) << tally.describe();
      const auto finding = examine(*executor_, test::make_problem(i, dtype, device_), tally);
      EXPECT_FALSE(finding) << finding->rule << ": " << finding->text;
    }
    for (int64_t i = 0; i < 8; ++i) {
      const auto finding =
          examine_retrieval(*executor_, test::make_retrieval(i, dtype, device_), tally);
      EXPECT_FALSE(finding) << finding->rule << ": " << finding->text;
    }
    printf("%s\n", tally.describe().c_str());
  }
}

TEST_P(CudaExecutorTest, RunsPlansOfAllPlanners) {
  AttentionCall call = call_of(test::video_and_text());
  for (const AttentionPlan& plan : test::plans_of_all_planners(call)) {
    const auto reason = executor_->why_not(plan, call);
    if (!reason) {
      expect_rules(plan, call);
      continue;
    }
    const bool is_quantized = plan.planner == "fps" || plan.planner == "paro";
    EXPECT_TRUE(is_quantized) << plan.planner << ": " << *reason;
  }
}

TEST_P(CudaExecutorTest, RunsDensePlansWithPadding) {
  const at::Tensor valid = at::tensor({130, 0}, at::kLong);
  TokenLayout joint = TokenLayout::grid(2, 9, 11);
  joint.append(TokenLayout::text(140, valid));
  for (const TokenLayout& layout : {joint, TokenLayout::sequence(300, valid),
                                    TokenLayout::text(131, valid), TokenLayout::grid(1, 1, 257)}) {
    AttentionCall call = call_of(layout);
    expect_rules(AttentionPlan::dense("dense"), call);
    call.bias = on(at::randn({1, 4, 1, layout.seq_len()}));
    expect_rules(AttentionPlan::dense("dense"), call);
    call.bias = on(at::randn({2, 1, 1, 1}));
    expect_rules(AttentionPlan::dense("dense"), call);
  }
}

// Blocks of all kinds, orders of each head, padding that they scatter.
TEST_P(CudaExecutorTest, RunsBlocksInAnyOrder) {
  const at::Tensor valid = at::tensor({101, 7}, at::kLong);
  TokenLayout joint = TokenLayout::grid(3, 7, 13);
  joint.append(TokenLayout::text(110, valid));
  for (const TokenLayout& layout : {joint, TokenLayout::sequence(400, valid)}) {
    const AttentionCall call = call_of(layout);
    const int64_t length = layout.seq_len();
    for (const int64_t size : {17, 64, 128, 216}) {
      AttentionPlan plan = AttentionPlan::dense("uniform");
      Selection& selection = selection_of(plan);
      selection.q_blocks = BlockAxis::uniform(call.q_layout, size);
      selection.kv_blocks = BlockAxis::uniform(call.kv_layout, size);
      selection.classes = on(test::random_classes(selection, 1, 4, 2));
      expect_rules(plan, call);
      plan.q_order = on(test::random_order(2, 4, length));
      expect_rules(plan, call);
      plan.kv_order = on(test::random_order(1, 2, length));
      expect_rules(plan, call);
    }
    AttentionPlan plan = AttentionPlan::dense("offsets");
    plan.kv_order = TokenOrder::axes({{2, 0, 1}, {1, 2, 0}});
    set_random_blocks(plan, call, 2);
    expect_rules(plan, call);
    AttentionPlan tiles = AttentionPlan::dense("tiles");
    tiles.q_order = tiles.kv_order = TokenOrder::tiles({2, 3, 4});
    Selection& selection = selection_of(tiles);
    selection.q_blocks = selection.kv_blocks = BlockAxis::tiles(call.q_layout, {2, 3, 4});
    selection.classes = on(test::random_classes(selection, 2, 1, 2));
    expect_rules(tiles, call);
  }
}

// Lists of clusters are packed, but not where keys have biases or gradients are wanted, which a
// lowered plan does not know.
TEST_P(CudaExecutorTest, RunsClusters) {
  AttentionCall call = call_of(TokenLayout::sequence(700));
  AttentionPlan plan = AttentionPlan::dense("clusters");
  Selection& selection = selection_of(plan);
  selection.q_blocks = on(test::random_blocks(2, 4, 5, 700));
  selection.kv_blocks = on(test::random_blocks(2, 4, 40, 700));
  selection.classes = on(test::random_classes(selection, 2, 4, 2));
  expect_rules(plan, call);
  plan.q_order = on(test::random_order(2, 4, 700));
  plan.kv_order = on(test::random_order(2, 2, 700));
  expect_rules(plan, call);
  selection.kv_blocks = BlockAxis::uniform(call.kv_layout, 33);
  selection.classes = on(test::random_classes(selection, 2, 4, 2));
  expect_rules(plan, call);
  const auto lowered = executor_->lower(plan, call);
  call.bias = on(at::randn({2, 1, 1, 700}));
  expect_rules(plan, call);
  const AttentionResult late = executor_->run(plan, call, lowered.get());
  test::expect_same_bits(late.out, executor_->run(plan, call, nullptr).out, "a bias after all");
}

TEST_P(CudaExecutorTest, RunsSummaries) {
  const at::Tensor valid = at::tensor({101, 7}, at::kLong);
  TokenLayout joint = TokenLayout::grid(3, 7, 13);
  joint.append(TokenLayout::text(110, valid));
  for (const TokenLayout& layout : {joint, TokenLayout::grid(2, 9, 16)}) {
    AttentionCall call = call_of(layout);
    AttentionPlan plan = AttentionPlan::dense("summaries");
    Selection& selection = selection_of(plan);
    selection.summaries = {{.pool = 0}, {.pool = 2}, {.pool = 5, .log_count = false}};
    selection.q_blocks = BlockAxis::uniform(call.q_layout, 128);
    selection.kv_blocks = BlockAxis::uniform(call.kv_layout, 128);
    selection.classes = on(test::random_classes(selection, 2, 4, 5));
    expect_rules(plan, call);
    set_random_blocks(plan, call, 5);
    expect_rules(plan, call);
    plan.kv_order = on(test::random_order(2, 2, layout.seq_len()));
    expect_rules(plan, call);
    // Blocks of keys of each head of queries.
    selection.kv_blocks = on(test::random_blocks(2, 4, 12, layout.seq_len()));
    expect_rules(plan, call);
    call.bias = on(at::randn({1, 4, 1, layout.seq_len()}));
    expect_rules(plan, call);
  }
}

TEST_P(CudaExecutorTest, RunsPredicates) {
  const at::Tensor valid = at::tensor({101, 7}, at::kLong);
  TokenLayout joint = TokenLayout::grid(3, 7, 13);
  joint.append(TokenLayout::text(110, valid));
  WindowPredicate window;
  window.axes[0] = {.size = 2, .stride = 2, .causal = true};
  window.axes[1] = {.size = 5};
  window.axes[2] = {.size = 3, .dilation = 2};
  for (const TokenLayout& layout : {joint, TokenLayout::grid(3, 7, 13)}) {
    const AttentionCall call = call_of(layout);
    const int64_t length = layout.seq_len();
    const at::Tensor seen = on(at::rand({2, 1, length, length}).lt(0.6));
    for (const std::vector<Predicate>& predicates : {std::vector<Predicate>{window},
                                                     {DiscPredicate{3.5}},
                                                     {BandPredicate{50, true}},
                                                     {CausalPredicate{}, StoredPredicate{seen}},
                                                     {StoredPredicate{seen.transpose(2, 3)}}}) {
      AttentionPlan plan = AttentionPlan::dense("predicates");
      selection_of(plan).predicates = predicates;
      expect_rules(plan, call);
      plan.q_order = TokenOrder::tiles({1, 4, 4});
      plan.kv_order = on(test::random_order(1, 2, length));
      expect_rules(plan, call);
      set_random_blocks(plan, call, 2);
      expect_rules(plan, call);
      selection_of(plan).summaries = {{.pool = 3}};
      if (predicates.size() == 1) continue;
      // A summary is wholly visible: here by all that is hidden being told key by key.
      selection_of(plan).classes = on(test::random_classes(selection_of(plan), 2, 4, 3));
      expect_rules(plan, call);
    }
  }
}

TEST_P(CudaExecutorTest, AddsLinearAttentionOfSkippedBlocks) {
  TokenLayout with_text = TokenLayout::grid(3, 9, 10);
  with_text.append(TokenLayout::text(21));
  for (const TokenLayout& layout : {TokenLayout::grid(1, 17, 20), with_text}) {
    for (const int64_t dim : {64, 128}) {
      const AttentionCall call = call_of(layout, {.layout = {}, .kv_heads = 4, .dim = dim});
      for (const FeatureMap map :
           {FeatureMap::softmax, FeatureMap::elu_plus_one, FeatureMap::relu}) {
        for (const bool is_projected : {false, true}) {
          SlaOptions options{.density = 0.3, .feature_map = map};
          if (is_projected) options.blocks = {.q = 128, .kv = 64, .tile = {{1, 8, 8}}};
          at::Tensor weight, bias;
          if (is_projected) {
            weight = on(at::randn({dim, dim}).div(std::sqrt(static_cast<double>(dim))));
            bias = on(at::randn({dim}));
          }
          AttentionPlan plan = sla_plan(call, options, weight, bias);
          ASSERT_NE(linear_to_add(plan, call), nullptr) << plan.describe();
          expect_rules(plan, call);
          plan.group_weights = {at::Tensor(), on(at::full({1, 4, 1, 1}, 0.5f))};
          EXPECT_EQ(linear_to_add(plan, call), nullptr);
          expect_rules(plan, call);
        }
      }
    }
  }
}

TEST_P(CudaExecutorTest, LinearAttentionWithGradientsIsThatOfTensors) {
  AttentionCall call =
      call_of(TokenLayout::grid(1, 10, 20), {.layout = {}, .kv_heads = 4, .dim = 64});
  const AttentionPlan plan = sla_plan(call, {.density = 0.3});
  ASSERT_NE(linear_to_add(plan, call), nullptr);
  call.bias = on(at::zeros({1, 1, 1, 200})).requires_grad_();
  EXPECT_EQ(linear_to_add(plan, call), nullptr);
  call.bias = at::Tensor();
  call.v = call.v.detach().clone().requires_grad_();
  EXPECT_EQ(linear_to_add(plan, call), nullptr);
  const c10::NoGradGuard no_gradients;
  EXPECT_NE(linear_to_add(plan, call), nullptr);
}

TEST_P(CudaExecutorTest, LinearAttentionOfNoBlockIsZero) {
  const AttentionCall call =
      call_of(TokenLayout::grid(1, 10, 20), {.layout = {}, .kv_heads = 4, .dim = 64});
  AttentionPlan plan = sla_plan(call, {.density = 1, .blocks = {.q = 64, .kv = 64, .tile = {}}});
  ASSERT_NE(linear_to_add(plan, call), nullptr);
  const at::Tensor both = executor_->run(plan, call, nullptr).out;
  plan.branches.pop_back();
  test::expect_same_bits(both, executor_->run(plan, call, nullptr).out, "softmax alone");
}

TEST_P(CudaExecutorTest, RunsPlansMadeByHand) {
  AttentionCall call = test::call_of_all();
  const int64_t length = call.q.size(2);
  call = call_of(call.q_layout);
  ASSERT_EQ(call.q.size(2), length);
  for (AttentionPlan plan : {test::plan_of_predicates(call), test::plan_of_summaries(call)}) {
    plan.q_order = on(plan.q_order), plan.kv_order = on(plan.kv_order);
    for (Branch& branch : plan.branches) {
      if (auto* softmax = std::get_if<SoftmaxBranch>(&branch.kind)) {
        Selection& selection = softmax->selection;
        selection.q_blocks = on(selection.q_blocks), selection.kv_blocks = on(selection.kv_blocks);
        selection.classes = on(selection.classes);
        for (Predicate& predicate : selection.predicates) {
          auto* stored = std::get_if<StoredPredicate>(&predicate);
          if (stored != nullptr) stored->visible = on(stored->visible);
        }
      }
    }
    if (plan.branches.size() > 1) plan.branches.resize(1), plan.group_weights.clear();
    expect_rules(plan, call);
  }
}

TEST_P(CudaExecutorTest, TellsFaultsOfPlansAtALaterCall) {
  const AttentionCall call = call_of(TokenLayout::sequence(100), {.layout = {}, .batch = 1});
  AttentionPlan plan = AttentionPlan::dense("faulty");
  Selection& selection = selection_of(plan);
  selection.q_blocks = BlockAxis::uniform(call.q_layout, 64);
  selection.kv_blocks =
      BlockAxis::from_offsets(on(at::tensor({0, 70, 120, 100}, at::kInt).view({1, 1, 4})), 100);
  selection.classes = on(at::ones({1, 1, 2, 3}, at::kByte));
  executor_->run(plan, call, nullptr);
  if (device_.is_cuda()) at::empty({1}, at::device(device_)).fill_(0).item<float>();
  try {
    executor_->run(AttentionPlan::dense("dense"), call, nullptr);
    FAIL() << "nothing told";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::bad_data);
    EXPECT_NE(std::string(error.what()).find("blocks that descend"), std::string::npos);
  }
  expect_rules(AttentionPlan::dense("dense"), call);
}

TEST_P(CudaExecutorTest, LoweredPlansServeOtherTensors) {
  AttentionCall call = call_of(test::video_and_text());
  AttentionPlan plan = AttentionPlan::dense("kept");
  plan.q_order = plan.kv_order = TokenOrder::tiles({1, 4, 4});
  WindowPredicate window;
  window.axes[1] = {.size = 5};
  selection_of(plan).predicates = {window};
  const auto lowered = executor_->lower(plan, call);
  call = call_of(test::video_and_text());
  // Padding may change from call to call.
  TokenLayout other = TokenLayout::grid(3, 7, 9);
  call.kv_layout = on(other.append(TokenLayout::text(30, at::tensor({2, 17}, at::kLong))));
  const AttentionResult got = executor_->run(plan, call, lowered.get());
  const AttentionResult expected = executor_->run(plan, call, nullptr);
  test::expect_same_bits(got.out, expected.out, "out");
  test::expect_same_bits(got.lse, expected.lse, "lse");
}

INSTANTIATE_TEST_SUITE_P(Backends, CudaExecutorTest, testing::ValuesIn(test::cuda_backends()),
                         [](const auto& info) { return std::string(info.param->name); });

TEST(CudaExecutorReasons, AreSaidInWords) {
  CudaExecutor executor(test::emulated_backend());
  const auto reason = [&](const auto& change) {
    test::Case c{.layout = TokenLayout::sequence(9)};
    c.dtype = at::kHalf;
    AttentionCall call = test::make_call(c);
    AttentionPlan plan = AttentionPlan::dense("plan");
    change(plan, call);
    return executor.why_not(plan, call).value_or("none");
  };
  using Plan = AttentionPlan;
  using Call = AttentionCall;
  EXPECT_EQ(reason([](Plan&, Call&) {}), "none");
  EXPECT_EQ(reason([](Plan&, Call& c) { c.bias = at::zeros({1, 1, 1, 9}); }), "none");
  EXPECT_EQ(reason([](Plan&, Call& c) {
              c.bias = at::zeros({1, 1, 9, 9});
            }),
            "takes no bias that differs from query to query");
  EXPECT_EQ(reason([](Plan&, Call& c) { c.q = c.q.to(at::kFloat); }),
            "computes in bf16 and fp16, the inputs are Float");
  EXPECT_EQ(reason([](Plan&, Call& c) { c.v = c.v.slice(3, 0, 8); }),
            "takes values of as many channels as keys");
  EXPECT_EQ(reason([](Plan&, Call& c) { c.sm_scale = 0; }), "takes scales above 0");
  EXPECT_EQ(reason([](Plan& p, Call&) {
              auto& branch = std::get<SoftmaxBranch>(p.branches[0].kind);
              branch.precision.q = {.format = NumberFormat::int8, .unit = ScaleUnit::token};
            }),
            "takes q and k both in int8 or e4m3, v in e4m3 per head or channel and p in e4m3 with "
            "one scale, the plan asks for q int8 per token");
  EXPECT_EQ(reason([](Plan& p, Call&) { selection_of(p).summaries.resize(9); }),
            "takes up to 8 summaries");
  EXPECT_EQ(reason([](Plan& p, Call&) { selection_of(p).predicates.assign(9, CausalPredicate{}); }),
            "takes predicates of up to 8 rules, of a window one for each axis");
  EXPECT_EQ(reason([](Plan& p, Call&) {
              selection_of(p).predicates.assign(5, StoredPredicate{at::ones({1, 1, 9, 9})});
            }),
            "takes up to 4 stored predicates");
#if FOVEA_HAS_CUDA
  const test::Case c{.layout = TokenLayout::sequence(9), .dtype = at::kHalf};
  EXPECT_EQ(CudaExecutor(sm90_backend()).why_not(AttentionPlan::dense("plan"), test::make_call(c)),
            "runs on NVIDIA GPUs of compute capability 9.0");
  EXPECT_EQ(CudaExecutor(sm80_backend()).why_not(AttentionPlan::dense("plan"), test::make_call(c)),
            "runs on NVIDIA GPUs of compute capability 8.0 and newer");
#endif
}

}  // namespace
}  // namespace fovea
