// Planners that choose blocks by scores: their selectors written out, one token after the other.

#include <algorithm>
#include <cmath>
#include <numeric>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "core/attention/executors/reference.h"
#include "core/attention/planner.h"
#include "tests/support/attention_cases.h"
#include "tests/support/golden.h"

namespace fovea {
namespace {

using test::relative_error;
using Rows = std::vector<std::vector<int64_t>>;
constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Shares in descending order, of equal ones the lower index first.
std::vector<size_t> descending(const std::vector<double>& shares) {
  std::vector<size_t> order(shares.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return shares[a] > shares[b]; });
  return order;
}

std::vector<double> softmax(std::vector<double> x) {
  double sum = 0;
  for (double& value : x) sum += value = std::exp(value);
  for (double& value : x) value = sum > 0 ? value / sum : 0;
  return x;
}

// k minus the mean of all its valid tokens.
at::Tensor centred(const AttentionCall& call, int64_t item, int64_t head) {
  std::vector<int64_t> all(static_cast<size_t>(call.k.size(2)));
  std::iota(all.begin(), all.end(), 0);
  const at::Tensor k = call.k[item][head];
  return k - test::mean_of(k, test::valid_rows(call.kv_layout, item, all));
}

double product(const at::Tensor& a, const at::Tensor& b) { return at::dot(a, b).item<double>(); }

void expect_planned(const AttentionCall& call, const std::string& name, const Json& options,
                    const at::Tensor& pairs) {
  const AttentionPlan plan = make_planner(name, options)->plan(call);
  validate(plan, call);
  const at::Tensor taken =
      exact_pairs(plan, std::get<SoftmaxBranch>(plan.branches[0].kind), call).expand_as(pairs);
  const at::Tensor valid = call.kv_layout.valid_mask();
  EXPECT_TRUE(taken.equal(valid.defined() ? pairs.logical_and(valid) : pairs))
      << name << " on " << call.q_layout.describe();
  EXPECT_LE(
      relative_error(ReferenceExecutor().run(plan, call).out, test::direct_attention(call, pairs)),
      1e-10)
      << name << " on " << call.q_layout.describe();
}

// The mean cosine of all pairs of tokens, each with itself included.
double mean_cosine(const at::Tensor& x, const std::vector<int64_t>& rows) {
  const at::Tensor products = at::matmul(x, x.t());
  const auto dot = products.accessor<double, 2>();
  double sum = 0;
  for (const int64_t i : rows) {
    for (const int64_t j : rows) sum += dot[i][j] / std::sqrt(dot[i][i] * dot[j][j]);
  }
  return rows.empty() ? 0 : sum / static_cast<double>(rows.size() * rows.size());
}

at::Tensor sparge_blocks(const AttentionCall& call, const Rows& q_blocks, const Rows& kv_blocks,
                         double similarity, double top_p) {
  const auto nq = static_cast<int64_t>(q_blocks.size()),
             nk = static_cast<int64_t>(kv_blocks.size());
  at::Tensor kept = at::zeros({call.q.size(0), call.q.size(1), nq, nk}, at::kBool);
  test::for_each_head(call, [&](int64_t b, int64_t h, int64_t g) {
    const at::Tensor q = call.q[b][h], k = centred(call, b, g);
    for (int64_t i = 0; i < nq; ++i) {
      const auto rows = test::valid_rows(call.q_layout, b, q_blocks[static_cast<size_t>(i)]);
      std::vector<double> scores;
      std::vector<bool> alike;
      for (const auto& block : kv_blocks) {
        const auto keys = test::valid_rows(call.kv_layout, b, block);
        alike.push_back(mean_cosine(k, keys) > similarity);
        scores.push_back(alike.back() ? product(test::mean_of(q, rows), test::mean_of(k, keys)) /
                                            std::sqrt(8.0)
                                      : -kInfinity);
      }
      const std::vector<double> shares = softmax(scores);
      double sum = 0;
      bool first = true;
      for (const size_t j : descending(shares)) {
        sum += shares[j];
        if (sum <= top_p || first) kept[b][h][i][static_cast<int64_t>(j)] = true;
        first = false;
      }
      for (int64_t j = 0; j < nk; ++j) {
        if (!alike[static_cast<size_t>(j)]) kept[b][h][i][j] = true;
      }
      if (!(mean_cosine(q, rows) > similarity)) kept[b][h][i].fill_(true);
    }
  });
  return kept;
}

TEST(SpargePlanner, IsItsFormula) {
  at::manual_seed(1);
  for (const TokenLayout& layout : test::awkward_layouts()) {
    AttentionCall call = test::awkward_call(layout);
    // Runs of tokens that are more or less alike.
    for (at::Tensor* x : {&call.q, &call.k}) {
      const at::Tensor length = at::arange(layout.seq_len()).floor_divide(16);
      const at::Tensor common = 3 * at::randn({2, x->size(1), 16, 8}, at::kDouble);
      *x = *x * 0.6 + common.index_select(2, length);
    }
    const Rows q_blocks = test::blocks_of(layout, 32), kv_blocks = test::blocks_of(layout, 16);
    const double similarity = 0.7, top_p = 0.8;
    const at::Tensor kept = sparge_blocks(call, q_blocks, kv_blocks, similarity, top_p);
    const Json options = {
        {"similarity", similarity}, {"top_p", top_p}, {"block_q", 32}, {"block_kv", 16}};
    expect_planned(call, "sparge", options, test::pairs_of_blocks(call, q_blocks, kv_blocks, kept));
    Json sink = options;
    sink["sink"] = true;
    at::Tensor with_sink = kept.clone();
    with_sink.select(3, 0).fill_(true);
    expect_planned(call, "sparge", sink,
                   test::pairs_of_blocks(call, q_blocks, kv_blocks, with_sink));
  }
}

// 0.4 + 0.3 + 0.2 + 0.1 up to 0.75: 0.4 and 0.3; Sparge's rule leaves the block out that passes.
TEST(SpargePlanner, LeavesTheCrossingBlockOut) {
  const std::vector<double> shares = {0.2, 0.4, 0.1, 0.3};
  AttentionCall call;
  call.q_layout = TokenLayout::grid(1, 1, 16);
  call.kv_layout = TokenLayout::grid(1, 1, 64);
  call.q = at::zeros({1, 1, 16, 2}, at::kDouble);
  call.q.select(3, 0).fill_(1);
  call.k = at::zeros({1, 1, 64, 2}, at::kDouble);
  for (int64_t j = 0; j < 4; ++j) {
    call.k.select(3, 0)
        .slice(2, 16 * j, 16 * j + 16)
        .fill_(std::log(shares[static_cast<size_t>(j)]));
  }
  call.v = call.k;
  call.sm_scale = 1;
  const auto classes = [&](const char* planner, Json options) {
    options.update({{"top_p", 0.75}, {"block_q", 16}, {"block_kv", 16}});
    const AttentionPlan plan = make_planner(planner, options)->plan(call);
    return std::get<SoftmaxBranch>(plan.branches[0].kind).selection.classes.flatten();
  };
  EXPECT_TRUE(classes("sparge", {{"similarity", -1}}).equal(at::tensor({0, 1, 0, 1}, at::kByte)));
  EXPECT_TRUE(classes("topk", Json::object()).equal(at::tensor({1, 1, 0, 1}, at::kByte)));
  EXPECT_TRUE(classes("xattention", Json::object()).equal(at::tensor({1, 1, 0, 1}, at::kByte)));
  // Every block is unlike: all are kept.
  EXPECT_TRUE(classes("sparge", {{"similarity", 1}}).eq(1).all().item<bool>());
}

at::Tensor xattention_blocks(const AttentionCall& call, const Rows& q_blocks, const Rows& kv_blocks,
                             int64_t stride, double top_p) {
  const auto nq = static_cast<int64_t>(q_blocks.size()),
             nk = static_cast<int64_t>(kv_blocks.size());
  at::Tensor kept = at::zeros({call.q.size(0), call.q.size(1), nq, nk}, at::kBool);
  const auto pieces = [&](const TokenLayout& layout, int64_t item,
                          const std::vector<int64_t>& rows) {
    Rows out;
    for (size_t at = 0; at < rows.size(); ++at) {
      if (at % static_cast<size_t>(stride) == 0) out.emplace_back();
      if (test::is_valid(layout, item, rows[at])) out.back().push_back(rows[at]);
    }
    std::erase_if(out, [](const auto& piece) { return piece.empty(); });
    return out;
  };
  test::for_each_head(call, [&](int64_t b, int64_t h, int64_t g) {
    const at::Tensor products = at::matmul(call.q[b][h], call.k[b][g].t());
    const auto dot = products.accessor<double, 2>();
    for (int64_t i = 0; i < nq; ++i) {
      std::vector<double> shares(kv_blocks.size(), 0);
      for (const auto& piece : pieces(call.q_layout, b, q_blocks[static_cast<size_t>(i)])) {
        std::vector<double> mass(kv_blocks.size(), 0);
        for (size_t j = 0; j < kv_blocks.size(); ++j) {
          for (const auto& keys : pieces(call.kv_layout, b, kv_blocks[j])) {
            double sum = 0;
            for (int64_t p = 0; p < stride; ++p) {
              const auto at = static_cast<size_t>(stride - 1 - p) % piece.size();
              sum += dot[piece[at]][keys[static_cast<size_t>(p) % keys.size()]];
            }
            mass[j] += std::exp(sum / (static_cast<double>(stride) * std::sqrt(8.0))) *
                       static_cast<double>(keys.size());
          }
        }
        const double total = std::accumulate(mass.begin(), mass.end(), 0.0);
        for (size_t j = 0; j < kv_blocks.size(); ++j) {
          shares[j] += mass[j] / total * static_cast<double>(piece.size());
        }
      }
      const double total = std::accumulate(shares.begin(), shares.end(), 0.0);
      double before = 0;
      bool first = true;
      for (const size_t j : descending(shares)) {
        if (first || before / std::max(total, 1e-30) < top_p) {
          kept[b][h][i][static_cast<int64_t>(j)] = true;
        }
        before += shares[j];
        first = false;
      }
    }
  });
  return kept;
}

TEST(XAttentionPlanner, IsItsFormula) {
  at::manual_seed(2);
  for (const TokenLayout& layout : test::awkward_layouts()) {
    const AttentionCall call = test::awkward_call(layout);
    const Rows q_blocks = test::blocks_of(layout, 32), kv_blocks = test::blocks_of(layout, 16);
    for (const int64_t stride : {4, 5}) {
      const at::Tensor kept = xattention_blocks(call, q_blocks, kv_blocks, stride, 0.6);
      expect_planned(call, "xattention",
                     {{"top_p", 0.6}, {"stride", stride}, {"block_q", 32}, {"block_kv", 16}},
                     test::pairs_of_blocks(call, q_blocks, kv_blocks, kept));
    }
  }
}

// A line of large products along the diagonal, which the means of blocks do not show, crosses the
// antidiagonals of its blocks only.
TEST(XAttentionPlanner, FindsASlantedLine) {
  constexpr int64_t kTokens = 64;
  AttentionCall call;
  call.q_layout = call.kv_layout = TokenLayout::grid(1, 1, kTokens);
  call.q = 20 * at::eye(kTokens, at::kDouble).view({1, 1, kTokens, kTokens});
  call.k = call.v = call.q / 5;
  call.sm_scale = 1;
  const AttentionPlan plan =
      make_planner("xattention", {{"top_p", 0.9}, {"stride", 4}, {"block_q", 16}, {"block_kv", 16}})
          ->plan(call);
  const at::Tensor classes =
      std::get<SoftmaxBranch>(plan.branches[0].kind).selection.classes.squeeze(0).squeeze(0);
  EXPECT_TRUE(classes.diagonal().eq(1).all().item<bool>());
}

// fp32 goes through kernels of its own, which choose as fp64 does; also in tiles and where tokens
// come before heads.
TEST(Selectors, ChooseInFp32AsInFp64) {
  at::manual_seed(4);
  for (const TokenLayout& layout : test::awkward_layouts()) {
    AttentionCall call = test::awkward_call(layout);
    for (at::Tensor* x : {&call.q, &call.k, &call.v}) {
      *x = x->to(at::kFloat).transpose(1, 2).contiguous().transpose(1, 2);
    }
    AttentionCall wide = call;
    for (at::Tensor* x : {&wide.q, &wide.k, &wide.v}) *x = x->to(at::kDouble);
    for (const char* name : {"topk", "sparge", "xattention", "psa"}) {
      for (const bool tiles : {false, true}) {
        // Padding inside of a tile, instead of at its end, is no case of the formula.
        if (tiles && layout.valid_mask().defined()) continue;
        Json options = {{"block_q", 16}, {"block_kv", 16}};
        if (tiles) options["tile"] = {2, 3, 4};
        if (std::string(name) != "psa") options["top_p"] = 0.5;
        if (std::string(name) == "sparge") options["similarity"] = 0.1;
        const auto classes = [&](const AttentionCall& of) {
          const AttentionPlan plan = make_planner(name, options)->plan(of);
          return std::get<SoftmaxBranch>(plan.branches[0].kind).selection.classes;
        };
        EXPECT_TRUE(classes(call).equal(classes(wide))) << name << " on " << layout.describe();
      }
    }
  }
}

// What padding holds does not matter.
TEST(Selectors, IgnorePadding) {
  at::manual_seed(3);
  TokenLayout layout = TokenLayout::grid(2, 4, 8);
  layout.append(TokenLayout::text(32, at::tensor({5, 0}, at::kLong)));
  for (const std::string name :
       {"topk", "sparge", "xattention", "psa", "topk fp32", "xattention fp32", "psa fp32"}) {
    AttentionCall call = test::awkward_call(layout);
    for (at::Tensor* x : {&call.q, &call.k, &call.v}) {
      if (name.ends_with("fp32")) *x = x->to(at::kFloat);
    }
    Json options = {{"block_q", 16}, {"block_kv", 16}};
    if (name == "sparge") options["similarity"] = 0.05;
    if (name.starts_with("topk") || name.starts_with("xattention")) options["top_p"] = 0.5;
    const auto classes = [&] {
      const AttentionPlan plan = make_planner(name.substr(0, name.find(' ')), options)->plan(call);
      return std::get<SoftmaxBranch>(plan.branches[0].kind).selection.classes;
    };
    const at::Tensor before = classes();
    EXPECT_LT(before.slice(2, 0, 4).slice(3, 0, 4).to(at::kDouble).mean().item<double>(), 1.0);
    for (at::Tensor* x : {&call.q, &call.k}) {
      (*x)[0].slice(1, 69).fill_(std::numeric_limits<double>::quiet_NaN());
      (*x)[1].slice(1, 64).fill_(kInfinity);
    }
    EXPECT_TRUE(classes().equal(before)) << name;
  }
}

// The same blocks on a GPU as on the CPU, but for scores that differ in their last bits.
TEST(Selectors, ChooseOnAGpuWhatTheyChooseOnTheCpu) {
  if (!at::hasCUDA()) GTEST_SKIP() << "missing: a GPU";
  at::manual_seed(11);
  TokenLayout with_text = TokenLayout::grid(2, 15, 20);
  with_text.append(TokenLayout::text(40));
  for (const TokenLayout& layout : {TokenLayout::grid(5, 16, 20), with_text}) {
    AttentionCall call;
    call.q_layout = call.kv_layout = layout;
    for (at::Tensor* x : {&call.q, &call.k, &call.v}) {
      // Blocks that differ: tokens have something of their place.
      const at::Tensor slow = at::randn({2, 4, 24, 64}).repeat_interleave(80, 2);
      *x = (at::randn({2, 4, layout.seq_len(), 64}) + slow.slice(2, 0, layout.seq_len()))
               .to(at::kBFloat16);
    }
    AttentionCall there = call;
    for (at::Tensor* x : {&there.q, &there.k, &there.v}) *x = x->to(at::kCUDA);
    for (const auto& [name, options] : std::vector<std::pair<std::string, Json>>{
             {"topk", {{"density", 0.3}}},
             {"topk", {{"top_p", 0.6}, {"tile", {1, 8, 8}}}},
             {"sparge", {{"density", 0.3}, {"similarity", 0.2}}},
             {"sparge", {{"top_p", 0.6}}},
             {"xattention", {{"top_p", 0.6}, {"block_q", 64}, {"block_kv", 64}}},
             {"psa", {{"block_q", 64}, {"block_kv", 64}}},
             {"sla", {{"density", 0.2}, {"projection", "identity"}}}}) {
      const auto classes = [&](const AttentionCall& it) {
        const AttentionPlan plan = make_planner(name, options)->plan(it);
        return std::get<SoftmaxBranch>(plan.branches[0].kind).selection.classes;
      };
      const at::Tensor expected = classes(call), got = classes(there);
      ASSERT_TRUE(got.is_cuda());
      ASSERT_EQ(got.sizes(), expected.sizes());
      const double same = got.cpu().eq(expected).to(at::kDouble).mean().item<double>();
      EXPECT_GE(same, 0.99) << name << " " << options.dump() << ", " << layout.describe();
    }
  }
}

}  // namespace
}  // namespace fovea
