// Sparse-Linear Attention by its formula, forward and backward.

#include <cmath>

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <gtest/gtest.h>

#include "core/attention/executors/reference.h"
#include "core/attention/planner.h"
#include "core/attention/planners/sla.h"
#include "core/attention/select.h"
#include "core/check.h"
#include "tests/support/attention_cases.h"
#include "tests/support/files.h"
#include "tests/support/golden.h"

namespace fovea {
namespace {

using test::relative_error;
using Rows = std::vector<std::vector<int64_t>>;

const Selection& selection_of(const AttentionPlan& plan) {
  return std::get<SoftmaxBranch>(plan.branches[0].kind).selection;
}

at::Tensor run(const AttentionPlan& plan, const AttentionCall& call) {
  validate(plan, call);
  return ReferenceExecutor().run(plan, call).out;
}

// The kept blocks: the products of block means, of which each row keeps its `count` highest.
at::Tensor kept_of(const AttentionCall& call, const Rows& q_blocks, const Rows& kv_blocks,
                   int64_t count) {
  const auto nq = static_cast<int64_t>(q_blocks.size()),
             nk = static_cast<int64_t>(kv_blocks.size());
  at::Tensor kept = at::zeros({call.q.size(0), call.q.size(1), nq, nk}, at::kBool);
  test::for_each_head(call, [&](int64_t b, int64_t h, int64_t g) {
    // The mean of all keys adds the same to all scores of a row.
    for (int64_t i = 0; i < nq; ++i) {
      std::vector<std::pair<double, int64_t>> scores;
      const at::Tensor q = test::mean_of(
          call.q[b][h], test::valid_rows(call.q_layout, b, q_blocks[static_cast<size_t>(i)]));
      for (int64_t j = 0; j < nk; ++j) {
        const auto rows = test::valid_rows(call.kv_layout, b, kv_blocks[static_cast<size_t>(j)]);
        if (rows.empty()) continue;
        scores.emplace_back(-at::dot(q, test::mean_of(call.k[b][g], rows)).item<double>(), j);
      }
      std::sort(scores.begin(), scores.end());
      for (size_t at = 0; at < std::min(scores.size(), static_cast<size_t>(count)); ++at) {
        kept[b][h][i][scores[at].second] = true;
      }
    }
  });
  return kept;
}

at::Tensor linear_of(const AttentionCall& call, const at::Tensor& skipped) {
  at::Tensor out = at::zeros({2, 4, call.q.size(2), 6}, at::kDouble);
  test::for_each_head(call, [&](int64_t b, int64_t h, int64_t g) {
    const at::Tensor weights =
        at::matmul(at::softmax(call.q[b][h], 1), at::softmax(call.k[b][g], 1).t());
    const at::Tensor values = call.v[b][g], taken = skipped[b][h], to = out[b][h];
    const auto w = weights.accessor<double, 2>(), v = values.accessor<double, 2>();
    const auto takes = taken.accessor<bool, 2>();
    auto o = to.accessor<double, 2>();
    for (int64_t i = 0; i < weights.size(0); ++i) {
      double total = 0;
      for (int64_t j = 0; j < weights.size(1); ++j) {
        if (!takes[i][j] || !test::is_valid(call.kv_layout, b, j)) continue;
        total += w[i][j];
        for (int64_t c = 0; c < 6; ++c) o[i][c] += w[i][j] * v[j][c];
      }
      for (int64_t c = 0; c < 6 && total > 0; ++c) o[i][c] /= total + 1e-5;
    }
  });
  return out;
}

TEST(SlaPlanner, IsItsFormula) {
  at::manual_seed(1);
  const at::Tensor weight = at::randn({6, 6}, at::kDouble), bias = at::randn({6}, at::kDouble);
  for (const TokenLayout& layout : test::awkward_layouts()) {
    AttentionCall call = test::awkward_call(layout);
    const Rows q_blocks = test::blocks_of(layout, 32), kv_blocks = test::blocks_of(layout, 16);
    const int64_t count = kept_blocks(0.3, static_cast<int64_t>(kv_blocks.size()));
    const at::Tensor pairs =
        test::pairs_of_blocks(call, q_blocks, kv_blocks, kept_of(call, q_blocks, kv_blocks, count));
    const at::Tensor exact = test::direct_attention(call, pairs);
    Json options = {{"density", 0.3}, {"block_q", 32}, {"block_kv", 16}};
    EXPECT_LE(relative_error(run(make_planner("sla", options)->plan(call), call), exact), 1e-10);
    call.params = {weight, bias};
    const at::Tensor rest = at::matmul(linear_of(call, pairs.logical_not()), weight.t()) + bias;
    EXPECT_LE(relative_error(run(make_planner("sla", options)->plan(call), call), exact + rest),
              1e-10)
        << layout.describe();
    options["linear_over"] = "all";
    const at::Tensor all = at::matmul(linear_of(call, at::ones_like(pairs)), weight.t()) + bias;
    EXPECT_LE(relative_error(run(make_planner("sla", options)->plan(call), call), exact + all),
              1e-10);
    call.params.clear();
    options["projection"] = "identity";
    EXPECT_LE(relative_error(run(make_planner("sla", options)->plan(call), call),
                             exact + linear_of(call, at::ones_like(pairs))),
              1e-10);
  }
}

TEST(SlaPlan, WithAZeroProjectionIsSparse) {
  at::manual_seed(2);
  const AttentionCall call = test::awkward_call(TokenLayout::grid(3, 5, 7));
  const SlaOptions options{.density = 0.3, .blocks = {.q = 16, .kv = 16, .tile = {}}};
  AttentionPlan plan = sla_plan(call, options, at::zeros({6, 6}, at::kDouble));
  const at::Tensor out = run(plan, call);
  plan.branches.pop_back();
  EXPECT_TRUE(out.equal(run(plan, call)));
}

TEST(SlaPlan, TakesAGivenBlockMask) {
  at::manual_seed(3);
  const AttentionCall call = test::awkward_call(TokenLayout::extra(40));
  const SlaOptions options{.blocks = {.q = 16, .kv = 10, .tile = {}}};
  const at::Tensor mask = at::tensor({1, 0, 0, 2, 0, 1, 1, 0, 0, 0, 0, 0}).view({1, 1, 3, 4});
  const AttentionPlan plan = sla_plan(call, options, {}, {}, mask.to(at::kByte));
  EXPECT_TRUE(selection_of(plan).classes.equal(mask.ne(0).to(at::kByte)));
  at::Tensor pairs = at::zeros({2, 4, 40, 40}, at::kBool);
  for (int64_t i = 0; i < 40; ++i) {
    for (int64_t j = 0; j < 40; ++j) {
      pairs.select(2, i).select(2, j).fill_(mask[0][0][i / 16][j / 10].item<int64_t>() != 0);
    }
  }
  EXPECT_LE(relative_error(run(plan, call), test::direct_attention(call, pairs) +
                                                linear_of(call, pairs.logical_not())),
            1e-10);
  for (const at::Tensor& wrong : {mask.to(at::kFloat), mask.slice(3, 1).to(at::kByte)}) {
    test::expect_error(ErrorCode::usage, "block mask",
                       [&] { sla_plan(call, options, {}, {}, wrong); });
  }
}

// Slopes along random directions against central differences: inputs and projection.
TEST(SlaPlan, IsDifferentiable) {
  at::manual_seed(4);
  TokenLayout layout = TokenLayout::text(5, at::tensor({2, 5}, at::kLong));
  layout.append(TokenLayout::grid(2, 3, 7));
  AttentionCall call = test::awkward_call(layout);
  const SlaOptions options{.density = 0.4, .blocks = {.q = 8, .kv = 8, .tile = {}}};
  const at::Tensor mask = selection_of(sla_plan(call, options)).classes;
  at::Tensor weight = at::randn({6, 6}, at::kDouble), bias = at::randn({6}, at::kDouble);
  const at::Tensor out_weight = at::randn({2, 4, layout.seq_len(), 6}, at::kDouble);
  const auto loss = [&] {
    return (run(sla_plan(call, options, weight, bias, mask), call) * out_weight).sum();
  };
  for (at::Tensor* x : {&call.q, &call.k, &call.v, &weight, &bias}) x->requires_grad_();
  loss().backward();
  for (at::Tensor* x : {&call.q, &call.k, &call.v, &weight, &bias}) {
    const at::Tensor direction = at::randn_like(*x);
    const double slope = (x->grad() * direction).sum().item<double>();
    const c10::NoGradGuard no_grad;
    const at::Tensor kept = x->clone();
    constexpr double kStep = 1e-6;
    x->copy_(kept + kStep * direction);
    const double above = loss().item<double>();
    x->copy_(kept - kStep * direction);
    const double below = loss().item<double>();
    x->copy_(kept);
    EXPECT_NEAR((above - below) / (2 * kStep) / slope, 1.0, 1e-6);
  }
  // Padding gets nothing.
  EXPECT_EQ(call.k.grad()[0].slice(1, 2, 5).abs().max().item<double>(), 0.0);
}

TEST(SlaPlanner, NamesItsParameters) {
  const auto planner = make_planner("sla", {{"dense_steps", 1}});
  EXPECT_EQ(planner->param_names(), (std::vector<std::string>{"proj_weight", "proj_bias"}));
  AttentionCall call = test::awkward_call(TokenLayout::grid(1, 2, 2));
  call.context.step = 1;
  call.params = {at::zeros({6, 6}, at::kDouble)};
  test::expect_error(ErrorCode::usage, "1 tensors", [&] { planner->plan(call); });
}

}  // namespace
}  // namespace fovea
