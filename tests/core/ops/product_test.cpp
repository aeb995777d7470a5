#include "core/ops/product.h"

#include <functional>

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "tests/support/golden.h"

namespace fovea {
namespace {

using test::relative_error;

constexpr double kBound = 1e-6;

using Function = std::function<at::Tensor(const std::vector<at::Tensor>&)>;

// Value, gradients and gradients of gradients of f against those of g in fp64.
void expect_equal(const Function& f, const Function& g, const std::vector<at::Tensor>& inputs) {
  const auto all = [&](const Function& function, at::ScalarType type) {
    std::vector<at::Tensor> leaves;
    for (const at::Tensor& x : inputs) leaves.push_back(x.detach().to(type).requires_grad_());
    const at::Tensor value = function(leaves);
    const at::Tensor weight = at::linspace(-1, 1, value.numel()).view(value.sizes()).to(type);
    std::vector<at::Tensor> out = {value};
    at::Tensor length = at::zeros({}, value.options());
    for (const at::Tensor& first : torch::autograd::grad({(value * weight).sum()}, leaves, {},
                                                         std::nullopt, /*create_graph=*/true)) {
      out.push_back(first);
      length = length + first.square().sum();
    }
    for (const at::Tensor& second : torch::autograd::grad({length}, leaves)) out.push_back(second);
    return out;
  };
  const auto got = all(f, at::kFloat), expected = all(g, at::kDouble);
  ASSERT_EQ(got.size(), expected.size());
  for (size_t i = 0; i < got.size(); ++i) {
    ASSERT_EQ(got[i].sizes(), expected[i].sizes());
    EXPECT_LT(relative_error(got[i].detach(), expected[i].detach()), kBound) << i;
  }
}

void expect_matmul(const at::Tensor& a, const at::Tensor& b) {
  expect_equal([](const auto& x) { return ops::product(x[0], x[1]); },
               [](const auto& x) { return at::matmul(x[0], x[1]); }, {a, b});
}

TEST(OpsProduct, IsMatmul) {
  at::manual_seed(1);
  expect_matmul(at::randn({7, 9}), at::randn({9, 5}));
  expect_matmul(at::randn({2, 3, 40, 17}), at::randn({17, 33}));
  expect_matmul(at::randn({2, 3, 40, 17}), at::randn({2, 3, 17, 33}));
  expect_matmul(at::randn({1, 3, 40, 17}), at::randn({2, 1, 17, 33}));
  expect_matmul(at::randn({2, 17, 40, 3}).transpose(1, 3), at::randn({2, 3, 33, 17}).mT());
  expect_matmul(at::randn({40, 17}).expand({5, 40, 17}), at::randn({5, 17, 1}));
}

TEST(OpsProduct, OfNothing) {
  EXPECT_TRUE(ops::product(at::ones({3, 0}), at::ones({0, 2})).equal(at::zeros({3, 2})));
  EXPECT_EQ(ops::product(at::ones({0, 3}), at::ones({3, 2})).sizes(), at::IntArrayRef({0, 2}));
  EXPECT_EQ(ops::product(at::ones({0, 4, 3}), at::ones({3, 2})).sizes(),
            at::IntArrayRef({0, 4, 2}));
}

// Blocks of the second head, one of them empty, are others than those of the first.
TEST(OpsProduct, OfBlocks) {
  at::manual_seed(2);
  const at::Tensor offsets = at::tensor({0, 5, 20, 33, 0, 0, 30, 33}, at::kLong).view({1, 2, 4});
  const auto block = [&](const at::Tensor& x, int64_t head, int64_t i) {
    return x.select(1, head).slice(1, offsets[0][head][i].item<int64_t>(),
                                   offsets[0][head][i + 1].item<int64_t>());
  };
  const auto per_head = [](const std::function<at::Tensor(int64_t)>& f) {
    return at::stack({f(0), f(1)}, 1);
  };
  const at::Tensor x = at::randn({2, 33, 2, 8}).transpose(1, 2), y = at::randn({2, 2, 33, 11});
  expect_equal([&](const auto& in) { return ops::product_of_blocks(in[0], in[1], offsets); },
               [&](const auto& in) {
                 return per_head([&](int64_t head) {
                   std::vector<at::Tensor> all;
                   for (int64_t i = 0; i < 3; ++i) {
                     all.push_back(at::matmul(block(in[0], head, i).mT(), block(in[1], head, i)));
                   }
                   return at::stack(all, 1);
                 });
               },
               {x, y});
  expect_equal(
      [&](const auto& in) { return ops::rows_times_blocks(in[0], in[1], offsets); },
      [&](const auto& in) {
        return per_head([&](int64_t head) {
          std::vector<at::Tensor> all;
          for (int64_t i = 0; i < 3; ++i) {
            all.push_back(at::matmul(block(in[0], head, i), in[1].select(1, head).select(1, i)));
          }
          return at::cat(all, 1);
        });
      },
      {x, at::randn({2, 2, 3, 8, 11})});
}

TEST(OpsProduct, FunctionsOfEachNumber) {
  at::manual_seed(4);
  const at::Tensor x = at::randn({3, 50, 211}).transpose(0, 2);
  expect_equal([](const auto& in) { return ops::exp(in[0]); },
               [](const auto& in) { return in[0].exp(); }, {x});
  expect_equal([](const auto& in) { return ops::elu_plus_one(in[0]); },
               [](const auto& in) { return at::elu(in[0]) + 1; }, {x});
  expect_equal([](const auto& in) { return ops::log(in[0]); },
               [](const auto& in) { return in[0].log(); }, {x.abs() + 0.5});
}

TEST(OpsProduct, SpreadAndItsSums) {
  at::manual_seed(3);
  const std::vector<int64_t> sizes = {3, 70, 5};
  for (const at::Tensor& x : {at::randn({5}), at::randn({70, 1}), at::randn({3, 1, 5})}) {
    const at::Tensor factor = at::randn(sizes);
    const auto type = [](const at::Tensor& own) { return own.scalar_type(); };
    expect_equal(
        [&](const auto& in) { return ops::spread(in[0], sizes).square() * factor; },
        [&](const auto& in) { return in[0].expand(sizes).square() * factor.to(type(in[0])); }, {x});
  }
  expect_equal([](const auto& in) { return ops::spread_heads(in[0], 6).square(); },
               [](const auto& in) { return in[0].repeat_interleave(3, 1).square(); },
               {at::randn({2, 2, 9, 4})});
}

}  // namespace
}  // namespace fovea
