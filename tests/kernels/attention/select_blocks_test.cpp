#include "kernels/attention/select_blocks.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include <gtest/gtest.h>

namespace fovea::kernels {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// One entry after the other, as the header says.
std::vector<char> chosen_one_by_one(const SelectBlocksArgs& args, const std::vector<float>& row) {
  std::vector<size_t> order(row.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    if (std::isnan(row[a]) != std::isnan(row[b])) return std::isnan(row[a]);
    return row[a] > row[b];
  });
  std::vector<char> out(row.size(), 0);
  double sum = 0;
  for (size_t i = 0; i < order.size(); ++i) {
    const double own = row[order[i]];
    const bool by_sum =
        args.sums && (args.takes_crossing ? sum < args.mass : sum + own <= args.mass);
    if (!by_sum && static_cast<int32_t>(i) >= args.least) break;
    out[order[i]] = args.takes_lowest || row[order[i]] != -kInfinity;
    sum += own;
  }
  return out;
}

void expect_same(SelectBlocksArgs args, const std::vector<float>& row) {
  std::vector<char> got(row.size(), 2);
  args.scores = row.data();
  args.rows = 1, args.blocks = static_cast<int32_t>(row.size());
  args.chosen = reinterpret_cast<bool*>(got.data());
  select_blocks_cpu(args);
  EXPECT_EQ(got, chosen_one_by_one(args, row))
      << row.size() << " blocks, least " << args.least << ", mass " << args.mass;
}

class SelectBlocks : public testing::Test {
 protected:
  // Of few values, so that many are equal.
  std::vector<float> draw(size_t blocks, int values, bool shares) {
    std::uniform_int_distribution<int> number(shares ? 0 : -values, values);
    std::vector<float> out(blocks);
    for (float& x : out) x = static_cast<float>(number(random_)) / 64;
    return out;
  }
  std::mt19937 random_{5};
};

TEST_F(SelectBlocks, TakesTheHighestAndOfEqualOnesTheFirst) {
  for (const size_t blocks : {1, 2, 31, 32, 33, 100, 257}) {
    for (const int values : {1, 3, 1000}) {
      for (const int32_t least : {0, 1, 2, 7, 50, 99, 100, 257, 300}) {
        expect_same({.least = least, .takes_lowest = false}, draw(blocks, values, false));
      }
    }
  }
}

TEST_F(SelectBlocks, TakesSharesUpToASum) {
  for (const size_t blocks : {1, 2, 33, 100, 257}) {
    for (const int values : {1, 2, 40}) {  // sums of 64ths are exact
      for (const double mass : {0.0, 1.0 / 64, 0.5, 3.0, 20.0, 1e9}) {
        for (const int32_t least : {0, 1, 5}) {
          const std::vector<float> row = draw(blocks, values, true);
          expect_same({.least = least, .sums = true, .mass = mass}, row);
          expect_same({.least = least, .sums = true, .mass = mass, .takes_crossing = false}, row);
        }
      }
    }
  }
}

TEST_F(SelectBlocks, KnowsInfinityNanAndBothZeros) {
  for (const int32_t least : {0, 1, 2, 3, 4, 5, 6}) {
    expect_same({.least = least, .takes_lowest = false},
                {-kInfinity, 0.0f, -0.0f, 1, -kInfinity, kNan});
    expect_same({.least = least}, {-kInfinity, -0.0f, 0.0f, kInfinity, kNan, kNan});
    expect_same({.least = least, .sums = true, .mass = 0.5}, {0.25f, kNan, 0.5f, kNan, 0, 1});
    expect_same({.least = least, .sums = true, .mass = 0.5, .takes_crossing = false},
                {0.25f, 0.125f, kNan, 0, 0.125f});
    expect_same({.least = least, .sums = true, .mass = 0.5}, {0, 0, 0, -0.0f});
  }
}

TEST_F(SelectBlocks, KeepsRowsApart) {
  std::vector<float> scores;
  for (int i = 0; i < 5; ++i) {
    const std::vector<float> row = draw(40, 9, false);
    scores.insert(scores.end(), row.begin(), row.end());
  }
  std::vector<char> got(scores.size());
  const SelectBlocksArgs args{.scores = scores.data(),
                              .rows = 5,
                              .blocks = 40,
                              .least = 9,
                              .chosen = reinterpret_cast<bool*>(got.data())};
  select_blocks_cpu(args);
  for (int i = 0; i < 5; ++i) {
    const auto at = [&](const auto& all) {
      return std::vector(all.begin() + 40 * i, all.begin() + 40 * (i + 1));
    };
    EXPECT_EQ(at(got), chosen_one_by_one(args, at(scores)));
    EXPECT_EQ(std::accumulate(got.begin() + 40 * i, got.begin() + 40 * (i + 1), 0), 9);
  }
}

}  // namespace
}  // namespace fovea::kernels
