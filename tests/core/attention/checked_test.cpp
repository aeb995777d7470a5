#include "core/attention/executors/checked.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "core/attention/attention.h"
#include "core/attention/functional.h"
#include "core/check.h"
#include "tests/core/attention/executor_case.h"
#include "tests/support/files.h"

namespace fovea {
namespace {

using test::Case;
using test::expect_error;
using test::make_call;
using test::random_classes;
using test::random_order;
using test::selection_of;
using test::video_and_text;

AttentionPlan blocks_plan(const Case& c, int64_t classes) {
  AttentionPlan plan = AttentionPlan::dense("blocks");
  Selection& selection = selection_of(plan);
  selection.q_blocks = BlockAxis::uniform(c.layout, 32);
  selection.kv_blocks = BlockAxis::uniform(c.layout, 24);
  for (int64_t i = 2; i < classes; ++i) selection.summaries.push_back({.pool = 5 * (i - 2)});
  selection.classes = random_classes(selection, c.batch, c.heads, classes);
  return plan;
}

// One plan for each kind of branch, and all that selections can hold.
std::vector<AttentionPlan> all_plans(const Case& c) {
  const int64_t length = c.layout.seq_len();
  std::vector<AttentionPlan> plans = {blocks_plan(c, 2), blocks_plan(c, 4)};
  plans.push_back(blocks_plan(c, 2));
  plans.back().q_order = random_order(c.batch, c.heads, length);
  plans.back().kv_order = random_order(c.batch, c.kv_heads, length);
  selection_of(plans.back()).predicates = {BandPredicate{60}, CausalPredicate{.in_order = true}};
  WindowPredicate window;
  window.axes[1] = {.size = 3, .stride = 2};
  window.axes[2] = {.size = 4, .dilation = 2};
  plans.push_back(blocks_plan(c, 2));
  selection_of(plans.back()).predicates = {
      window, DiscPredicate{4}, StoredPredicate{at::rand({1, c.heads, length, length}).lt(0.7)}};
  plans.push_back(blocks_plan(c, 2));
  plans.back().branches.push_back({LinearBranch{.complement_of = 0}, 1});
  PooledValuesBranch pooled;
  pooled.q_blocks = pooled.kv_blocks = BlockAxis::uniform(c.layout, 40);
  const int64_t blocks = pooled.q_blocks.num_blocks();
  pooled.weights = at::rand({1, c.heads, blocks, blocks});
  plans.back().branches.push_back({pooled, 2});
  plans.back().group_weights = {at::rand({length, 1}), at::Tensor(), at::rand({1, 4, 1, 1})};
  plans.push_back(blocks_plan(c, 2));
  const std::vector<int64_t> keys = {c.batch, 1, 9, c.dim};
  SoftmaxBranch given;
  given.keys = GivenKeys{.k = at::randn(keys), .v = at::randn(keys), .bias = at::randn({1, 4, 9})};
  plans.back().branches.push_back({given, 0});
  plans.back().branches.push_back(
      {ReuseBranch{.out = at::randn({2, 4, length, c.dim}), .lse = at::randn({2, 4, length})}, 0});
  return plans;
}

// Some rows alone are the same as those rows of everything.
TEST(Reference, ComputesSomeRows) {
  at::manual_seed(1);
  const Case c{.layout = video_and_text(), .dtype = at::kDouble};
  AttentionCall call = make_call(c);
  const at::Tensor rows = at::tensor({0, 5, 31, 32, 100, 188, 189, 200, 218}, at::kLong);
  std::vector<AttentionPlan> plans = all_plans(c);
  plans.push_back(blocks_plan(c, 2));
  auto& quantized = std::get<SoftmaxBranch>(plans.back().branches[0].kind);
  quantized.precision.q = quantized.precision.k = quantized.precision.v =
      quantized.precision.p = {.format = NumberFormat::int8};
  for (const bool biased : {false, true}) {
    if (biased) call.bias = at::randn({2, 1, 219, 219}, at::kDouble);
    for (const AttentionPlan& plan : plans) {
      const AttentionResult all = reference_attention(plan, call);
      const AttentionResult some = reference_attention(plan, call, {.rows = rows});
      const at::Tensor expected = all.out.index_select(2, rows);
      EXPECT_LE(test::relative_error(some.out, expected), 1e-14) << plan.describe();
      EXPECT_TRUE(at::allclose(some.lse, all.lse.index_select(2, rows), 1e-13, 1e-13));
    }
  }
}

TEST(CheckedExecutor, PassesTheCpuOnAllKindsOfBranches) {
  at::manual_seed(2);
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
    const Case c{.layout = video_and_text(), .dtype = dtype};
    AttentionCall call = make_call(c);
    for (const AttentionPlan& plan : all_plans(c)) {
      for (call.layer = 0; call.layer < 3; ++call.layer) {
        const AttentionResult checked = run_plan(plan, call, "checked:cpu");
        const AttentionResult plain = run_plan(plan, call, "cpu");
        EXPECT_TRUE(checked.out.equal(plain.out) && checked.lse.equal(plain.lse));
      }
    }
  }
}

// Adds to what another executor gives.
class Off : public Executor {
 public:
  Off(int64_t row, float out, float lse) : row_(row), out_(out), lse_(lse) {}
  std::string name() const override { return "off"; }
  std::optional<std::string> why_not(const AttentionPlan&, const AttentionCall&) const override {
    return std::nullopt;
  }
  AttentionResult run(const AttentionPlan& plan, const AttentionCall& call,
                      const LoweredPlan*) override {
    AttentionResult result = ReferenceExecutor().run(plan, call);
    result.out[1][2][row_] *= 1 + out_;
    result.lse[1][2][row_] += lse_;
    return result;
  }

