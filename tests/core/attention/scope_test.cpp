#include "core/attention/scope.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <c10/core/InferenceMode.h>
#include <gtest/gtest.h>

#include "core/attention/functional.h"
#include "core/check.h"
#include "tests/support/golden.h"

namespace fovea {
namespace {

using test::relative_error;

// A network that knows nothing of plans: two layers of self-attention, one to a text.
at::Tensor network(const at::Tensor& x, const at::Tensor& text) {
  at::Tensor h = x;
  for (int layer = 0; layer < 2; ++layer) {
    h = h + at::scaled_dot_product_attention(h, h * 0.7, h.flip(2));
  }
  return h + at::scaled_dot_product_attention(h, text, text);
}

const Json kWindow = {{"tile", {1, 4, 4}}, {"window", {1, 1, 1}}};

class Modes : public testing::TestWithParam<const char*> {};

TEST_P(Modes, UneditedCodeRunsThePlan) {
  at::manual_seed(1);
  const std::string mode = GetParam();
  std::optional<c10::NoGradGuard> no_grad;
  std::optional<c10::InferenceMode> inference;
  if (mode == "no_grad") no_grad.emplace();
  if (mode == "inference") inference.emplace();
  const TokenLayout layout = TokenLayout::grid(2, 8, 8);
  at::Tensor x = at::randn({2, 3, 128, 16}), text = at::randn({2, 3, 9, 16});
  if (mode == "autograd") x.requires_grad_();
  const at::Tensor dense = network(x, text);
  const auto planned = [&](const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
    return attention(q, k, v,
                     {.planner = "window",
                      .planner_options = kWindow,
                      .q_layout = layout,
                      .kv_layout = layout})
        .out;
  };
  at::Tensor expected = x;
  for (int layer = 0; layer < 2; ++layer) {
    expected = expected + planned(expected, expected * 0.7, expected.flip(2));
  }
  expected = expected + at::scaled_dot_product_attention(expected, text, text);
  at::Tensor got;
  {
    AttentionScope scope({"window", kWindow, layout});
    got = network(x, text);
    int64_t windows = 0;
    for (const auto& [what, count] : scope.counts()) {
      if (what.find("window on") != std::string::npos) windows += count;
    }
    EXPECT_EQ(windows, 2);
    EXPECT_EQ(scope.counts().at("left alone"), 1);
  }
  EXPECT_LE(relative_error(got, expected), 1e-6);
  EXPECT_GT(relative_error(got, dense), 1e-2);
  EXPECT_TRUE(network(x, text).equal(dense));  // as before once the scope has gone
  if (mode != "autograd") return;
  const at::Tensor direction = at::randn_like(got);
  (got * direction).sum().backward();
  const at::Tensor gradient = x.grad().clone();
  x.mutable_grad() = at::Tensor();
  (expected * direction).sum().backward();
  EXPECT_LE(relative_error(gradient, x.grad()), 1e-5);
}

INSTANTIATE_TEST_SUITE_P(Of, Modes, testing::Values("autograd", "no_grad", "inference"),
                         [](const auto& info) { return info.param; });

TEST(AttentionScope, TakesMasksAndCausality) {
  at::manual_seed(2);
  const at::Tensor q = at::randn({2, 4, 40, 16}), k = at::randn({2, 2, 40, 16});
  const at::Tensor hidden = at::rand({40, 40}).gt(0.3), bias = at::randn({2, 1, 40, 40});
  const auto run = [&](const std::optional<at::Tensor>& mask, bool is_causal) {
    return at::scaled_dot_product_attention(q, k, k, mask, 0.0, is_causal, 0.3, true);
  };
  const at::Tensor masked = run(hidden, false), biased = run(bias, false), causal = run({}, true);
  AttentionScope scope({"dense", Json::object(), std::nullopt});
  EXPECT_LE(relative_error(run(hidden, false), masked), 1e-6);
  EXPECT_LE(relative_error(run(bias, false), biased), 1e-6);
  EXPECT_LE(relative_error(run({}, true), causal), 1e-6);
  EXPECT_EQ(scope.counts().at("self: dense on sdpa"), 3);
}

// Steps and layers reach the planner: dense in the first step and the first layer.
TEST(AttentionScope, CountsStepsAndLayers) {
  at::manual_seed(3);
  Json options = kWindow;
  options["dense_steps"] = 1;
  options["dense_layers"] = 1;
  const at::Tensor x = at::randn({1, 2, 128, 16}), text = at::randn({1, 2, 9, 16});
  AttentionScope scope({"window", options, TokenLayout::grid(2, 8, 8)});
  for (int step = 0; step < 3; ++step) {
    network(x, text);
    scope.next_step();
  }
  EXPECT_EQ(scope.counts().at("self: window on cpu"), 2);
  EXPECT_EQ(scope.counts().at("left alone"), 3);
}

TEST(AttentionScope, NestsAndRefusesUnknownPlanners) {
  const at::Tensor x = at::randn({1, 2, 16, 16});
  AttentionScope outer({"dense", Json::object(), std::nullopt});
  EXPECT_THROW(AttentionScope({"abacus", Json::object(), std::nullopt}), Error);
  {
    AttentionScope inner({"dense", Json::object(), std::nullopt});
    at::scaled_dot_product_attention(x, x, x);
    EXPECT_EQ(inner.counts().size(), 1u);
  }
  EXPECT_TRUE(outer.counts().empty());
  at::scaled_dot_product_attention(x, x, x);
  EXPECT_EQ(outer.counts().size(), 1u);
}

}  // namespace
}  // namespace fovea
