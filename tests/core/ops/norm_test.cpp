#include "core/ops/norm.h"

#include <limits>
#include <vector>

#include <ATen/Parallel.h>

#include "core/check.h"
#include "tests/core/ops/op_rules.h"

namespace fovea::test {
namespace {

constexpr double kEps = 1e-6;

class NormTest : public DeviceTest {};
FOVEA_DEVICE_SUITE(NormTest);

at::Tensor exact_rms_norm(const at::Tensor& x, const at::Tensor& weight) {
  return composition::rms_norm(x.to(at::kDouble),
                               weight.defined() ? weight.to(at::kDouble) : weight, kEps);
}

TEST_P(NormTest, RmsNormIsWithinTheRule) {
  for (const auto dtype : kernel_dtypes()) {
    for (const int64_t dim : row_lengths()) {
      SCOPED_TRACE(testing::Message() << dtype << " dim " << dim);
      const at::Tensor x = normal({5, dim}, dtype);
      for (const at::Tensor& weight :
           {at::Tensor(), normal({dim}, dtype), normal({dim}, at::kFloat)}) {
        expect_within_ulps(rms_norm(x, weight, kEps), exact_rms_norm(x, weight), norm_ulps(dtype));
      }
    }
  }
}

TEST_P(NormTest, LayerNormIsWithinTheRule) {
  for (const auto dtype : kernel_dtypes()) {
    for (const int64_t dim : row_lengths()) {
      SCOPED_TRACE(testing::Message() << dtype << " dim " << dim);
      const at::Tensor x = normal({5, dim}, dtype) + 3;
      const at::Tensor weight = normal({dim}, at::kFloat), bias = normal({dim}, at::kFloat);
      // The reference is the CPU's, whatever device is tested.
      const at::Tensor wide = x.cpu().to(at::kDouble);
      const at::Tensor wide_weight = weight.cpu(), wide_bias = bias.cpu();
      const at::Tensor plain = composition::layer_norm(wide, {}, {}, kEps);
      if (dim > 1) {
        expect_within_ulps(layer_norm(x, {}, {}, kEps), plain, norm_ulps(dtype));
      } else {
        EXPECT_EQ(layer_norm(x, {}, {}, kEps).abs().max().item<double>(), 0);
      }
      const at::Tensor exact = composition::layer_norm(wide, wide_weight, wide_bias, kEps);
      const at::Tensor terms = at::maximum((plain * wide_weight).abs(), wide_bias.abs());
      expect_within_ulps(layer_norm(x, weight, bias, kEps), exact, norm_ulps(dtype), terms);
    }
  }
}

TEST_P(NormTest, HardRowsKeepTheRule) {
  for (const auto dtype : kernel_dtypes()) {
    SCOPED_TRACE(dtype);
    at::Tensor x = normal({8, 640}, at::kFloat);
    x.select(0, 0).zero_();
    x.select(0, 1).fill_(0.1);
    x.select(0, 2).mul_(1e-4);
    x.select(0, 3).add_(100);                 // large mean, small spread
    x.select(0, 4).slice(0, 3, 4).mul_(100);  // one channel sticks out
    x.select(0, 5).fill_(60000);              // edge of fp16
    x.select(0, 6).copy_(at::sign(x.select(0, 6)));
    if (dtype != at::kHalf) x.select(0, 7).mul_(1e30);  // squares overflow fp32
    x = x.to(dtype);
    expect_within_ulps(rms_norm(x, {}, kEps), exact_rms_norm(x, {}), norm_ulps(dtype));
    // Rows 0, 1 and 5 are constant: their exact result is 0 up to the rounding of the fp64 mean.
    const at::Tensor normed = layer_norm(x, {}, {}, kEps);
    const at::Tensor exact = composition::layer_norm(x.to(at::kDouble), {}, {}, kEps);
    for (const int64_t row : {0, 1, 5})
      EXPECT_LE(normed.select(0, row).abs().max().item<double>(), 1e-6);
    for (const int64_t row : {2, 3, 4, 6, 7}) {
      SCOPED_TRACE(row);
      expect_within_ulps(normed.select(0, row), exact.select(0, row), norm_ulps(dtype));
    }
  }
}

TEST_P(NormTest, SpecialValuesStayInTheirRow) {
  const double inf = std::numeric_limits<double>::infinity();
  for (const auto dtype : kernel_dtypes()) {
    SCOPED_TRACE(dtype);
    const at::Tensor x = normal({4, 130}, dtype);
    x.select(0, 0).select(0, 5).fill_(inf);
    x.select(0, 1).select(0, 129).fill_(-inf);
    x.select(0, 2).select(0, 64).fill_(std::numeric_limits<double>::quiet_NaN());
    expect_within_ulps(rms_norm(x, {}, kEps), exact_rms_norm(x, {}), norm_ulps(dtype));
    expect_within_ulps(layer_norm(x, {}, {}, kEps),
                       composition::layer_norm(x.to(at::kDouble), {}, {}, kEps), norm_ulps(dtype));
  }
}

TEST_P(NormTest, EmptyTensorsAndOneRow) {
  for (const std::vector<int64_t>& shape : {std::vector<int64_t>{0, 64}, {2, 0, 64}, {3, 0}}) {
    const at::Tensor x = at::empty(shape, at::TensorOptions(device()));
    EXPECT_EQ(rms_norm(x, {}, kEps).sizes(), shape);
    EXPECT_EQ(layer_norm(x, {}, {}, kEps).sizes(), shape);
  }
  const at::Tensor x = normal({64}, at::kFloat);
  EXPECT_TRUE(at::equal(rms_norm(x, {}, kEps), rms_norm(x.unsqueeze(0), {}, kEps).squeeze(0)));
}

TEST_P(NormTest, StridedRowsGiveTheBitsOfContiguousOnes) {
  for (const auto dtype : kernel_dtypes()) {
    const at::Tensor packed = normal({2, 7, 3, 64}, dtype);
    const at::Tensor weight = normal({64}, dtype);
    for (const at::Tensor& x :
         {packed.select(2, 1), packed.slice(3, 1, 33), packed.slice(3, 1, 64),
          packed.select(0, 1).select(1, 0), packed.view({-1, 64}).slice(0, 3, 4).expand({9, 64})}) {
      const at::Tensor w = weight.slice(0, 0, x.size(-1));
      EXPECT_TRUE(at::equal(rms_norm(x, w, kEps), rms_norm(x.contiguous(), w, kEps)));
      EXPECT_TRUE(at::equal(layer_norm(x, {}, {}, kEps), layer_norm(x.contiguous(), {}, {}, kEps)));
    }
    // Columns as rows, and rows at unequal distances: no kernel reads them, the composition does.
    for (const at::Tensor& x :
         {packed.select(2, 0).transpose(1, 2), packed.slice(1, 2, 6).select(2, 0)}) {
      expect_within_ulps(rms_norm(x, {}, kEps), exact_rms_norm(x, {}), norm_ulps(dtype));
    }
  }
}

TEST_P(NormTest, RowsDoNotDependOnTheBatch) {
  const at::Tensor x = normal({37, 1536}, at::kBFloat16), weight = normal({1536}, at::kBFloat16);
  const at::Tensor all = rms_norm(x, weight, kEps);
  EXPECT_TRUE(at::equal(all.slice(0, 30, 31), rms_norm(x.slice(0, 30, 31), weight, kEps)));
}

TEST(Norm, ThreadCountChangesNoBit) {
  const int before = at::get_num_threads();
  const at::Tensor x = at::randn({301, 1536});
  at::set_num_threads(1);
  const at::Tensor one = rms_norm(x, {}, kEps), layer_one = layer_norm(x, {}, {}, kEps);
  at::set_num_threads(3);
  EXPECT_TRUE(at::equal(one, rms_norm(x, {}, kEps)));
  EXPECT_TRUE(at::equal(layer_one, layer_norm(x, {}, {}, kEps)));
  at::set_num_threads(before);
}

TEST_P(NormTest, GradientsAndFp64TakeTheComposition) {
  const at::Tensor x = normal({3, 40}, at::kFloat).requires_grad_();
  const at::Tensor weight = normal({40}, at::kFloat).requires_grad_();
  const at::Tensor y = rms_norm(x, weight, kEps);
  ASSERT_TRUE(y.requires_grad());
  y.sum().backward();
  EXPECT_TRUE(x.grad().defined());
  EXPECT_TRUE(weight.grad().defined());
  const at::Tensor wide = normal({3, 40}, at::kDouble);
  EXPECT_TRUE(at::equal(rms_norm(wide, {}, kEps), composition::rms_norm(wide, {}, kEps)));
}

TEST(Norm, RefusalsNameTheTensor) {
  const auto reason = [](const auto& call) -> std::string {
    try {
      call();
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::bad_data);
      return error.what();
    }
    return "no error";
  };
  const at::Tensor x = at::randn({2, 8});
  EXPECT_NE(reason([&] {
              rms_norm(x, at::ones({7}), kEps);
            }).find("'weight': expected shape [8], got [7]"),
            std::string::npos);
  EXPECT_NE(reason([&] { rms_norm(x.to(at::kLong), {}, kEps); }).find("'x': expected fp32"),
            std::string::npos);
  EXPECT_NE(reason([&] { rms_norm(at::Tensor(), {}, kEps); }).find("'x' is missing"),
            std::string::npos);
  EXPECT_NE(reason([&] { layer_norm(x, at::ones({8}), {}, kEps); }).find("'bias'"),
            std::string::npos);
}

}  // namespace
}  // namespace fovea::test
