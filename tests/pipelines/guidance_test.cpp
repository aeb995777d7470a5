#include "pipelines/guidance.h"

#include <limits>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "core/check.h"

namespace fovea::pipelines {
namespace {

TEST(Guidance, IsActiveAboveOneOnly) {
  EXPECT_FALSE(guidance_active(0.0));
  EXPECT_FALSE(guidance_active(1.0));
  EXPECT_FALSE(guidance_active(-5.0));
  EXPECT_TRUE(guidance_active(1.0001));
}

TEST(Guidance, RefusesScalesThatAreNotFinite) {
  const double inf = std::numeric_limits<double>::infinity();
  for (const double scale : {inf, -inf, std::numeric_limits<double>::quiet_NaN()}) {
    try {
      check_guidance_scale(scale);
      ADD_FAILURE() << scale;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::usage);
    }
  }
  EXPECT_NO_THROW(check_guidance_scale(5.0));
}

TEST(Guidance, RoundsEachOperationToThePredictionsType) {
  at::manual_seed(1);
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    const at::Tensor conditional = at::randn({3, 5}).to(dtype);
    const at::Tensor unconditional = at::randn({3, 5}).to(dtype);
    const at::Tensor guided = guide(conditional, unconditional, 4.5);
    EXPECT_EQ(guided.scalar_type(), dtype);
    // Each operation in fp64 of the rounded operands, rounded once.
    const at::Tensor difference =
        (conditional.to(at::kDouble) - unconditional.to(at::kDouble)).to(dtype);
    const at::Tensor scaled = (4.5 * difference.to(at::kDouble)).to(dtype);
    const at::Tensor expected = (unconditional.to(at::kDouble) + scaled.to(at::kDouble)).to(dtype);
    EXPECT_TRUE(at::equal(guided, expected));
  }
}

}  // namespace
}  // namespace fovea::pipelines
