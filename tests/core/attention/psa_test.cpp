// Pyramid Sparse Attention: levels and pooled keys written out.

#include <algorithm>
#include <cmath>
#include <numeric>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "core/attention/executors/reference.h"
#include "core/attention/planner.h"
#include "core/attention/planners/sampling.h"
#include "core/check.h"
#include "tests/support/attention_cases.h"
#include "tests/support/files.h"
#include "tests/support/golden.h"

namespace fovea {
namespace {

using test::relative_error;
using Rows = std::vector<std::vector<int64_t>>;

const Selection& selection_of(const AttentionPlan& plan) {
  return std::get<SoftmaxBranch>(plan.branches[0].kind).selection;
}

AttentionPlan plan_of(const Json& options, const AttentionCall& call) {
  AttentionPlan plan = make_planner("psa", options)->plan(call);
  validate(plan, call);
  return plan;
}

// The sampled rows of a block: of each run of four the one that the counter of its first row says.
std::vector<int64_t> sampled(const TokenLayout& layout, int64_t item,
                             const std::vector<int64_t>& rows, int64_t seed) {
  std::vector<int64_t> out;
  for (size_t at = 0; at < rows.size(); at += 4) {
    const std::vector<int64_t> run(
        rows.begin() + static_cast<int64_t>(at),
        rows.begin() +
            std::min<int64_t>(static_cast<int64_t>(at) + 4, static_cast<int64_t>(rows.size())));
    const auto valid = test::valid_rows(layout, item, run);
    if (valid.empty()) continue;
    const at::Tensor counter = at::tensor({run[0]}, at::kLong);
    const at::Tensor bound = at::tensor({static_cast<int64_t>(valid.size())}, at::kLong);
    out.push_back(valid[static_cast<size_t>(random_below(counter, seed, bound).item<int64_t>())]);
  }
  return out;
}

// Importance of each block of keys to one of queries.
std::vector<double> importance(const AttentionCall& call, std::array<int64_t, 3> head,
                               const std::vector<int64_t>& q_rows, const Rows& kv_blocks) {
  const auto [b, h, g] = head;
  std::vector<double> out(kv_blocks.size(), 0);
  const at::Tensor products = at::matmul(call.q[b][h], call.k[b][g].t());
  const auto dot = products.accessor<double, 2>();
  Rows keys;
  for (const auto& block : kv_blocks) keys.push_back(sampled(call.kv_layout, b, block, 0));
  for (const int64_t i : sampled(call.q_layout, b, q_rows, 0)) {
    std::vector<double> largest(kv_blocks.size(), 0);
    double total = 0;
    for (size_t j = 0; j < kv_blocks.size(); ++j) {
      for (const int64_t row : keys[j]) {
        const double p = std::exp(dot[i][row] / std::sqrt(8.0));
        total += p;
        largest[j] = std::max(largest[j], p);
      }
    }
    for (size_t j = 0; j < out.size(); ++j) out[j] = std::max(out[j], largest[j] / total);
  }
  const double sum = std::accumulate(out.begin(), out.end(), 0.0);
  for (double& value : out) value /= std::max(sum, 1e-30);
  return out;
}

// Level of each block, 0 where it is skipped.
std::vector<size_t> levels(const std::vector<double>& shares, const std::vector<double>& thresholds,
                           size_t exact) {
  std::vector<size_t> order(shares.size()), out(shares.size(), 0);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return shares[a] > shares[b]; });
  double sum = 0;
  for (size_t rank = 0; rank < order.size(); ++rank) {
    sum += shares[order[rank]];
    for (size_t t = thresholds.size(); t-- > 0;) {
      if (sum <= thresholds[t]) out[order[rank]] = t + 1;
    }
    if (rank < exact) out[order[rank]] = 1;
  }
  return out;
}

