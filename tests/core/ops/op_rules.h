#pragma once

// Numeric rules of operators: errors against fp64 in units in the last place.

#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

namespace fovea::test {

inline int significant_bits(at::ScalarType dtype) {
  return dtype == at::kFloat ? 24 : dtype == at::kHalf ? 11 : 8;
}

/// The unit in the last place of `dtype` at each magnitude, in fp64.
inline at::Tensor ulp_at(const at::Tensor& magnitude, at::ScalarType dtype) {
  const int smallest_exponent = dtype == at::kHalf ? -24 : dtype == at::kFloat ? -149 : -133;
  const auto [mantissa, exponent] = at::frexp(magnitude.abs().to(at::kDouble));
  const at::Tensor power =
      (exponent - significant_bits(dtype)).clamp_min(smallest_exponent).to(at::kDouble);
  return at::pow(2.0, power);
}

/// Every element of x within `ulps` units of the fp64 reference (for fp16 and bf16: of the
/// reference rounded), inf and NaN at the same places. `magnitude`: the largest term of a sum,
/// where terms may cancel: fp32 arithmetic cannot do better than units of that.
inline void expect_within_ulps(const at::Tensor& x, const at::Tensor& reference, double ulps,
                               const at::Tensor& magnitude = {}) {
  const auto dtype = x.scalar_type();
  ASSERT_EQ(x.sizes(), reference.sizes());
  const at::Tensor got = x.cpu().to(at::kDouble);
  const at::Tensor exact = reference.cpu();
  const at::Tensor rounded = dtype == at::kFloat ? exact : exact.to(dtype).to(at::kDouble);
  // Overflow of the output type counts as the infinity that the type holds.
  const at::Tensor expected = exact.to(dtype).to(at::kDouble);
  ASSERT_TRUE(at::equal(got.isnan(), expected.isnan())) << "NaN at other places";
  const at::Tensor finite = expected.isfinite();
  ASSERT_TRUE(at::equal(got.isfinite(), finite)) << "infinities at other places";
  const at::Tensor zero = at::zeros_like(exact);
  const at::Tensor error = at::where(finite, (got - rounded).abs(), zero);
  at::Tensor allowed = ulps * ulp_at(at::where(finite, rounded, zero), dtype);
  if (magnitude.defined()) {
    const at::Tensor terms = at::where(finite, magnitude.cpu().to(at::kDouble), zero);
    allowed = allowed + ulps * ulp_at(terms, at::kFloat);
  }
  if (error.numel() == 0) return;
  const at::Tensor ratio = (error / allowed).flatten();
  const int64_t worst = ratio.argmax().item<int64_t>();
  const auto value = [&](const at::Tensor& t) { return t.flatten()[worst].item<double>(); };
  EXPECT_LE(value(ratio), 1) << "worst of " << error.numel() << " elements: got " << value(got)
                             << ", exact " << value(exact) << ", allowed error " << value(allowed);
}

/// Ulps of 2.1: for norms 4 in fp32 and 1 in the half types.
inline double norm_ulps(at::ScalarType dtype) { return dtype == at::kFloat ? 4 : 1; }

inline const std::vector<at::ScalarType>& kernel_dtypes() {
  static const std::vector<at::ScalarType> dtypes = {at::kFloat, at::kHalf, at::kBFloat16};
  return dtypes;
}

/// Runs a suite on the CPU and on the first GPU.
class DeviceTest : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    if (device().is_cuda() && !at::hasCUDA()) GTEST_SKIP() << "missing: a GPU";
    at::manual_seed(20260101);
  }
  at::Device device() const { return at::Device(std::string(GetParam())); }
  at::Tensor normal(at::IntArrayRef shape, at::ScalarType dtype) const {
    return at::randn(shape).to(device(), dtype);
  }
};

inline std::string device_test_name(const testing::TestParamInfo<const char*>& info) {
  return info.param;
}

#define FOVEA_DEVICE_SUITE(suite)                                          \
  INSTANTIATE_TEST_SUITE_P(Devices, suite, testing::Values("cpu", "cuda"), \
                           ::fovea::test::device_test_name)

/// Row lengths around every vector width and block size.
inline const std::vector<int64_t>& row_lengths() {
  static const std::vector<int64_t> lengths = {
      1,   2,   3,   7,    8,    12,   15,   16,   17,   31,   63,   64,   65,   96,    127,  128,
      129, 255, 384, 1000, 1023, 1024, 1536, 2048, 3072, 5120, 8191, 8192, 8200, 16384, 20000};
  return lengths;
}

}  // namespace fovea::test
