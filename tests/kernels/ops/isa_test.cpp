// Every instruction set's variant of every CPU kernel gives the bits of the baseline.

#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include <gtest/gtest.h>

#include "kernels/common/half.h"
#include "kernels/ops/gate_residual.h"
#include "kernels/ops/layer_norm_modulate.h"
#include "kernels/ops/rms_norm.h"
#include "kernels/ops/rope.h"

namespace fovea::kernels {
namespace {

constexpr int64_t kRows = 6;
constexpr int64_t kStride = 5300;  // more than any row below, so that strides are exercised

std::vector<unsigned char> random_elements(DType dtype, int64_t count, std::mt19937& random) {
  std::normal_distribution<float> normal(0.3f, 2.0f);
  std::vector<unsigned char> bytes(count * dtype_bytes(dtype));
  for (int64_t i = 0; i < count; ++i) {
    float value = normal(random);
    if (random() % 4096 == 0) value = std::numeric_limits<float>::infinity();
    if (random() % 4096 == 0) value = 1e-40f;
    unsigned char* to = bytes.data() + i * dtype_bytes(dtype);
    const Half half = from_float<Half>(value);
    const BFloat16 bfloat = from_float<BFloat16>(value);
    if (dtype == DType::f32) std::memcpy(to, &value, 4);
    if (dtype == DType::f16) std::memcpy(to, &half, 2);
    if (dtype == DType::bf16) std::memcpy(to, &bfloat, 2);
  }
  return bytes;
}

/// NaN payloads may differ between instruction sets; everything else may not.
void expect_same_bits(DType dtype, const std::vector<unsigned char>& a,
                      const std::vector<unsigned char>& b) {
  ASSERT_EQ(a.size(), b.size());
  const int64_t count = static_cast<int64_t>(a.size()) / dtype_bytes(dtype);
  for (int64_t i = 0; i < count; ++i) {
    uint32_t x = 0, y = 0;
    std::memcpy(&x, a.data() + i * dtype_bytes(dtype), dtype_bytes(dtype));
    std::memcpy(&y, b.data() + i * dtype_bytes(dtype), dtype_bytes(dtype));
    const uint32_t infinity = dtype == DType::f32   ? 0x7f800000u
                              : dtype == DType::f16 ? 0x7c00u
                                                    : 0x7f80u;
    const uint32_t magnitude = dtype == DType::f32 ? 0x7fffffffu : 0x7fffu;
    if ((x & magnitude) > infinity && (y & magnitude) > infinity) continue;
    ASSERT_EQ(x, y) << "element " << i;
  }
}

struct Problem {
  DType dtype;
  int64_t dim, head_dim;
  std::vector<unsigned char> x, y, weight, weight_fp32, channels, angles;

  Problem(DType type, int64_t size, int64_t head, std::mt19937& random)
      : dtype(type),
        dim(size),
        head_dim(head),
        x(random_elements(type, kRows * kStride, random)),
        y(random_elements(type, kRows * kStride, random)),
        weight(random_elements(type, size, random)),
        weight_fp32(random_elements(DType::f32, size, random)),
        channels(random_elements(DType::f32, 4 * kStride, random)),
        angles(random_elements(DType::f32, 3 * size, random)) {}

