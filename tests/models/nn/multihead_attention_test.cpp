#include "models/nn/multihead_attention.h"

#include <limits>
#include <sstream>

#include <gtest/gtest.h>
#include <torch/torch.h>

#include "core/attention/functional.h"
#include "core/check.h"
#include "tests/support/golden.h"

namespace fovea::nn {
namespace {

using test::relative_error;

// LibTorch's module, with the parameters of ours by way of a saved file.
torch::nn::MultiheadAttention torchs(MultiheadAttention& ours) {
  for (at::Tensor& parameter : ours->parameters()) {
    torch::NoGradGuard no_grad;
    parameter.add_(at::randn_like(parameter) * 0.1);
  }
  torch::nn::MultiheadAttention theirs(
      torch::nn::MultiheadAttentionOptions(ours->options.embed_dim, ours->options.num_heads)
          .bias(ours->options.bias));
  std::stringstream file;
  torch::save(ours, file);
  torch::load(theirs, file);
  return theirs;
}

at::Tensor as_numbers(const at::Tensor& mask) {
  return at::zeros(mask.sizes()).masked_fill(mask, -std::numeric_limits<double>::infinity());
}

class Bias : public testing::TestWithParam<bool> {};

TEST_P(Bias, DenseIsLibTorchsModule) {
  at::manual_seed(1);
  MultiheadAttention ours(
      MultiheadAttentionOptions{.embed_dim = 24, .num_heads = 3, .bias = GetParam()});
  torch::nn::MultiheadAttention theirs = torchs(ours);
  const at::Tensor q = at::randn({7, 2, 24}), k = at::randn({9, 2, 24}), v = at::randn({9, 2, 24});
  const at::Tensor padding = at::arange(9).ge(6).expand({2, 9});
  const at::Tensor later = at::ones({7, 9}, at::kBool).triu(3);
  // LibTorch's module adds every mask, and has one for all heads; Python's hides where it is true.
  for (const at::Tensor& mask : {at::Tensor(), later, at::randn({7, 9})}) {
    const bool hides = mask.defined() && mask.scalar_type() == at::kBool;
    const at::Tensor added = hides ? as_numbers(mask) : mask;
    for (const at::Tensor& hidden : {at::Tensor(), padding}) {
      const at::Tensor expected =
          std::get<0>(theirs->forward(q, k, v, hidden, /*need_weights=*/false, added));
      const at::Tensor got = std::get<0>(ours->forward(q, k, v, hidden, false, mask));
      EXPECT_LE(relative_error(got, expected), 2e-6);
      if (!mask.defined()) continue;
      const at::Tensor per_head = mask.expand({6, 7, 9});
      EXPECT_TRUE(std::get<0>(ours->forward(q, k, v, hidden, false, per_head)).equal(got));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Of, Bias, testing::Bool());

TEST(MultiheadAttentionModule, RunsThePlanAndTrains) {
  at::manual_seed(2);
  const TokenLayout video = TokenLayout::grid(2, 8, 8);
  const Json window = {{"tile", {1, 4, 4}}, {"window", {1, 1, 1}}};
  MultiheadAttention ours(MultiheadAttentionOptions{.embed_dim = 24,
                                                    .num_heads = 3,
                                                    .planner = "window",
                                                    .planner_options = window,
                                                    .layout = video});
  torch::nn::MultiheadAttention theirs = torchs(ours);
  const at::Tensor x = at::randn({128, 2, 24});
  const at::Tensor out = std::get<0>(ours->forward(x, x, x));
  // The window as a mask of LibTorch's module: tiles of 4x4 that are alone.
  const at::Tensor tile = at::arange(128).floor_divide(64) * 4 +
                          at::arange(128).floor_divide(32).remainder(2) * 2 +
                          at::arange(128).remainder(8).floor_divide(4);
  const at::Tensor apart = tile.unsqueeze(0).ne(tile.unsqueeze(1));
  const at::Tensor expected = std::get<0>(theirs->forward(x, x, x, {}, false, as_numbers(apart)));
  EXPECT_LE(relative_error(out, expected), 2e-6);
  const at::Tensor direction = at::randn_like(out);
  (out * direction).sum().backward();
  (expected * direction).sum().backward();
  EXPECT_LE(relative_error(ours->in_proj_weight.grad(), theirs->in_proj_weight.grad()), 1e-5);
  EXPECT_LE(relative_error(ours->out_proj->weight.grad(), theirs->out_proj->weight.grad()), 1e-5);
  const auto copy = std::dynamic_pointer_cast<MultiheadAttentionImpl>(ours->clone());
  EXPECT_TRUE(std::get<0>(copy->forward(x, x, x)).equal(out));
  EXPECT_NE(&copy->attention(), &ours->attention());
}

TEST(MultiheadAttentionModule, RefusesWhatItDoesNotDo) {
  EXPECT_THROW(MultiheadAttention(MultiheadAttentionOptions{.embed_dim = 10, .num_heads = 3}),
               Error);
  MultiheadAttention ours(MultiheadAttentionOptions{.embed_dim = 6, .num_heads = 3});
  const at::Tensor x = at::randn({4, 1, 6});
  EXPECT_THROW(ours->forward(x, x, x, {}, /*need_weights=*/true), Error);
  EXPECT_THROW(ours->forward(x.slice(2, 1), x, x), Error);
  EXPECT_THROW(ours->forward(x, x, x, at::zeros({1, 3}, at::kBool)), Error);
  EXPECT_THROW(ours->forward(x, x, x, {}, false, at::zeros({3, 4})), Error);
}

}  // namespace
}  // namespace fovea::nn
