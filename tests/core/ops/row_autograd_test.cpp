#include "core/ops/row_autograd.h"

#include <functional>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "core/check.h"
#include "core/ops/modulate.h"
#include "core/ops/norm.h"
#include "core/ops/rope.h"

namespace fovea {
namespace {

using Inputs = std::vector<at::Tensor>;
using Operation = std::function<at::Tensor(const Inputs&)>;

double relative_error(const at::Tensor& ours, const at::Tensor& exact) {
  return ((ours.detach().cpu().to(at::kDouble) - exact).norm() / exact.norm()).item<double>();
}

// Values and all gradients of `fast` on a GPU against those of `exact` in fp64 on the CPU; the
// inputs named first are of the half type, those after it fp32.
void compare(const char* what, const Operation& fast, const Operation& exact, const Inputs& values,
             size_t num_half, at::ScalarType dtype) {
  SCOPED_TRACE(fovea::str(what, " ", at::toString(dtype)));
  Inputs ours, wide;
  for (size_t i = 0; i < values.size(); ++i) {
    const at::Tensor stored = values[i].to(i < num_half ? dtype : at::kFloat);
    ours.push_back(stored.to(at::kCUDA).detach().clone().requires_grad_(true));
    wide.push_back(stored.to(at::kDouble).detach().clone().requires_grad_(true));
  }
  const at::Tensor y = fast(ours), z = exact(wide);
  const double limit = dtype == at::kHalf ? 1e-3 : 8e-3;
  EXPECT_LE(relative_error(y, z.detach()), limit);
  at::manual_seed(9);
  const at::Tensor upstream = at::randn(z.sizes()).to(dtype);
  y.backward(upstream.to(at::kCUDA));
  z.backward(upstream.to(at::kDouble));
  for (size_t i = 0; i < ours.size(); ++i) {
    EXPECT_LE(relative_error(ours[i].grad(), wide[i].grad()), limit) << "input " << i;
  }
}

void compare_all(int64_t batch, int64_t tokens, int64_t heads, int64_t head_dim,
                 at::ScalarType dtype) {
  SCOPED_TRACE(fovea::str(batch, " x ", tokens, " x ", heads, " x ", head_dim));
  at::manual_seed(4);
  const int64_t dim = heads * head_dim;
  const at::Tensor x = at::randn({batch, tokens, dim}) + 0.5, y = at::randn({batch, tokens, dim});
  const at::Tensor weight = 1 + 0.3 * at::randn({dim}), bias = at::randn({dim});
  const at::Tensor scale = 0.3 * at::randn({batch, dim}), shift = at::randn({batch, dim});
  const at::Tensor angle = 3 * at::randn({tokens, head_dim / 2});
  const at::Tensor cos = angle.cos(), sin = angle.sin();
  compare(
      "rms_norm", [](const Inputs& in) { return rms_norm(in[0], in[1], 1e-6); },
      [](const Inputs& in) { return composition::rms_norm(in[0], in[1], 1e-6); }, {x, weight}, 2,
      dtype);
  compare(
      "rms_norm_rope",
      [&](const Inputs& in) {
        return rms_norm_rope(in[0], in[1], cos.to(at::kCUDA), sin.to(at::kCUDA), 1e-6);
      },
      [&](const Inputs& in) {
        return composition::rms_norm_rope(in[0], in[1], cos.to(at::kDouble), sin.to(at::kDouble),
                                          1e-6);
      },
      {x, weight}, 2, dtype);
  compare(
      "layer_norm", [](const Inputs& in) { return layer_norm(in[0], in[1], in[2], 1e-6); },
      [](const Inputs& in) { return composition::layer_norm(in[0], in[1], in[2], 1e-6); },
      {x, weight, bias}, 1, dtype);
  compare(
      "layer_norm_modulate",
      [](const Inputs& in) { return layer_norm_modulate(in[0], in[1], in[2], 1e-6); },
      [](const Inputs& in) { return composition::layer_norm_modulate(in[0], in[1], in[2], 1e-6); },
      {x, scale, shift}, 1, dtype);
  compare(
      "gate_residual", [](const Inputs& in) { return gate_residual(in[0], in[1], in[2]); },
      [](const Inputs& in) { return composition::gate_residual(in[0], in[1], in[2]); },
      {x, y, scale}, 2, dtype);
}

TEST(RowAutograd, GradientsOnAGpuAreThoseOfTheDefinition) {
  if (!at::hasCUDA()) GTEST_SKIP() << "missing: a GPU";
  for (const auto dtype : {at::kBFloat16, at::kHalf}) {
    compare_all(2, 7, 3, 128, dtype);    // two packs a lane
    compare_all(3, 33, 1, 24, dtype);    // ten rows a warp
    compare_all(2, 300, 2, 128, dtype);  // several blocks an item
    compare_all(1, 50, 6, 128, dtype);   // three packs
    compare_all(2, 9, 8, 128, dtype);    // four packs
    compare_all(70, 5, 1, 8, dtype);     // many items
  }
}

TEST(RowAutograd, LeavesToTheCompositionWhatNoKernelCovers) {
  EXPECT_FALSE(ops::backward_kernels_apply(at::ones({2, 3, 384})));
  if (!at::hasCUDA()) GTEST_SKIP() << "missing: a GPU";
  const auto half = at::TensorOptions(at::kBFloat16).device(at::kCUDA);
  EXPECT_TRUE(ops::backward_kernels_apply(at::ones({2, 3, 384}, half)));
  EXPECT_FALSE(ops::backward_kernels_apply(at::ones({2, 3, 12}, half)));
  EXPECT_FALSE(ops::backward_kernels_apply(at::ones({2, 3, 5120}, half)));
  EXPECT_FALSE(ops::backward_kernels_apply(at::ones({2, 384, 3}, half).transpose(1, 2)));
  EXPECT_FALSE(ops::backward_kernels_apply(at::ones({2, 3, 384}, half.dtype(at::kFloat))));
}

}  // namespace
}  // namespace fovea
