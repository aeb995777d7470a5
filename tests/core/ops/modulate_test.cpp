#include "core/ops/modulate.h"

#include <limits>

#include "core/check.h"
#include "core/ops/norm.h"
#include "tests/core/ops/op_rules.h"

namespace fovea::test {
namespace {

constexpr double kEps = 1e-6;

class ModulateTest : public DeviceTest {};
FOVEA_DEVICE_SUITE(ModulateTest);

TEST_P(ModulateTest, LayerNormModulateIsWithinTheRule) {
  for (const auto dtype : kernel_dtypes()) {
    for (const int64_t dim : row_lengths()) {
      SCOPED_TRACE(testing::Message() << dtype << " dim " << dim);
      const at::Tensor x = normal({2, 3, dim}, dtype);
      // As a chunk of [batch, 6, dim], the way blocks have them: rows far apart.
      const at::Tensor table = normal({2, 6, dim}, at::kFloat);
      const at::Tensor scale = table.select(1, 1), shift = table.select(1, 4);
      // The reference is the CPU's, whatever device is tested.
      const at::Tensor wide = x.cpu().to(at::kDouble);
      const at::Tensor wide_scale = scale.cpu(), wide_shift = shift.cpu();
      const at::Tensor exact = composition::layer_norm_modulate(wide, wide_scale, wide_shift, kEps);
      const at::Tensor normed = composition::layer_norm(wide, {}, {}, kEps);
      const at::Tensor terms =
          at::maximum((normed * (1 + wide_scale.unsqueeze(1).to(at::kDouble))).abs(),
                      at::maximum(normed.abs(), wide_shift.unsqueeze(1).abs()));
      const at::Tensor y = layer_norm_modulate(x, scale, shift, kEps);
      expect_within_ulps(y, exact, norm_ulps(dtype), terms);
      const at::Tensor shared =
          layer_norm_modulate(x, scale.slice(0, 0, 1), shift.slice(0, 0, 1), kEps);
      EXPECT_TRUE(at::equal(shared.select(0, 0), y.select(0, 0)));
    }
  }
}

TEST_P(ModulateTest, WithoutModulationItIsTheNorm) {
  const at::Tensor x = normal({2, 5, 96}, at::kBFloat16);
  const at::Tensor zero = at::zeros({2, 96}, at::TensorOptions(device()));
  EXPECT_TRUE(at::equal(layer_norm_modulate(x, zero, zero, kEps), layer_norm(x, {}, {}, kEps)));
}

TEST_P(ModulateTest, GateResidualHasTheBitsOfTheComposition) {
  for (const auto dtype : kernel_dtypes()) {
    for (const int64_t dim : row_lengths()) {
      SCOPED_TRACE(testing::Message() << dtype << " dim " << dim);
      const at::Tensor x = normal({2, 3, dim}, dtype), y = normal({2, 3, dim}, dtype);
      const at::Tensor gate = normal({2, 6, dim}, at::kFloat).select(1, 2);
      EXPECT_TRUE(at::equal(gate_residual(x, y, gate), composition::gate_residual(x, y, gate)));
      const at::Tensor expected = (x.to(at::kFloat) + y * gate.unsqueeze(1)).to(dtype);
      EXPECT_TRUE(at::equal(gate_residual(x, y, gate), expected));
    }
  }
}

TEST_P(ModulateTest, ViewsHaveTheBitsOfCopies) {
  const at::Tensor packed = normal({2, 7, 3, 48}, at::kBFloat16);
  const at::Tensor x = packed.select(2, 0), y = packed.select(2, 2);
  const at::Tensor gate = normal({48, 2}, at::kFloat).t();  // channels far apart
  EXPECT_TRUE(at::equal(gate_residual(x, y, gate),
                        gate_residual(x.contiguous(), y.contiguous(), gate.contiguous())));
  EXPECT_TRUE(
      at::equal(layer_norm_modulate(x, gate, gate, kEps),
                layer_norm_modulate(x.contiguous(), gate.contiguous(), gate.contiguous(), kEps)));
  const at::Tensor grid = x.unflatten(1, {7, 1}).contiguous();  // [batch, 7, 1, dim]
  EXPECT_TRUE(at::equal(gate_residual(grid, grid, gate).squeeze(2), gate_residual(x, x, gate)));
}

TEST_P(ModulateTest, SpecialValues) {
  const double inf = std::numeric_limits<double>::infinity();
  const at::Tensor x = normal({1, 4, 40}, at::kFloat), gate = normal({1, 40}, at::kFloat);
  const at::Tensor y = x.clone();
  y.view({-1}).select(0, 41).fill_(inf);
  y.view({-1}).select(0, 90).fill_(std::numeric_limits<double>::quiet_NaN());
  EXPECT_TRUE(
      at::allclose(gate_residual(x, y, gate), composition::gate_residual(x, y, gate), 0, 0, true));
  const at::Tensor normed = layer_norm_modulate(y, gate, gate, kEps);
  EXPECT_TRUE(normed.select(1, 0).isfinite().all().item<bool>());
  EXPECT_TRUE(normed.select(1, 1).isnan().all().item<bool>());
  EXPECT_TRUE(normed.select(1, 2).isnan().all().item<bool>());
}

TEST_P(ModulateTest, EmptyTensorsAndGradients) {
  const at::Tensor gate = normal({2, 16}, at::kFloat);
  const at::Tensor none = normal({2, 0, 16}, at::kFloat);
  EXPECT_EQ(gate_residual(none, none, gate).sizes(), none.sizes());
  EXPECT_EQ(layer_norm_modulate(none, gate, gate, kEps).sizes(), none.sizes());
  const at::Tensor x = normal({2, 3, 16}, at::kBFloat16).requires_grad_();
  const at::Tensor scale = gate.clone().requires_grad_();
  layer_norm_modulate(gate_residual(x, x, scale), scale, gate, kEps).sum().backward();
  EXPECT_TRUE(x.grad().defined());
  EXPECT_TRUE(scale.grad().defined());
}

TEST(Modulate, RefusesWhatDoesNotFit) {
  const at::Tensor x = at::randn({2, 3, 8}), gate = at::randn({2, 8});
  EXPECT_THROW(gate_residual(x, x.to(at::kHalf), gate), Error);
  EXPECT_THROW(gate_residual(x, x.slice(1, 0, 2), gate), Error);
  EXPECT_THROW(gate_residual(x, x, at::randn({3, 8})), Error);
  EXPECT_THROW(layer_norm_modulate(x, gate, gate.to(at::kBFloat16), kEps), Error);
  EXPECT_THROW(layer_norm_modulate(x, gate, at::randn({2, 7}), kEps), Error);
}

}  // namespace
}  // namespace fovea::test
