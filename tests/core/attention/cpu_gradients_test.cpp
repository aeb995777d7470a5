#include <cmath>

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "core/attention/block_pool.h"
#include "core/check.h"
#include "tests/core/attention/executor_case.h"
#include "tests/core/attention/gradient_case.h"

// Gradients of the CPU's executor against those of the reference in fp64.

namespace fovea {
namespace {

using test::Case;
using test::expect_rules;
using test::FromBehind;
using test::Gradients;
using test::gradients_of;
using test::length_of;
using test::make_call;
using test::relative_error;
using test::selection_of;
using test::video_and_text;
using test::with_leaves;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

// Matrix product, softmax, matrix product, nothing in a wider type.
AttentionResult plain_composition(const AttentionPlan& plan, const AttentionCall& call) {
  const auto& branch = std::get<SoftmaxBranch>(plan.branches[0].kind);
  const int64_t heads = call.q.size(1);
  at::Tensor k = per_head(call.k, heads), v = per_head(call.v, heads);
  const at::Tensor valid = call.kv_layout.valid_mask();
  if (valid.defined()) {
    k = k.masked_fill(valid.logical_not().transpose(2, 3), 0);
    v = v.masked_fill(valid.logical_not().transpose(2, 3), 0);
  }
  at::Tensor logits =
      at::matmul(call.q, k.transpose(2, 3)) / std::sqrt(static_cast<double>(call.q.size(3)));
  if (call.bias.defined()) logits = logits + call.bias;
  const at::Tensor visible = exact_pairs(plan, branch, call);
  const double infinity = std::numeric_limits<double>::infinity();
  if (visible.defined()) logits = logits.masked_fill(visible.logical_not(), -infinity);
  const at::Tensor empty = logits.detach().eq(-infinity).all(3, true);
  logits = logits.masked_fill(empty, 0);
  const at::Tensor lse = logits.logsumexp({3}).masked_fill(empty.squeeze(3), -infinity);
  return {at::matmul(logits.softmax(3).masked_fill(empty, 0), v), lse};
}

void expect_gradients(const AttentionPlan& plan, const AttentionCall& call) {
  SCOPED_TRACE(plan.describe());
  validate(plan, call);
  const FromBehind behind(call);
  const AttentionCall own = with_leaves(call, call.q.scalar_type());
  CpuExecutor cpu;
  ASSERT_EQ(cpu.why_not(plan, own), std::nullopt);
  const Gradients got = gradients_of(behind.loss(cpu.run(plan, own, nullptr)), own);
  const AttentionCall plain = with_leaves(call, call.q.scalar_type());
  const Gradients baseline = gradients_of(behind.loss(plain_composition(plan, plain)), plain);
  const AttentionCall wide = with_leaves(call, at::kDouble);
  const Gradients expected =
      gradients_of(behind.loss(ReferenceExecutor().run(plan, wide, nullptr)), wide);
  for (size_t i = 0; i < got.size(); ++i) {
    SCOPED_TRACE(std::string(1, "qkv"[i]));
    ASSERT_EQ(got[i].scalar_type(), call.q.scalar_type());
    expect_rules(got[i], expected[i], baseline[i]);
  }
}

void set_blocks(Selection& selection, const TokenLayout& layout, int64_t block_q,
                int64_t block_kv) {
  selection.q_blocks = BlockAxis::uniform(layout, block_q);
  selection.kv_blocks = BlockAxis::uniform(layout, block_kv);
}

at::Tensor random_classes(const Selection& selection, int64_t count) {
  return at::randint(count,
                     {2, 4, selection.q_blocks.num_blocks(), selection.kv_blocks.num_blocks()})
      .to(at::kByte);
}

TEST(CpuGradients, OfABlockMapWithPadding) {
  at::manual_seed(1);
  for (const at::ScalarType dtype : {at::kFloat, at::kHalf, at::kBFloat16}) {
    for (const bool scattered : {false, true}) {
      const Case c{.layout = video_and_text(), .dtype = dtype};
      const AttentionCall call = make_call(c);
      AttentionPlan plan = AttentionPlan::dense("blocks");
      if (scattered) {
        plan.kv_order = TokenOrder::index(
            std::get<1>(at::rand({2, 2, c.layout.seq_len()}).sort(2)).to(at::kInt));
      }
      set_blocks(selection_of(plan), c.layout, 32, 20);
      selection_of(plan).classes = random_classes(selection_of(plan), 2);
      expect_gradients(plan, call);
      // Padding may hold anything, and gets nothing.
      for (at::Tensor x : {call.k, call.v}) x[0].slice(1, 200).fill_(kNaN);
      const AttentionCall own = with_leaves(call, dtype);
      const AttentionResult result = CpuExecutor().run(plan, own, nullptr);
      const Gradients got = gradients_of(FromBehind(call).loss(result), own);
      for (const at::Tensor& gradient : got) EXPECT_FALSE(gradient.isnan().any().item<bool>());
      EXPECT_EQ(length_of(got[1][0].slice(1, 200)), 0);
      EXPECT_EQ(length_of(got[2][0].slice(1, 200)), 0);
    }
  }
}

TEST(CpuGradients, OfOrdersAndVariableBlocks) {
  at::manual_seed(2);
  const Case c{.layout = TokenLayout::grid(2, 9, 11)};
  const AttentionCall call = make_call(c);
  const int64_t length = c.layout.seq_len();
  const auto shuffled = [&](int64_t heads) {
    return TokenOrder::index(std::get<1>(at::rand({2, heads, length}).sort(2)).to(at::kInt));
  };
  const auto blocks = [&](int64_t heads, int64_t count) {
    at::Tensor ends = std::get<0>(at::randint(length, {2, heads, count - 1}).sort(2));
    ends = at::cat({at::zeros({2, heads, 1}), ends, at::full({2, heads, 1}, length)}, 2);
    return BlockAxis::from_offsets(ends.to(at::kInt), length);
  };
  AttentionPlan plan = AttentionPlan::dense("clusters");
  plan.q_order = shuffled(4);
  plan.kv_order = shuffled(2);
  Selection& selection = selection_of(plan);
  selection.q_blocks = blocks(4, 6);
  selection.kv_blocks = blocks(2, 9);
  selection.classes = random_classes(selection, 2);
  selection.classes.select(2, 3).zero_();  // rows without keys
  expect_gradients(plan, call);
}

TEST(CpuGradients, OfPredicatesAndABias) {
  at::manual_seed(3);
  const Case c{.layout = video_and_text()};
  AttentionCall call = make_call(c);
  const int64_t length = c.layout.seq_len();
  WindowPredicate window;
  window.axes[1] = {.size = 3, .stride = 2};
  window.axes[2] = {.size = 4, .dilation = 2};
  const at::Tensor stored = at::rand({2, 4, length, length}).lt(0.3);
  for (const bool biased : {false, true}) {
    if (biased) call.bias = at::randn({1, 4, 1, length});
    for (const std::vector<Predicate>& predicates :
         std::vector<std::vector<Predicate>>{{window},
                                             {BandPredicate{40}, CausalPredicate{}},
                                             {StoredPredicate{stored}, DiscPredicate{5}}}) {
      AttentionPlan plan = AttentionPlan::dense("predicates");
      plan.q_order = plan.kv_order = TokenOrder::tiles({1, 4, 4});
      selection_of(plan).predicates = predicates;
      expect_gradients(plan, call);
      set_blocks(selection_of(plan), c.layout, 48, 48);
      selection_of(plan).classes = random_classes(selection_of(plan), 2);
      expect_gradients(plan, call);
    }
  }
}

// Given keys have gradients of their own, their bias too.
TEST(CpuGradients, OfGivenKeysAndTheirBias) {
  at::manual_seed(4);
  const Case c{.layout = video_and_text()};
  const AttentionCall call = make_call(c);
  for (const int64_t bias_heads : {1, 4}) {
    const auto leaf = [](at::IntArrayRef shape) { return at::randn(shape).requires_grad_(); };
    AttentionPlan plan = AttentionPlan::dense("given");
    auto& branch = std::get<SoftmaxBranch>(plan.branches[0].kind);
    branch.keys = GivenKeys{.k = leaf({2, 2, 150, c.dim}),
                            .v = leaf({2, 2, 150, c.dim}),
                            .bias = leaf({1, bias_heads, 150})};
    branch.selection.q_blocks = BlockAxis::uniform(c.layout, 32);
    branch.selection.kv_blocks = BlockAxis::uniform(TokenLayout::extra(150), 16);
    branch.selection.classes = random_classes(branch.selection, 2);
    validate(plan, call);
    const FromBehind behind(call);
    const auto gradients = [&](Executor& executor, at::ScalarType dtype) {
      const AttentionCall own = with_leaves(call, dtype);
      const at::Tensor loss = behind.loss(executor.run(plan, own, nullptr));
      return torch::autograd::grad({loss},
                                   {own.q, branch.keys->k, branch.keys->v, branch.keys->bias});
    };
    CpuExecutor cpu;
    ReferenceExecutor reference;
    const Gradients got = gradients(cpu, at::kFloat), expected = gradients(reference, at::kDouble);
    for (size_t i = 0; i < got.size(); ++i) EXPECT_LE(relative_error(got[i], expected[i]), 3e-6);
  }
}

// Summaries and branches merge by their log-sum-exp: gradients pass through it.
TEST(CpuGradients, OfPlansOfSeveralParts) {
  at::manual_seed(5);
  const Case c{.layout = video_and_text()};
  const AttentionCall call = make_call(c);
  AttentionPlan plan = AttentionPlan::dense("parts");
  set_blocks(selection_of(plan), c.layout, 32, 24);
  selection_of(plan).summaries = {{.pool = 5}, {.pool = 0}};
  selection_of(plan).classes = random_classes(selection_of(plan), 4);
  SoftmaxBranch band;
  band.selection.predicates = {BandPredicate{3}};
  plan.branches.push_back({band, 1});
  plan.group_weights = {at::rand({1, 4, 1, 1}), at::rand({c.layout.seq_len(), 1})};
  validate(plan, call);
  const FromBehind behind(call);
  const AttentionCall own = with_leaves(call, at::kFloat), wide = with_leaves(call, at::kDouble);
  const Gradients got = gradients_of(behind.loss(CpuExecutor().run(plan, own, nullptr)), own);
  const Gradients expected =
      gradients_of(behind.loss(ReferenceExecutor().run(plan, wide, nullptr)), wide);
  for (size_t i = 0; i < got.size(); ++i) EXPECT_LE(relative_error(got[i], expected[i]), 3e-6);
}

// Either result alone, and of the inputs one alone; the lists outlive the executor and the plan.
TEST(CpuGradients, OfPartsOfTheProblem) {
  at::manual_seed(6);
  const Case c{.layout = TokenLayout::grid(1, 9, 9)};
  const AttentionCall call = make_call(c);
  AttentionPlan plan = AttentionPlan::dense("parts");
  selection_of(plan).predicates = {BandPredicate{12}};
  const auto run = [&](const AttentionCall& own) { return CpuExecutor().run(plan, own, nullptr); };
  const AttentionCall own = with_leaves(call, at::kFloat), wide = with_leaves(call, at::kDouble);
  const auto expected = [&] { return ReferenceExecutor().run(plan, wide, nullptr); };
  const Gradients from_lse = gradients_of(run(own).lse.sin().sum(), own);
  const Gradients expected_lse =
      torch::autograd::grad({expected().lse.sin().sum()}, {wide.q, wide.k});
  EXPECT_LE(relative_error(from_lse[0], expected_lse[0]), 3e-6);
  EXPECT_LE(relative_error(from_lse[1], expected_lse[1]), 3e-6);
  EXPECT_EQ(length_of(from_lse[2]), 0);
  const Gradients from_out = gradients_of(run(own).out.sum(), own);
  const Gradients expected_out = gradients_of(expected().out.sum(), wide);
  EXPECT_LE(relative_error(from_out[2], expected_out[2]), 3e-6);
  for (at::Tensor AttentionCall::*x : {&AttentionCall::q, &AttentionCall::k, &AttentionCall::v}) {
    AttentionCall one = call;
    one.*x = (own.*x).detach().clone().requires_grad_();
    const at::Tensor got = torch::autograd::grad({run(one).out.sin().sum()}, {one.*x})[0];
    const Gradients all = gradients_of(run(own).out.sin().sum(), own);
    EXPECT_TRUE(got.equal(all[x == &AttentionCall::q ? 0 : x == &AttentionCall::k ? 1 : 2]));
  }
}

TEST(CpuGradients, HaveNoGradientsThemselves) {
  const Case c{.layout = TokenLayout::extra(8)};
  const AttentionCall own = with_leaves(make_call(c), at::kFloat);
  AttentionPlan plan = AttentionPlan::dense("plan");
  selection_of(plan).predicates = {BandPredicate{3}};
  const AttentionResult result = CpuExecutor().run(plan, own, nullptr);
  EXPECT_THROW(torch::autograd::grad({result.out.sum()}, {own.q}, {}, true, true), Error);
}

}  // namespace
}  // namespace fovea