// One row by its formula: exact keys, and means of pieces that count for all their keys.
at::Tensor row_of(const AttentionCall& call, std::array<int64_t, 3> head, int64_t i,
                  const Rows& kv_blocks, const std::vector<size_t>& level) {
  const auto [b, h, g] = head;
  at::Tensor sum = at::zeros({call.v.size(3)}, at::kDouble);
  double total = 0;
  for (size_t j = 0; j < kv_blocks.size(); ++j) {
    if (level[j] == 0) continue;
    const size_t pool = size_t{1} << (level[j] - 1);
    for (size_t at = 0; at < kv_blocks[j].size(); at += pool) {
      std::vector<int64_t> piece;
      for (size_t k = at; k < std::min(at + pool, kv_blocks[j].size()); ++k) {
        if (test::is_valid(call.kv_layout, b, kv_blocks[j][k])) piece.push_back(kv_blocks[j][k]);
      }
      if (piece.empty()) continue;
      const double logit =
          at::dot(call.q[b][h][i], test::mean_of(call.k[b][g], piece)).item<double>() /
          std::sqrt(8.0);
      const double weight = std::exp(logit) * static_cast<double>(piece.size());
      total += weight;
      sum += weight * test::mean_of(call.v[b][g], piece);
    }
  }
  return sum / total;
}

TEST(PsaPlanner, IsItsFormula) {
  at::manual_seed(1);
  const std::vector<double> thresholds = {0.3, 0.5, 0.7, 0.9};
  for (const TokenLayout& layout : test::awkward_layouts()) {
    const AttentionCall call = test::awkward_call(layout);
    const AttentionPlan plan = plan_of(
        {{"thresholds", thresholds}, {"min_exact", 0.2}, {"block_q", 16}, {"block_kv", 16}}, call);
    const Rows blocks = test::blocks_of(layout, 16);
    const auto exact = static_cast<size_t>(
        std::max(1.0, std::floor(0.2 * static_cast<double>(blocks.size()) + 0.5)));
    at::Tensor expected = at::zeros({2, 4, layout.seq_len(), 6}, at::kDouble);
    test::for_each_head(call, [&](int64_t b, int64_t h, int64_t g) {
      for (const auto& rows : blocks) {
        std::vector<size_t> level =
            levels(importance(call, {b, h, g}, rows, blocks), thresholds, exact);
        for (size_t j = 0; j < blocks.size(); ++j) {
          const bool grid = test::in_grid(layout, rows[0]) && test::in_grid(layout, blocks[j][0]);
          if (!grid) level[j] = 1;
        }
        for (const int64_t i : rows) {
          expected[b][h][i] = row_of(call, {b, h, g}, i, blocks, level);
        }
      }
    });
    EXPECT_LE(relative_error(ReferenceExecutor().run(plan, call).out, expected), 1e-10)
        << layout.describe();
  }
}

// Shares of blocks instead: of ten blocks one, one, none and three.
TEST(PsaPlanner, GivesEachLevelItsShare) {
  at::manual_seed(2);
  const AttentionCall call = test::awkward_call(TokenLayout::grid(1, 10, 16));
  const AttentionPlan plan =
      plan_of({{"shares", {0.1, 0.1, 0.0, 0.3}}, {"block_q", 32}, {"block_kv", 16}}, call);
  const at::Tensor& classes = selection_of(plan).classes;
  const std::vector<int64_t> counts = {5, 1, 1, 0, 3};
  for (size_t level = 0; level < counts.size(); ++level) {
    EXPECT_TRUE(classes.eq(static_cast<int64_t>(level)).sum(3).eq(counts[level]).all().item<bool>())
        << level;
  }
  ASSERT_EQ(selection_of(plan).summaries.size(), 3u);
  EXPECT_EQ(selection_of(plan).summaries[2].pool, 8);
}

