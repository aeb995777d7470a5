// Shares between groups on a GPU against fp64, of the numbers that bf16 and fp16 hold.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "kernels/attention/block_scores.h"
#include "tests/kernels/attention_problem.h"
#include "tests/kernels/gpu_test.h"

namespace fovea::kernels {
namespace {

struct SharesCase {
  int64_t dim = 64, phases = 1, q_groups = 10, kv_groups = 10, q_blocks = 4, kv_blocks = 4;
  bool weighted = false, largest = false;
  DType dtype = DType::bf16;
  int64_t kv_heads = 2, group = 2, q_len = 61, kv_len = 53;
  int64_t q_size = 0, kv_size = 0;  // groups of each block; 0: uneven ones, some empty

  std::string what() const {
    return std::to_string(phases) + " phases of " + std::to_string(dim) + " channels, " +
           std::to_string(q_groups) + " x " + std::to_string(kv_groups) + " groups, " +
           std::to_string(q_blocks) + " x " + std::to_string(kv_blocks) + " blocks" +
           (weighted ? ", weighted" : "") + (largest ? ", largest" : "");
  }
};

using attention_test::bits_of, attention_test::value_of;

/// One side. Rows lie one token after the other, all heads of a token together, with channels
/// between them that do not belong to any.
struct Side {
  int64_t heads, len, dim, groups;
  std::vector<uint16_t> x;
  std::vector<int32_t> rows, offsets;
  std::vector<float> weight;

  int64_t row_stride() const { return heads * dim + 8; }
  HeadRows view(const void* data, DType dtype) const { return {data, dtype, 0, dim, row_stride()}; }
};

struct Problem {
  SharesCase c;
  Side q, k;
  double scale = 1;

  int64_t heads() const { return c.kv_heads * c.group; }
  size_t size() const { return static_cast<size_t>(heads() * c.q_blocks * c.kv_blocks); }
};

class Sm80Shares : public Sm80Test {
 protected:
  int below(int64_t bound) {
    return static_cast<int>(std::uniform_int_distribution<int64_t>(0, bound - 1)(random_));
  }

  std::vector<int32_t> offsets(int64_t blocks, int64_t groups, int64_t size) {
    std::vector<int32_t> out;
    if (size > 0) {
      for (int64_t i = 0; i <= blocks; ++i) {
        out.push_back(static_cast<int32_t>(std::min(i * size, groups)));
      }
      return out;
    }
    for (int64_t i = 0; i <= blocks; ++i) out.push_back(below(groups + 1));
    std::sort(out.begin(), out.end());
    if (blocks > 2) out[1] = out[2];  // empty
    return out;
  }

  // The last row belongs to no group, unless one is hidden.
  Side side(const SharesCase& c, bool keys) {
    const int64_t heads = c.kv_heads * (keys ? 1 : c.group), len = keys ? c.kv_len : c.q_len;
    const int64_t groups = keys ? c.kv_groups : c.q_groups;
    Side out{heads, len, c.dim, groups, {}, {}, {}, {}};
    std::normal_distribution<float> draw;
    for (int64_t i = 0; i < len * out.row_stride(); ++i) {
      const bool between = i % out.row_stride() >= heads * c.dim;
      const bool hidden = i / out.row_stride() == len - 1;
      out.x.push_back(bits_of(c.dtype, between || hidden ? NAN : draw(random_)));
    }
    for (int64_t i = 0; i < c.phases * groups; ++i) out.rows.push_back(below(len - 1));
    out.offsets =
        keys ? offsets(c.kv_blocks, groups, c.kv_size) : offsets(c.q_blocks, groups, c.q_size);
    for (int64_t g = 0; g < groups && c.weighted; ++g) {
      out.weight.push_back(static_cast<float>(below(4)));
      if (out.weight.back() == 0) out.rows[g] = static_cast<int32_t>(len - 1);  // NaN
    }
    return out;
  }

  Problem problem(const SharesCase& c) {
    return {c, side(c, false), side(c, true),
            1.5 / std::sqrt(static_cast<double>(c.dim * c.phases))};
  }

  std::mt19937 random_{11};
};

/// A problem on the device; `guard` floats behind the shares and the workspace stay as they are.
struct OnDevice {
  static constexpr int64_t kGuard = 64;
  const Problem& p;
  DeviceArray<uint16_t> q, k;
  DeviceArray<int32_t> q_rows, k_rows, q_offsets, k_offsets;
  DeviceArray<float> q_weight, k_weight, shares;

  explicit OnDevice(const Problem& p)
      : p(p),
        q(p.q.x),
        k(p.k.x),
        q_rows(p.q.rows),
        k_rows(p.k.rows),
        q_offsets(p.q.offsets),
        k_offsets(p.k.offsets),
        q_weight(p.q.weight),
        k_weight(p.k.weight),
        shares(std::vector<float>(p.size() + kGuard, -7)) {}

