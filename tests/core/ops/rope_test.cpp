#include "core/ops/rope.h"

#include <limits>
#include <vector>

#include "core/check.h"
#include "core/ops/norm.h"
#include "tests/core/ops/op_rules.h"

namespace fovea::test {
namespace {

constexpr double kEps = 1e-6;

class RopeTest : public DeviceTest {
 protected:
  /// cos and sin of random angles, [seq_len, head_dim / 2]
  std::pair<at::Tensor, at::Tensor> tables(int64_t seq_len, int64_t head_dim) const {
    const at::Tensor angle = at::randn({seq_len, head_dim / 2}) * 100;
    return {angle.cos().to(device()), angle.sin().to(device())};
  }
};
FOVEA_DEVICE_SUITE(RopeTest);

struct Heads {
  int64_t count, dim;
};
const std::vector<Heads> kHeads = {{1, 2},  {3, 6},  {2, 12},   {5, 16},   {3, 20},  {1, 30},
                                   {4, 64}, {7, 80}, {12, 128}, {40, 128}, {64, 160}};

TEST_P(RopeTest, HasTheBitsOfTheComposition) {
  for (const auto dtype : kernel_dtypes()) {
    for (const Heads& heads : kHeads) {
      SCOPED_TRACE(testing::Message() << dtype << " heads " << heads.count << " x " << heads.dim);
      const at::Tensor x = normal({2, 9, heads.count, heads.dim}, dtype);
      const auto [cos, sin] = tables(9, heads.dim);
      const at::Tensor y = rope(x, cos, sin);
      EXPECT_TRUE(at::equal(y, composition::rope(x, cos, sin)));
      const at::Tensor wide = x.to(at::kDouble);
      // Products may cancel: two units of the larger one.
      const at::Tensor terms = wide.abs()
                                   .unflatten(3, {heads.dim / 2, 2})
                                   .amax({4}, true)
                                   .expand({2, 9, heads.count, heads.dim / 2, 2})
                                   .flatten(3, 4);
      expect_within_ulps(y, composition::rope(wide, cos, sin), dtype == at::kFloat ? 2 : 1, terms);
      const at::Tensor in_place = x.clone();
      rope_(in_place, cos, sin);
      EXPECT_TRUE(at::equal(in_place, y));
    }
  }
}

TEST_P(RopeTest, FusedHasTheBitsOfNormThenRope) {
  for (const auto dtype : kernel_dtypes()) {
    for (const Heads& heads : kHeads) {
      SCOPED_TRACE(testing::Message() << dtype << " heads " << heads.count << " x " << heads.dim);
      const int64_t dim = heads.count * heads.dim;
      const at::Tensor x = normal({2, 9, dim}, dtype);
      const auto [cos, sin] = tables(9, heads.dim);
      for (const at::Tensor& weight :
           {at::Tensor(), normal({dim}, dtype), normal({dim}, at::kFloat)}) {
        const at::Tensor normed = rms_norm(x, weight, kEps).unflatten(2, {heads.count, heads.dim});
        EXPECT_TRUE(at::equal(rms_norm_rope(x, weight, cos, sin, kEps), rope(normed, cos, sin)));
      }
    }
  }
}

TEST_P(RopeTest, FusedIsCloseToItsComposition) {
  for (const auto dtype : kernel_dtypes()) {
    const at::Tensor x = normal({1, 50, 1536}, dtype), weight = normal({1536}, dtype);
    const auto [cos, sin] = tables(50, 128);
    const at::Tensor y = rms_norm_rope(x, weight, cos, sin, kEps).to(at::kDouble);
    const at::Tensor expected =
        composition::rms_norm_rope(x, weight, cos, sin, kEps).to(at::kDouble);
    const double error = ((y - expected).norm() / expected.norm()).item<double>();
    // Where fp32 sums differ in their last bit, few half values round the other way.
    EXPECT_LE(error, dtype == at::kFloat ? 3e-7 : dtype == at::kHalf ? 1e-4 : 8e-4);
  }
}

TEST_P(RopeTest, ViewsAndOddStrides) {
  const auto [cos, sin] = tables(6, 32);
  const at::Tensor packed = normal({2, 6, 3 * 128}, at::kBFloat16);
  for (int64_t part = 0; part < 3; ++part) {
    const at::Tensor x = packed.slice(2, part * 128, (part + 1) * 128);
    EXPECT_TRUE(at::equal(rms_norm_rope(x, {}, cos, sin, kEps),
                          rms_norm_rope(x.contiguous(), {}, cos, sin, kEps)));
    const at::Tensor heads = x.unflatten(2, {4, 32});
    EXPECT_TRUE(at::equal(rope(heads, cos, sin), rope(heads.contiguous(), cos, sin)));
  }
  // Heads before tokens: the composition runs, with the same bits.
  const at::Tensor turned =
      packed.slice(2, 0, 128).unflatten(2, {4, 32}).transpose(1, 2).contiguous().transpose(1, 2);
  EXPECT_TRUE(at::equal(rope(turned, cos, sin), rope(turned.contiguous(), cos, sin)));
  const at::Tensor copy = turned.clone(at::MemoryFormat::Preserve);
  rope_(copy, cos, sin);
  EXPECT_TRUE(at::equal(copy, rope(turned, cos, sin)));
}

TEST_P(RopeTest, SpecialValuesTouchTheirPairOnly) {
  const auto [cos, sin] = tables(3, 64);
  for (const auto dtype : kernel_dtypes()) {
    const at::Tensor x = normal({1, 3, 2, 64}, dtype);
    x.view({-1}).select(0, 70).fill_(std::numeric_limits<double>::infinity());
    x.view({-1}).select(0, 200).fill_(std::numeric_limits<double>::quiet_NaN());
    const at::Tensor y = rope(x, cos, sin);
    EXPECT_EQ(y.isfinite().logical_not().sum().item<int64_t>(), 4);
    EXPECT_TRUE(at::allclose(y, composition::rope(x, cos, sin), 0, 0, /*equal_nan=*/true));
  }
}

TEST_P(RopeTest, EmptySequences) {
  const auto [cos, sin] = tables(0, 16);
  EXPECT_EQ(rope(normal({2, 0, 3, 16}, at::kFloat), cos, sin).sizes(),
            (std::vector<int64_t>{2, 0, 3, 16}));
  EXPECT_EQ(rms_norm_rope(normal({2, 0, 48}, at::kFloat), {}, cos, sin, kEps).sizes(),
            (std::vector<int64_t>{2, 0, 3, 16}));
}

TEST(Rope, RefusalsNameTheTensor) {
  const at::Tensor x = at::randn({1, 4, 2, 8}), table = at::randn({4, 4});
  EXPECT_THROW(rope(x, at::randn({5, 4}), at::randn({5, 4})), Error);
  EXPECT_THROW(rope(x, at::randn({4, 3}), at::randn({4, 3})), Error);
  EXPECT_THROW(rope(x, table, table.to(at::kHalf)), Error);
  EXPECT_THROW(rope(x.select(0, 0), table, table), Error);
  EXPECT_THROW(rms_norm_rope(at::randn({1, 4, 12}), {}, table, table, 1e-6), Error);
}

}  // namespace
}  // namespace fovea::test