TEST(PsaPlanner, IsDenseWhenAllIsOfLevelOne) {
  at::manual_seed(3);
  const AttentionCall call = test::awkward_call(TokenLayout::grid(3, 5, 7));
  const AttentionPlan plan = plan_of({{"thresholds", {1.0}}, {"block_kv", 16}}, call);
  const at::Tensor dense = ReferenceExecutor().run(AttentionPlan::dense("dense"), call).out;
  EXPECT_LE(relative_error(ReferenceExecutor().run(plan, call).out, dense), 1e-13);
}

// A pooled block of keys that are all the same is as good as the keys.
TEST(PsaPlanner, PooledCopiesCountLikeTheKeys) {
  at::manual_seed(4);
  AttentionCall call = test::awkward_call(TokenLayout::grid(1, 8, 16));
  for (at::Tensor* x : {&call.k, &call.v}) {
    *x = x->slice(2, 0, 128, 16).repeat_interleave(16, 2).contiguous();
  }
  const Json options = {
      {"shares", {0.0, 0.0, 0.0, 1.0}}, {"min_exact", 0.0}, {"block_q", 16}, {"block_kv", 16}};
  const AttentionPlan plan = plan_of(options, call);
  EXPECT_GT(selection_of(plan).classes.eq(5 - 1).sum().item<int64_t>(), 0);
  const at::Tensor dense = ReferenceExecutor().run(AttentionPlan::dense("dense"), call).out;
  EXPECT_LE(relative_error(ReferenceExecutor().run(plan, call).out, dense), 1e-12);
}

TEST(PsaPlanner, IgnoresPadding) {
  at::manual_seed(5);
  TokenLayout layout = TokenLayout::grid(2, 4, 8);
  layout.append(TokenLayout::text(32, at::tensor({5, 0}, at::kLong)));
  AttentionCall call = test::awkward_call(layout);
  const Json options = {{"block_q", 16}, {"block_kv", 16}};
  const at::Tensor before = selection_of(plan_of(options, call)).classes;
  for (at::Tensor* x : {&call.q, &call.k}) {
    (*x)[0].slice(1, 69).fill_(std::numeric_limits<double>::quiet_NaN());
    (*x)[1].slice(1, 64).fill_(std::numeric_limits<double>::quiet_NaN());
  }
  EXPECT_TRUE(selection_of(plan_of(options, call)).classes.equal(before));
}

TEST(PsaPlanner, RefusesThresholdsThatFall) {
  test::expect_error(ErrorCode::usage, "ascending", [] {
    make_planner("psa", {{"thresholds", {0.5, 0.4}}});
  });
  test::expect_error(ErrorCode::usage, "shares", [] { make_planner("psa", {{"shares", {2.0}}}); });
}

// The first outputs of splitmix64 from state 0, of which these are the top 31 bits.
TEST(Sampling, IsSplitMix) {
  const at::Tensor counter = at::arange(3, at::kLong);
  const at::Tensor bound = at::full({1}, int64_t{1} << 31, at::kLong);
  const at::Tensor bits = random_below(counter, 0, bound);
  const std::vector<uint64_t> known = {0xe220a8397b1dcdafull, 0x6e789e6aa1b965f4ull,
                                       0x06c45d188009454full};
  for (int64_t i = 0; i < 3; ++i) {
    EXPECT_EQ(bits[i].item<int64_t>(), static_cast<int64_t>(known[static_cast<size_t>(i)] >> 33));
  }
  EXPECT_FALSE(random_below(counter, 1, bound).equal(bits));
}

TEST(Sampling, ReachesEveryNumberBelowTheBound) {
  const at::Tensor numbers =
      random_below(at::arange(3000, at::kLong), 7, at::tensor({3}, at::kLong));
  for (int64_t i = 0; i < 3; ++i) {
    EXPECT_NEAR(numbers.eq(i).sum().item<double>(), 1000, 100);
  }
  EXPECT_EQ(numbers.max().item<int64_t>(), 2);
}

}  // namespace
}  // namespace fovea