  BlockSharesArgs args() const {
    const SharesCase& c = p.c;
    BlockSharesArgs out;
    out.heads = p.heads(), out.kv_heads = c.kv_heads, out.dim = c.dim;
    out.q_len = c.q_len, out.kv_len = c.kv_len, out.phases = c.phases;
    out.q = p.q.view(q.data(), c.dtype), out.k = p.k.view(k.data(), c.dtype);
    out.q_groups = c.q_groups, out.kv_groups = c.kv_groups;
    out.q_rows = q_rows.data(), out.kv_rows = k_rows.data();
    out.q_blocks = c.q_blocks, out.kv_blocks = c.kv_blocks;
    out.q_offsets = q_offsets.data(), out.kv_offsets = k_offsets.data();
    if (c.weighted) out.q_weight = q_weight.data(), out.kv_weight = k_weight.data();
    out.scale = p.scale, out.largest = c.largest, out.shares = shares.data();
    return out;
  }

  std::vector<float> run() const {
    const BlockSharesArgs own = args();
    const int64_t floats = block_shares_cuda_workspace_bytes(own, {}) / 4;
    const DeviceArray<float> memory(std::vector<float>(static_cast<size_t>(floats + kGuard), NAN));
    const Status status = block_shares_cuda(own, {memory.data(), floats * 4}, {});
    EXPECT_TRUE(status.ok()) << status.message;
    std::vector<float> out = shares.read();
    for (size_t i = p.size(); i < out.size(); ++i) EXPECT_EQ(out[i], -7) << "behind the shares";
    const std::vector<float> used = memory.read();
    for (int64_t i = floats; i < floats + kGuard; ++i) {
      EXPECT_TRUE(std::isnan(used[static_cast<size_t>(i)])) << "behind the workspace";
    }
    out.resize(p.size());
    return out;
  }
};

/// In fp64, of rows that are there.
std::vector<double> expected_shares(const Problem& p) {
  const SharesCase& c = p.c;
  std::vector<double> out(p.size(), 0), mass(static_cast<size_t>(c.kv_groups));
  const auto value = [&](const Side& side, int64_t head, int64_t row, int64_t d) {
    if (row < 0 || row >= side.len) return 0.0;
    return value_of(c.dtype, side.x[row * side.row_stride() + head * side.dim + d]);
  };
  for (int64_t h = 0; h < p.heads(); ++h) {
    for (int64_t i = 0; i < c.q_blocks; ++i) {
      for (int64_t g = p.q.offsets[i]; g < p.q.offsets[i + 1]; ++g) {
        const double weight = c.weighted ? p.q.weight[g] : 1;
        if (weight == 0) continue;
        double total = 0;
        for (int64_t j = 0; j < c.kv_groups; ++j) {
          double logit = 0;
          for (int64_t phase = 0; phase < c.phases; ++phase) {
            for (int64_t d = 0; d < c.dim; ++d) {
              logit += value(p.q, h, p.q.rows[phase * c.q_groups + g], d) *
                       value(p.k, h / c.group, p.k.rows[phase * c.kv_groups + j], d);
            }
          }
          const double factor = c.weighted ? p.k.weight[j] : 1;
          mass[j] = factor == 0 ? 0 : factor * std::exp(p.scale * logit);
          total += mass[j];
        }
        for (int64_t j = 0; j < c.kv_blocks && total > 0; ++j) {
          double& share = out[(h * c.q_blocks + i) * c.kv_blocks + j];
          for (int64_t m = p.k.offsets[j]; m < p.k.offsets[j + 1]; ++m) {
            const double own = weight * mass[m] / total;
            share = c.largest ? std::max(share, own) : share + own;
          }
        }
      }
    }
  }
  return out;
}

void expect_shares(const Problem& p) {
  const std::vector<double> expected = expected_shares(p);
  const std::vector<float> got = OnDevice(p).run();
  for (size_t i = 0; i < got.size(); ++i) {
    const auto at = static_cast<int64_t>(i);
    ASSERT_NEAR(got[i], expected[i], 2e-5 * expected[i] + 1e-7)
        << p.c.what() << ": head " << at / p.c.kv_blocks / p.c.q_blocks << ", blocks "
        << at / p.c.kv_blocks % p.c.q_blocks << ", " << at % p.c.kv_blocks;
  }
}

TEST_F(Sm80Shares, AreThoseOfTheSoftmax) {
  for (const bool largest : {false, true}) {
    for (const bool weighted : {false, true}) {
      const auto expect = [&](SharesCase c) {
        c.weighted = weighted, c.largest = largest;
        expect_shares(problem(c));
      };
      expect({.dim = 64, .q_groups = 130, .kv_groups = 70});
      expect({.dim = 128, .q_groups = 40, .kv_groups = 300, .q_blocks = 7, .kv_blocks = 9});
      expect({.dim = 80, .phases = 3, .q_groups = 33, .kv_groups = 129});
      expect({.dim = 8, .phases = 2, .q_groups = 5, .kv_groups = 1});
      expect({.dim = 64, .phases = 8, .q_groups = 140, .kv_groups = 270, .dtype = DType::f16});
      expect({.dim = 128, .phases = 16, .q_groups = 17, .kv_groups = 150, .q_blocks = 3});
      expect({.dim = 256, .q_groups = 20, .kv_groups = 200, .dtype = DType::f16});
      expect({.dim = 256, .phases = 3, .q_groups = 20, .kv_groups = 40});
    }
  }
}

// Where blocks of keys begin within what a warp, and a thread, has of a row.
TEST_F(Sm80Shares, OfBlocksOfAllSizes) {
  for (const bool largest : {false, true}) {
    for (const int64_t size : {1, 2, 3, 7, 8, 15, 16, 32, 63, 64, 65, 128, 200}) {
      SharesCase c{.dim = 64, .q_groups = 40, .kv_groups = 330, .largest = largest};
      c.group = c.kv_heads = 1;
      c.kv_size = size, c.kv_blocks = (c.kv_groups + size - 1) / size;
      c.q_size = std::min<int64_t>(size, 20), c.q_blocks = (c.q_groups + c.q_size - 1) / c.q_size;
      expect_shares(problem(c));
    }
  }
}

// Groups before the first block and behind the last one are of the softmax, but of no share.
TEST_F(Sm80Shares, OfBlocksThatLeaveGroupsOut) {
  Problem p = problem({.dim = 64, .q_groups = 150, .kv_groups = 150, .q_blocks = 2});
  p.q.offsets = {7, 9, 141};
  p.k.offsets = {3, 3, 70, 71, 131};
  expect_shares(p);
}

TEST_F(Sm80Shares, OfManyBlocksAndTiles) {
  for (const bool largest : {false, true}) {
    // More blocks of keys than threads; more tiles of keys than a block has at a time.
    SharesCase c{.dim = 64, .q_groups = 9, .kv_groups = 700, .q_blocks = 3, .kv_blocks = 350};
    c.largest = largest, c.group = c.kv_heads = 1, c.kv_size = 2;
    expect_shares(problem(c));
    c.kv_groups = on_gpu(40000, 1500), c.kv_blocks = 20, c.kv_size = c.kv_groups / 20;
    c.phases = 5;
    expect_shares(problem(c));
    c.q_groups = on_gpu(3000, 400), c.kv_groups = 300, c.q_size = 0, c.kv_size = 15;
    expect_shares(problem(c));
    // So many tiles that a block has several of them, queries held and not.
    for (const int64_t phases : {1, 5}) {
      SharesCase many{.dim = 8, .phases = phases, .q_groups = on_gpu(1000, 300)};
      many.kv_groups = on_gpu(2000, 700), many.kv_blocks = 30, many.group = on_gpu(16, 2);
      many.largest = largest;
      expect_shares(problem(many));
    }
  }
}

// Logits far apart, so that what was added up so far is scaled again and again.
TEST_F(Sm80Shares, OfLogitsThatGrow) {
  Problem p = problem(
      {.dim = 64, .q_groups = 20, .kv_groups = 520, .kv_blocks = 26, .group = 4, .kv_len = 521});
  p.k.offsets = offsets(26, 520, 20);
  for (int32_t g = 0; g < 520; ++g) p.k.rows[g] = g;
  for (int64_t i = 0; i < static_cast<int64_t>(p.k.x.size()); ++i) {
    const auto row = static_cast<float>(i / p.k.row_stride());
    const auto x = static_cast<float>(value_of(p.c.dtype, p.k.x[i]));
    p.k.x[i] = bits_of(p.c.dtype, x * row / 40);
  }
  for (const bool largest : {false, true}) {
    p.c.largest = largest;
    const std::vector<double> expected = expected_shares(p);
    const std::vector<float> got = OnDevice(p).run();
    for (size_t i = 0; i < got.size(); ++i)
      ASSERT_NEAR(got[i], expected[i], 2e-4 * expected[i] + 1e-6);
  }
}

TEST_F(Sm80Shares, OfRowsThatSeeNothing) {
  Problem p = problem({.dim = 64, .q_groups = 20, .kv_groups = 40, .weighted = true});
  for (float& x : p.k.weight) x = 0;
  for (int64_t g = 0; g < p.k.groups; ++g) p.k.rows[g] = static_cast<int32_t>(p.k.len - 1);
  expect_shares(p);  // zeros
  p = problem({.dim = 64, .q_groups = 20, .kv_groups = 0, .q_blocks = 3, .kv_blocks = 2});
  p.q.offsets = {0, 4, 9, 20}, p.k.offsets = {0, 0, 0};
  expect_shares(p);
  p = problem({.dim = 64, .q_groups = 0, .kv_groups = 20, .q_blocks = 2, .kv_blocks = 1});
  p.q.offsets = {0, 0, 0}, p.k.offsets = {0, 20};
  expect_shares(p);
}

// The host cannot look at what lies on the device.
TEST_F(Sm80Shares, RowsThatAreNotThereCountAsZeros) {
  Problem p = problem({.dim = 80, .phases = 3, .q_groups = 150, .kv_groups = 140});
  constexpr int32_t kNone[] = {-1, std::numeric_limits<int32_t>::min(),
                               std::numeric_limits<int32_t>::max()};
  for (size_t i = 0; i < 3; ++i) {
    p.q.rows[40 * i] = p.k.rows[30 * i + 7] = kNone[i];
    p.q.rows[50 * i + 151] = static_cast<int32_t>(p.q.len);
    p.k.rows[20 * i + 141] = static_cast<int32_t>(p.k.len);
  }
  expect_shares(p);
}

TEST_F(Sm80Shares, OffsetsOfAnyKindDoNoHarm) {
  constexpr int32_t kLow = std::numeric_limits<int32_t>::min();
  constexpr int32_t kHigh = std::numeric_limits<int32_t>::max();
  const Problem p = problem({.dim = 64, .q_groups = 150, .kv_groups = 300, .kv_blocks = 5});
  for (const std::vector<int32_t>& of_keys : {std::vector<int32_t>{-5, 40, 30, 500, 9, 8},
                                              {kHigh, kLow, kHigh, kLow, kHigh, kLow},
                                              {kLow, kLow, kHigh, kHigh, kHigh, kHigh},
                                              {299, 200, 100, 50, 20, 0}}) {
    for (const std::vector<int32_t>& of_queries : {std::vector<int32_t>{0, 30, 20, 400, 5},
                                                   {kHigh, kLow, kHigh, kLow, kHigh},
                                                   {kLow, kLow, kHigh, kHigh, kLow}}) {
      Problem bad = p;
      bad.k.offsets = of_keys, bad.q.offsets = of_queries;
      OnDevice(bad).run();
      ASSERT_EQ(cudaGetLastError(), cudaSuccess);
    }
  }
}

TEST_F(Sm80Shares, EveryRunGivesTheSameBits) {
  for (const bool largest : {false, true}) {
    SharesCase c{.dim = 64, .phases = on_gpu(8, 1), .q_groups = on_gpu(1000, 140)};
    c.kv_groups = on_gpu(1100, 140), c.q_blocks = c.kv_blocks = 9;
    c.weighted = true, c.largest = largest;
    const Problem p = problem(c);
    const OnDevice device(p);
    expect_same_every_time([&] { return device.run(); });
  }
}

TEST_F(Sm80Shares, SomeHeadsAtATime) {
  // More than 256 MiB in all, but few logits.
  SharesCase c{.dim = 8, .q_groups = 120, .kv_groups = 60, .q_blocks = 3, .kv_blocks = 1 << 19};
  c.kv_heads = 3, c.group = 1, c.kv_size = 1;
  if (on_gpu(1, 0) == 0) GTEST_SKIP() << "missing: time for 3 x 2^19 blocks";
  expect_shares(problem(c));
}

TEST_F(Sm80Shares, RefuseOtherRows) {
  const Problem p = problem({.dim = 64});
  const OnDevice device(p);
  const DeviceArray<float> memory(std::vector<float>(1 << 16, 0));
  const auto code = [&](const BlockSharesArgs& args) {
    return block_shares_cuda(args, {memory.data(), 4 << 16}, {}).code;
  };
  BlockSharesArgs args = device.args();
  EXPECT_EQ(code(args), StatusCode::ok);
  EXPECT_EQ(block_shares_cuda(args, {memory.data(), 64}, {}).code, StatusCode::invalid);
  args.dim = 60;
  EXPECT_EQ(code(args), StatusCode::unsupported);
  args.dim = 264;
  EXPECT_EQ(code(args), StatusCode::unsupported);
  args = device.args(), args.q.row_stride += 1;
  EXPECT_EQ(code(args), StatusCode::unsupported);
  args = device.args(), args.q.dtype = args.k.dtype = DType::f32;
  EXPECT_EQ(code(args), StatusCode::unsupported);
}

}  // namespace
}  // namespace fovea::kernels
