#include "core/attention/predicate.h"

#include <map>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "core/check.h"
#include "tests/support/files.h"

namespace fovea {
namespace {

using test::expect_error;

std::vector<std::array<int64_t, 2>> windows(int64_t length, const AxisWindow& rule) {
  std::vector<std::array<int64_t, 2>> out;
  for (int64_t i = 0; i < length; ++i) out.push_back(window_of(rule, i, length));
  return out;
}

at::Tensor visible(const Predicate& predicate, const TokenLayout& layout) {
  const at::Tensor position = at::arange(layout.seq_len()).view({1, 1, -1});
  return visible_pairs(predicate, {layout, layout, position, position});
}

// The rule's own values for whole axes.
TEST(AxisWindow, EqualsTheTable) {
  using Windows = std::vector<std::array<int64_t, 2>>;
  EXPECT_EQ(
      windows(10, {.size = 5}),
      (Windows{{0, 5}, {0, 5}, {0, 5}, {1, 6}, {2, 7}, {3, 8}, {4, 9}, {5, 10}, {5, 10}, {5, 10}}));
  EXPECT_EQ(
      windows(10, {.size = 4}),
      (Windows{{0, 4}, {0, 4}, {0, 4}, {1, 5}, {2, 6}, {3, 7}, {4, 8}, {5, 9}, {6, 10}, {6, 10}}));
  EXPECT_EQ(windows(11, {.size = 4, .stride = 3}), (Windows{{0, 4},
                                                            {0, 4},
                                                            {0, 4},
                                                            {2, 6},
                                                            {2, 6},
                                                            {2, 6},
                                                            {5, 9},
                                                            {5, 9},
                                                            {5, 9},
                                                            {7, 11},
                                                            {7, 11}}));
  EXPECT_EQ(windows(12, {.size = 4, .stride = 4}), (Windows{{0, 4},
                                                            {0, 4},
                                                            {0, 4},
                                                            {0, 4},
                                                            {4, 8},
                                                            {4, 8},
                                                            {4, 8},
                                                            {4, 8},
                                                            {8, 12},
                                                            {8, 12},
                                                            {8, 12},
                                                            {8, 12}}));
  EXPECT_EQ(
      windows(10, {.size = 4, .causal = true}),
      (Windows{{0, 1}, {0, 2}, {0, 3}, {0, 4}, {1, 5}, {2, 6}, {3, 7}, {4, 8}, {5, 9}, {6, 10}}));
  EXPECT_EQ(windows(11, {.size = 5, .stride = 3, .causal = true}), (Windows{{0, 1},
                                                                            {0, 2},
                                                                            {0, 3},
                                                                            {1, 4},
                                                                            {1, 5},
                                                                            {1, 6},
                                                                            {4, 7},
                                                                            {4, 8},
                                                                            {4, 9},
                                                                            {6, 10},
                                                                            {6, 11}}));
}

TEST(AxisWindow, SaysWhatDoesNotFit) {
  constexpr int64_t kHuge = int64_t{1} << 62;  // four of them are 0 in 64 bits
  for (const AxisWindow& rule :
       {AxisWindow{.size = 13}, AxisWindow{.size = 4, .dilation = kHuge},
        AxisWindow{.size = 5, .dilation = 3}, AxisWindow{.size = 4, .stride = 5},
        AxisWindow{.size = 4, .stride = 0}, AxisWindow{.size = 4, .dilation = 0},
        AxisWindow{.size = kHuge, .stride = kHuge, .dilation = 4}}) {
    EXPECT_FALSE(rule.fits(12)) << rule.size << " " << rule.stride << " " << rule.dilation;
  }
  EXPECT_TRUE((AxisWindow{.size = 4, .dilation = 3}.fits(12)));
}

// Every legal window of small axes has its size, and its own token in it.
TEST(AxisWindow, KeepsItsSizeAndItsToken) {
  for (int64_t length = 2; length <= 16; ++length) {
    for (int64_t dilation = 1; dilation <= 3; ++dilation) {
      for (int64_t size = 2; size * dilation <= length; ++size) {
        for (int64_t stride = 1; stride <= size; ++stride) {
          const AxisWindow rule{.size = size, .stride = stride, .dilation = dilation};
          ASSERT_TRUE(rule.fits(length));
          for (int64_t i = 0; i < length; ++i) {
            const auto [begin, end] = window_of(rule, i, length);
            ASSERT_EQ((end - 1 - begin) / dilation + 1, size);
            ASSERT_EQ((i - begin) % dilation, 0);
            ASSERT_TRUE(begin >= 0 && begin <= i && i < end && end <= length);
          }
        }
      }
    }
  }
}

TEST(Predicate, WindowsOfAllAxesAreAnded) {
  const TokenLayout layout = TokenLayout::grid(3, 5, 6);
  WindowPredicate window;
  window.axes[0] = {.size = 2, .causal = true};
  window.axes[1] = {.size = 3, .stride = 2};
  window.axes[2] = {.size = 3, .dilation = 2};
  const at::Tensor seen = visible(window, layout);
  for (int64_t i = 0; i < 90; ++i) {
    for (int64_t j = 0; j < 90; ++j) {
      const auto inside = [&](size_t axis, int64_t from, int64_t to, int64_t length) {
        const auto [begin, end] = window_of(window.axes[axis], from, length);
        return to >= begin && to < end && (to - begin) % window.axes[axis].dilation == 0;
      };
      const bool expected = inside(0, i / 30, j / 30, 3) && inside(1, i / 6 % 5, j / 6 % 5, 5) &&
                            inside(2, i % 6, j % 6, 6);
      ASSERT_EQ(seen[i][j].item<bool>(), expected) << i << " " << j;
    }
  }
}

TEST(Predicate, OnlyPairsOfGridTokensAreLimited) {
  TokenLayout layout = TokenLayout::text(2);
  layout.append(TokenLayout::grid(1, 4, 4)).append(TokenLayout::extra(1));
  WindowPredicate window;
  window.axes[2] = {.size = 2};
  for (const Predicate& predicate :
       std::vector<Predicate>{window, DiscPredicate{1.5}, BandPredicate{1}, CausalPredicate{}}) {
    const at::Tensor seen = visible(predicate, layout);
    EXPECT_TRUE(seen.slice(0, 0, 2).all().item<bool>());
    EXPECT_TRUE(seen.slice(1, 0, 2).all().item<bool>());
    EXPECT_TRUE(seen[18].all().item<bool>());
    EXPECT_TRUE(seen.select(1, 18).all().item<bool>());
    EXPECT_FALSE(seen.all().item<bool>());
  }
}

TEST(Predicate, ADiscIsRoundAndSpansTheFrames) {
  const TokenLayout layout = TokenLayout::grid(2, 5, 5);
  const at::Tensor seen = visible(DiscPredicate{2.0}, layout);
  const at::Tensor middle = seen[12].view({2, 5, 5});
  // dy² + dx² < 4: a square of 3 by 3, without its neighbours at distance 2.
  EXPECT_EQ(middle[0].sum().item<int64_t>(), 9);
  EXPECT_TRUE(middle[0].equal(middle[1]));
}

TEST(Predicate, OrderSpaceGoesByPosition) {
  const TokenLayout layout = TokenLayout::grid(1, 1, 4);
  const at::Tensor reversed = at::tensor({3, 2, 1, 0}, at::kLong).view({1, 1, 4});
  const at::Tensor rows = visible_pairs(CausalPredicate{}, {layout, layout, reversed, reversed});
  const at::Tensor order =
      visible_pairs(CausalPredicate{.in_order = true}, {layout, layout, reversed, reversed});
  EXPECT_TRUE(rows.equal(order.view({4, 4}).t()));
  EXPECT_EQ(rows.sum().item<int64_t>(), 10);
}

TEST(Predicate, RefusesWindowsThatDoNotFit) {
  const TokenLayout layout = TokenLayout::grid(1, 4, 4);
  const auto refuse = [&](const AxisWindow& rule) {
    WindowPredicate window;
    window.axes[1] = rule;
    expect_error(ErrorCode::usage, "height", [&] { visible(window, layout); });
  };
  refuse({.size = 5});
  refuse({.size = 2, .stride = 3});
  refuse({.size = 2, .stride = 0});
  refuse({.size = 3, .dilation = 2});
  refuse({.size = 2, .dilation = 0});
  expect_error(ErrorCode::usage, "no grid",
               [] { visible(WindowPredicate{}, TokenLayout::extra(4)); });
}

}  // namespace
}  // namespace fovea