 private:
  int64_t row_;
  float out_, lse_;
};

TEST(CheckedExecutor, NamesWhatIsWrong) {
  at::manual_seed(3);
  const Case c{.layout = video_and_text()};
  AttentionCall call = make_call(c);
  call.layer = 7;
  call.context.step = 21;
  const AttentionPlan plan = blocks_plan(c, 2);
  const auto message = [&](int64_t row, float out, float lse) -> std::string {
    CheckedExecutor checked(std::make_unique<Off>(row, out, lse));
    try {
      checked.run(plan, call, nullptr);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::non_finite);
      return error.what();
    }
    return "";
  };
  const std::string what = message(218, 1e-3f, 0);  // the last row is always looked at
  for (const char* part : {"executor off", "plan of blocks", "layer 7", "step 21", "batch 1",
                           "head 2", "row 218", "rule M"}) {
    EXPECT_NE(what.find(part), std::string::npos) << what;
  }
  EXPECT_NE(message(0, 0, 1e-4f).find("rule M7"), std::string::npos);
  EXPECT_NE(message(0, std::numeric_limits<float>::quiet_NaN(), 0).find("rule M6"),
            std::string::npos);
  EXPECT_EQ(message(0, 0, 0), "");
}

// Any row is looked at sooner or later, and always the same ones of a call.
TEST(CheckedExecutor, DrawsRowsByCounting) {
  const Case c{.layout = video_and_text()};
  AttentionCall call = make_call(c);
  const AttentionPlan plan = blocks_plan(c, 2);
  at::Tensor seen = at::zeros({219}, at::kBool);
  for (call.context.step = 0; call.context.step < 10; ++call.context.step) {
    for (call.layer = 0; call.layer < 12; ++call.layer) {
      const at::Tensor rows = sampled_rows(plan, call, 16);
      ASSERT_EQ(rows.size(0), 16);
      EXPECT_EQ(rows[0].item<int64_t>(), 0);
      EXPECT_EQ(rows[15].item<int64_t>(), 218);
      EXPECT_TRUE(rows.equal(sampled_rows(plan, call, 16)));
      seen.index_fill_(0, rows, true);
    }
  }
  EXPECT_TRUE(seen.all().item<bool>());
  EXPECT_TRUE(sampled_rows(plan, call, 300).equal(at::arange(219)));
}