  ConstRows rows(const std::vector<unsigned char>& from) const {
    return {from.data(), dtype, kStride};
  }
  const float* fp32(const std::vector<unsigned char>& from) const {
    return reinterpret_cast<const float*>(from.data());
  }
};

using Output = std::vector<unsigned char>;

/// All kernels on one problem, the rows computed in two ranges; outputs in a fixed order.
std::vector<Output> run_all(const Problem& p, Isa isa, int64_t split) {
  std::vector<Output> outputs;
  const auto both = [&](auto kernel, auto args) {
    EXPECT_TRUE(kernel(args, RowRange{split, kRows}, isa).ok());
    EXPECT_TRUE(kernel(args, RowRange{0, split}, isa).ok());
  };
  const auto output = [&]() -> Rows {
    outputs.emplace_back(kRows * kStride * dtype_bytes(p.dtype), static_cast<unsigned char>(0xa5));
    return {outputs.back().data(), p.dtype, kStride};
  };
  const RotaryTables rope{p.fp32(p.angles), p.fp32(p.angles) + 3, 3, p.head_dim};
  for (const ConstVector weight : {ConstVector{}, ConstVector{p.weight.data(), p.dtype},
                                   ConstVector{p.weight_fp32.data(), DType::f32}}) {
    const RmsNormArgs norm{.x = p.rows(p.x),
                           .y = output(),
                           .weight = weight,
                           .num_rows = kRows,
                           .dim = p.dim,
                           .eps = 1e-6};
    both(rms_norm_cpu, norm);
    if (p.head_dim > 0) {
      RmsNormRopeArgs fused{norm, rope};
      fused.norm.y = output();
      both(rms_norm_rope_cpu, fused);
    }
  }
  if (p.head_dim > 0) {
    both(rope_cpu,
         RopeArgs{.x = p.rows(p.x), .y = output(), .num_rows = kRows, .dim = p.dim, .rope = rope});
  }
  const float* channels = p.fp32(p.channels);
  LayerNormModulateArgs layer{.x = p.rows(p.x),
                              .y = output(),
                              .rows_per_item = 3,
                              .num_rows = kRows,
                              .dim = p.dim,
                              .eps = 1e-6};
  both(layer_norm_modulate_cpu, layer);
  layer.y = output();
  layer.weight = channels, layer.bias = channels + kStride;
  both(layer_norm_modulate_cpu, layer);
  layer.y = output();
  layer.scale = {channels, kStride}, layer.shift = {channels + 2 * kStride, kStride};
  both(layer_norm_modulate_cpu, layer);
  both(gate_residual_cpu, GateResidualArgs{.x = p.rows(p.x),
                                           .y = p.rows(p.y),
                                           .out = output(),
                                           .gate = {channels, kStride},
                                           .rows_per_item = 3,
                                           .num_rows = kRows,
                                           .dim = p.dim});
  return outputs;
}

class IsaTest : public testing::TestWithParam<Isa> {};

TEST_P(IsaTest, GivesTheBitsOfTheBaseline) {
  if (!isa_available(GetParam())) GTEST_SKIP() << "this processor lacks " << isa_name(GetParam());
  std::mt19937 random(7);
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
    for (const auto& [dim, head_dim] : {std::pair{1, 0},
                                        {2, 2},
                                        {3, 0},
                                        {12, 12},
                                        {24, 6},
                                        {63, 0},
                                        {64, 64},
                                        {65, 0},
                                        {80, 40},
                                        {256, 128},
                                        {1536, 128},
                                        {5120, 128}}) {
      SCOPED_TRACE(testing::Message() << "dtype " << static_cast<int>(dtype) << " dim " << dim);
      const Problem problem(dtype, dim, head_dim, random);
      const auto expected = run_all(problem, Isa::baseline, 0);
      const auto got = run_all(problem, GetParam(), 4);
      ASSERT_EQ(expected.size(), got.size());
      for (size_t i = 0; i < got.size(); ++i) {
        SCOPED_TRACE(testing::Message() << "output " << i);
        ASSERT_NO_FATAL_FAILURE(expect_same_bits(dtype, expected[i], got[i]));
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, IsaTest, testing::Values(Isa::baseline, Isa::avx2, Isa::avx512),
                         [](const auto& info) {
                           return info.param == Isa::avx512 ? "Avx512"
                                  : info.param == Isa::avx2 ? "Avx2"
                                                            : "Baseline";
                         });

TEST(Checks, RefuseContradictions) {
  float value = 0;
  RmsNormArgs norm{
      .x = {&value, DType::f32, 1}, .y = {&value, DType::bf16, 1}, .num_rows = 1, .dim = 1};
  EXPECT_EQ(check(norm).code, StatusCode::invalid);
  norm.y.dtype = DType::f32;
  EXPECT_TRUE(check(norm).ok());
  norm.weight = {&value, DType::f16};
  EXPECT_EQ(check(norm).code, StatusCode::unsupported);
  norm.weight = {};
  EXPECT_EQ(check(RmsNormRopeArgs{norm, {&value, &value, 1, 3}}).code, StatusCode::invalid);
  norm.num_rows = int64_t{1} << 31;
  EXPECT_EQ(check(norm).code, StatusCode::unsupported);
}

}  // namespace
}  // namespace fovea::kernels
