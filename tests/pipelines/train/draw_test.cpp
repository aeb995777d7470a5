#include "pipelines/train/draw.h"

#include <gtest/gtest.h>

#include <vector>

namespace fovea::pipelines {
namespace {

TEST(Draw, GivesKnownNumbers) {
  Draw random(7, 3);
  EXPECT_EQ(random.unit(), 0x1.2bd145c09f0cbp-1);
  EXPECT_EQ(random.unit(), 0x1.42e641d843cap-2);
  EXPECT_EQ(random.below(1000), 755u);
}

TEST(Draw, NeighboursAreIndependent) {
  // Every seed and index gives another stream; numbers spread evenly.
  std::vector<int> bins(10);
  for (uint64_t seed = 0; seed < 20; ++seed) {
    for (int64_t index = 0; index < 500; ++index) ++bins[Draw(seed, index).below(bins.size())];
  }
  for (const int count : bins) EXPECT_NEAR(count, 1000, 120);
  EXPECT_NE(Draw(1, 2).unit(), Draw(2, 1).unit());
}

TEST(Draw, StaysInRange) {
  Draw random(1, 1);
  double sum = 0;
  for (int i = 0; i < 1000; ++i) {
    const double value = random.between(-2, 4);
    EXPECT_GE(value, -2);
    EXPECT_LT(value, 4);
    sum += value;
  }
  EXPECT_NEAR(sum / 1000, 1, 0.2);
}

}  // namespace
}  // namespace fovea::pipelines
