#include "core/ops/channel_norm.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "core/check.h"

namespace fovea {
namespace {

// A plain definition in fp64, with its gradients.
struct Exact {
  Exact(const at::Tensor& x, const at::Tensor& gamma, const at::Tensor& upstream) {
    const at::Tensor xs = x.detach().cpu().to(at::kDouble).requires_grad_(true);
    const at::Tensor gs = gamma.detach().cpu().to(at::kDouble).requires_grad_(true);
    const at::Tensor norm = xs.square().sum(1, true).sqrt().clamp_min(1e-12);
    const at::Tensor u = xs / norm * std::sqrt(static_cast<double>(x.size(1))) * gs;
    y = (u * at::sigmoid(u)).detach();
    (u * at::sigmoid(u)).backward(upstream.cpu().to(at::kDouble));
    x_gradient = xs.grad();
    gamma_gradient = gs.grad();
  }
  at::Tensor y, x_gradient, gamma_gradient;
};

double relative_error(const at::Tensor& ours, const at::Tensor& exact) {
  return ((ours.detach().cpu().to(at::kDouble) - exact).norm() / exact.norm()).item<double>();
}

void compare(at::IntArrayRef shape, at::Device device, at::ScalarType dtype,
             at::MemoryFormat format, double limit) {
  SCOPED_TRACE(fovea::str(shape, " ", at::toString(dtype)));
  at::manual_seed(3);
  const auto options = at::TensorOptions(dtype).device(device);
  at::Tensor x = at::randn(shape, at::TensorOptions(at::kFloat)).to(options).contiguous(format);
  x.select(0, 0).select(1, 0).zero_();  // places without a direction
  x.requires_grad_(true);
  at::Tensor gamma =
      (1 + 0.3 * at::randn({shape[1], 1, 1, 1}, at::TensorOptions(at::kFloat))).to(options);
  gamma.requires_grad_(true);
  const at::Tensor upstream = at::randn(shape, at::TensorOptions(at::kFloat)).to(options);
  const at::Tensor y = channel_norm_silu(x, gamma);
  EXPECT_EQ(y.scalar_type(), dtype);
  y.backward(upstream);
  const Exact exact(x, gamma, upstream);
  EXPECT_LE(relative_error(y, exact.y), limit);
  // Where x is 0 the norm's gradient is a matter of the floor alone: compare elsewhere.
  const at::Tensor ours = x.grad().cpu().narrow(2, 1, shape[2] - 1);
  EXPECT_LE(relative_error(ours, exact.x_gradient.narrow(2, 1, shape[2] - 1)), limit);
  EXPECT_LE(relative_error(gamma.grad(), exact.gamma_gradient), limit);
}

TEST(ChannelNorm, EqualsItsDefinitionAndGradientsOnTheCpu) {
  compare({2, 16, 3, 4, 5}, at::kCPU, at::kDouble, at::MemoryFormat::Contiguous, 1e-12);
  compare({2, 12, 3, 4, 5}, at::kCPU, at::kFloat, at::MemoryFormat::ChannelsLast3d, 1e-5);
  compare({2, 12, 3, 4, 5}, at::kCPU, at::kBFloat16, at::MemoryFormat::ChannelsLast3d, 1e-2);
}

TEST(ChannelNorm, EqualsItsDefinitionAndGradientsOnAGpu) {
  if (!at::hasCUDA()) GTEST_SKIP() << "missing: a GPU";
  for (const int64_t channels : {8, 16, 24, 32, 64, 80, 96, 192, 256, 272, 384, 512}) {
    for (const auto dtype : {at::kBFloat16, at::kHalf}) {
      compare({2, channels, 3, 5, 7}, at::kCUDA, dtype, at::MemoryFormat::ChannelsLast3d,
              dtype == at::kHalf ? 1e-3 : 8e-3);
    }
  }
  // Many more rows than one block has, and a size that the kernel leaves to the composition.
  compare({4, 16, 9, 64, 64}, at::kCUDA, at::kBFloat16, at::MemoryFormat::ChannelsLast3d, 8e-3);
  compare({2, 12, 3, 5, 7}, at::kCUDA, at::kBFloat16, at::MemoryFormat::ChannelsLast3d, 1.2e-2);
  compare({2, 16, 3, 5, 7}, at::kCUDA, at::kBFloat16, at::MemoryFormat::Contiguous, 1.2e-2);
}

TEST(ChannelNorm, WritesBetweenOtherFramesOnAGpu) {
  if (!at::hasCUDA()) GTEST_SKIP() << "missing: a GPU";
  const auto options = at::TensorOptions(at::kBFloat16).device(at::kCUDA);
  for (const int64_t channels : {16, 96, 384}) {
    const auto format = at::MemoryFormat::ChannelsLast3d;
    const at::Tensor x = at::randn({2, channels, 4, 5, 7}, options).contiguous(format);
    const at::Tensor gamma = at::randn({channels, 1, 1, 1}, options);
    const at::Tensor whole = at::full({2, channels, 6, 5, 7}, 9, options).contiguous(format);
    at::Tensor part = whole.narrow(2, 2, 4);
    ASSERT_TRUE(channel_norm_silu_into(part, x, gamma));
    EXPECT_TRUE(at::equal(part, channel_norm_silu(x, gamma)));
    EXPECT_TRUE(whole.narrow(2, 0, 2).eq(9).all().item<bool>());
  }
}

TEST(ChannelNorm, WritesNothingWhereNoKernelApplies) {
  const at::Tensor x = at::ones({1, 8, 1, 2, 2});
  at::Tensor y = at::zeros_like(x);
  EXPECT_FALSE(channel_norm_silu_into(y, x, at::ones({8, 1, 1, 1})));
  EXPECT_EQ(y.abs().max().item<float>(), 0);
}

}  // namespace
}  // namespace fovea
