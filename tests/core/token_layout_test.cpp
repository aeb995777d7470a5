#include "core/token_layout.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "core/check.h"

namespace fovea {
namespace {

TEST(TokenLayout, CountsAndDescribesItsSegments) {
  TokenLayout layout = TokenLayout::grid(21, 30, 52);
  layout.append(TokenLayout::text(512));
  EXPECT_EQ(layout.seq_len(), 21 * 30 * 52 + 512);
  EXPECT_EQ(layout.describe(), "grid 21x30x52 + text 512");
  EXPECT_FALSE(layout.valid_mask().defined());
}

TEST(TokenLayout, ValidMaskFollowsEachItemsLength) {
  TokenLayout layout = TokenLayout::extra(1);
  layout.append(TokenLayout::text(3, at::tensor({2, 0}, at::kLong)));
  const at::Tensor expected =
      at::tensor({1, 1, 1, 0, 1, 0, 0, 0}, at::kLong).view({2, 1, 1, 4}).to(at::kBool);
  EXPECT_TRUE(at::equal(layout.valid_mask(), expected));
}

TEST(TokenLayout, RefusesEmptyGrids) { EXPECT_THROW(TokenLayout::grid(1, 0, 4), Error); }

}  // namespace
}  // namespace fovea
