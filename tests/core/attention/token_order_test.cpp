#include "core/attention/token_order.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "core/attention/block_mask.h"
#include "core/check.h"
#include "tests/support/files.h"

namespace fovea {
namespace {

using test::expect_error;

std::vector<int64_t> numbers(const at::Tensor& x) {
  const at::Tensor flat = x.contiguous();
  return {flat.data_ptr<int64_t>(), flat.data_ptr<int64_t>() + flat.numel()};
}

TokenLayout grid_and_text() {
  TokenLayout layout = TokenLayout::grid(1, 3, 4);
  return layout.append(TokenLayout::text(2));
}

TEST(TokenOrder, TilesAreContiguousAndSmallerAtTheFarBorders) {
  const at::Tensor rows = TokenOrder::tiles({1, 2, 3}).rows(grid_and_text(), at::kCPU);
  EXPECT_EQ(rows.sizes(), (std::vector<int64_t>{1, 1, 14}));
  EXPECT_EQ(numbers(rows), (std::vector<int64_t>{0, 1, 2, 4, 5, 6, 3, 7, 8, 9, 10, 11, 12, 13}));
}

TEST(TokenOrder, AxesAreSortedPerHead) {
  const TokenOrder order = TokenOrder::axes({{0, 1, 2}, {2, 0, 1}});
  const at::Tensor rows = order.rows(TokenLayout::grid(2, 1, 3), at::kCPU);
  EXPECT_EQ(numbers(rows[0][0]), (std::vector<int64_t>{0, 1, 2, 3, 4, 5}));
  EXPECT_EQ(numbers(rows[0][1]), (std::vector<int64_t>{0, 3, 1, 4, 2, 5}));
  EXPECT_EQ(order.describe(), "axes 0.1.2 2.0.1");
}

TEST(TokenOrder, EveryOrderIsAPermutation) {
  TokenLayout layout = TokenLayout::extra(3);
  layout.append(TokenLayout::grid(3, 5, 7)).append(TokenLayout::text(4));
  for (const TokenOrder& order :
       {TokenOrder(), TokenOrder::tiles({2, 2, 4}), TokenOrder::tiles({9, 9, 9}),
        TokenOrder::axes({{1, 2, 0}, {2, 1, 0}})}) {
    const at::Tensor sorted = std::get<0>(order.rows(layout, at::kCPU).sort(2));
    EXPECT_TRUE(sorted.equal(at::arange(112).expand_as(sorted))) << order.describe();
  }
}

TEST(TokenOrder, RefusesWhatIsNoOrder) {
  expect_error(ErrorCode::usage, "tile sides", [] { TokenOrder::tiles({1, 0, 1}); });
  expect_error(ErrorCode::usage, "permutation", [] { TokenOrder::axes({{0, 1, 1}}); });
  expect_error(ErrorCode::usage, "int32 or int64", [] { TokenOrder::index(at::zeros({1, 1, 2})); });
  const TokenOrder order = TokenOrder::index(at::arange(5).view({1, 1, 5}));
  expect_error(ErrorCode::usage, "5 tokens", [&] { order.rows(TokenLayout::extra(4), at::kCPU); });
}

TEST(BlockAxis, BlocksDoNotStraddleSegments) {
  const BlockAxis axis = BlockAxis::uniform(grid_and_text(), 5);
  EXPECT_EQ(axis.host_offsets(), (std::vector<int64_t>{0, 5, 10, 12, 14}));
  EXPECT_EQ(axis.max_size(), 5);
  EXPECT_EQ(numbers(axis.block_of_position(14, at::kCPU)),
            (std::vector<int64_t>{0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 3, 3}));
}

TEST(BlockAxis, TilesHaveTheSizesOfTheOrder) {
  const BlockAxis axis = BlockAxis::tiles(grid_and_text(), {1, 2, 3});
  EXPECT_EQ(axis.host_offsets(), (std::vector<int64_t>{0, 6, 8, 11, 12, 14}));
}

TEST(BlockAxis, EmptyBlocksHoldNoPosition) {
  const at::Tensor offsets = at::tensor({0, 0, 2, 2, 5, 5}, at::kInt).view({1, 1, 6});
  const BlockAxis axis = BlockAxis::from_offsets(offsets, 3);
  EXPECT_EQ(axis.num_blocks(), 5);
  EXPECT_EQ(numbers(axis.block_of_position(5, at::kCPU)), (std::vector<int64_t>{1, 1, 3, 3, 3}));
}

}  // namespace
}  // namespace fovea