TEST(CheckedExecutor, ChecksTheOneThatRuns) {
  at::manual_seed(4);
  const Case c{.layout = video_and_text()};
  AttentionCall call = make_call(c);
  Attention attention("topk", {{"block_q", 32}, {"block_kv", 32}}, "checked");
  Attention plain("topk", {{"block_q", 32}, {"block_kv", 32}});
  EXPECT_TRUE(attention.run(call).equal(plain.run(call)));
  call.role = AttentionRole::cross;
  attention.run(call);
  EXPECT_EQ(attention.counts().at("self: topk on checked:cpu"), 1);
  EXPECT_EQ(attention.counts().at("cross: dense on checked:cpu"), 1);
  expect_error(ErrorCode::usage, "unknown executor",
               [] { Attention("dense", Json::object(), "chekced"); });
}

// Quantized plans are held against the emulation.
TEST(CheckedExecutor, TakesQuantizedPlans) {
  at::manual_seed(5);
  const Case c{.layout = video_and_text()};
  const AttentionCall call = make_call(c);
  AttentionPlan plan = blocks_plan(c, 2);
  auto& branch = std::get<SoftmaxBranch>(plan.branches[0].kind);
  branch.precision.q = branch.precision.k = {.format = NumberFormat::int8};
  EXPECT_NO_THROW(run_plan(plan, call, "checked"));
  branch.precision.smooth_k = true;
  branch.precision.v = {.format = NumberFormat::e4m3, .unit = ScaleUnit::channel};
  EXPECT_NO_THROW(run_plan(plan, call, "checked"));
  CheckedExecutor checked(std::make_unique<Off>(0, 0.2f, 0));
  expect_error(ErrorCode::non_finite, "row 0", [&] { checked.run(plan, call, nullptr); });
}

// Rounds small e4m3 weights more finely than the reference, and adds to lse.
class Finer : public Executor {
 public:
  explicit Finer(double lse) : lse_(lse) {}
  std::string name() const override { return "finer"; }
  std::optional<std::string> why_not(const AttentionPlan&, const AttentionCall&) const override {
    return std::nullopt;
  }
  AttentionResult run(const AttentionPlan& plan, const AttentionCall& call,
                      const LoweredPlan*) override {
    AttentionResult result = reference_attention(plan, call, {.keeps_small_weights = true});
    result.lse += lse_;
    return result;
  }

 private:
  double lse_;
};

TEST(CheckedExecutor, AllowsFinerSmallWeights) {
  at::manual_seed(6);
  AttentionCall call = make_call({.layout = TokenLayout::extra(200)});
  // One key has nearly all of the weight; those of the others have few bits in e4m3, if any.
  call.bias = at::zeros({1, 1, 1, 200});
  call.bias.select(3, 17).fill_(12);
  AttentionPlan plan = AttentionPlan::dense("weights");
  Precision& precision = std::get<SoftmaxBranch>(plan.branches[0].kind).precision;
  const auto run = [&](double lse) {
    CheckedExecutor checked(std::make_unique<Finer>(lse));
    return checked.run(plan, call, nullptr).out;
  };
  precision.p = {.format = NumberFormat::e4m3, .unit = ScaleUnit::head};
  EXPECT_GT(test::relative_error(run(0), ReferenceExecutor().run(plan, call).out), 2e-5);
  EXPECT_EQ(other_roundings(plan, call, at::Tensor()).size(), 3u);
  expect_error(ErrorCode::non_finite, "rule M7", [&] { run(2e-2); });
  precision.p.format = NumberFormat::int8;
  EXPECT_EQ(other_roundings(plan, call, at::Tensor()).size(), 2u);
  precision.p = {};
  EXPECT_EQ(other_roundings(plan, call, at::Tensor()).size(), 0u);
}

}  // namespace
}  // namespace fovea
