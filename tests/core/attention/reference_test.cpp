#include "core/attention/executors/reference.h"

#include <cmath>
#include <functional>
#include <limits>

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <gtest/gtest.h>

#include "core/check.h"
#include "tests/support/files.h"
#include "tests/support/golden.h"

// Plans against direct formulas in fp64, pair by pair.

namespace fovea {
namespace {

using test::expect_error;
using test::relative_error;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

struct Sizes {
  int64_t batch = 2, heads = 4, kv_heads = 2, dim = 8, value_dim = 6;
};

AttentionCall make_call(const TokenLayout& layout, const Sizes& sizes = {}) {
  const int64_t length = layout.seq_len();
  AttentionCall call;
  call.q_layout = call.kv_layout = layout;
  call.q = at::randn({sizes.batch, sizes.heads, length, sizes.dim}, at::kDouble);
  call.k = at::randn({sizes.batch, sizes.kv_heads, length, sizes.dim}, at::kDouble);
  call.v = at::randn({sizes.batch, sizes.kv_heads, length, sizes.value_dim}, at::kDouble);
  return call;
}

AttentionResult run(const AttentionPlan& plan, const AttentionCall& call) {
  validate(plan, call);
  return ReferenceExecutor().run(plan, call);
}

// A key of one row: which, with what logit added, and in whose place (pooled).
struct Key {
  at::Tensor k, v;
  double bias = 0;
};

using Keys = std::function<std::vector<Key>(int64_t b, int64_t h, int64_t i)>;

// softmax over the keys that `keys` names for each row.
AttentionResult direct(const AttentionCall& call, const Keys& keys) {
  AttentionResult out;
  out.out =
      at::zeros({call.q.size(0), call.q.size(1), call.q.size(2), call.v.size(3)}, call.q.options());
  out.lse =
      at::full({call.q.size(0), call.q.size(1), call.q.size(2)}, -kInfinity, call.q.options());
  const double scale = 1 / std::sqrt(static_cast<double>(call.q.size(3)));
  for (int64_t b = 0; b < call.q.size(0); ++b) {
    for (int64_t h = 0; h < call.q.size(1); ++h) {
      for (int64_t i = 0; i < call.q.size(2); ++i) {
        double sum = 0;
        at::Tensor value = at::zeros({call.v.size(3)}, call.v.options());
        for (const Key& key : keys(b, h, i)) {
          const double weight =
              std::exp(at::dot(call.q[b][h][i], key.k).item<double>() * scale + key.bias);
          sum += weight;
          value += weight * key.v;
        }
        if (sum == 0) continue;
        out.out[b][h][i] = value / sum;
        out.lse[b][h][i] = std::log(sum);
      }
    }
  }
  return out;
}

void expect_equal(const AttentionResult& got, const AttentionResult& expected) {
  EXPECT_LE(relative_error(got.out, expected.out), 1e-13);
  EXPECT_TRUE(at::allclose(got.lse, expected.lse, 1e-12, 1e-12));
}

Key own_key(const AttentionCall& call, int64_t b, int64_t h, int64_t j) {
  const int64_t kv = h / (call.q.size(1) / call.k.size(1));
  return {call.k[b][kv][j], call.v[b][kv][j]};
}

// A plan with random classes over variable blocks, in different orders of queries and keys.
struct Mixed {
  TokenLayout layout = TokenLayout::extra(13);
  AttentionCall call = make_call(layout);
  at::Tensor q_rows =
      at::stack({at::randperm(13), at::randperm(13), at::randperm(13), at::randperm(13)})
          .unsqueeze(0);
  at::Tensor kv_rows = at::stack({at::randperm(13), at::randperm(13)}).unsqueeze(0);
  std::vector<int64_t> q_offsets = {0, 4, 4, 9, 13}, kv_offsets = {0, 1, 6, 13};
  AttentionPlan plan = AttentionPlan::dense("mixed");
  SoftmaxBranch& branch = std::get<SoftmaxBranch>(plan.branches[0].kind);

  explicit Mixed(int64_t classes) {
    plan.q_order = TokenOrder::index(q_rows);
    plan.kv_order = TokenOrder::index(kv_rows);
    const auto axis = [](const std::vector<int64_t>& offsets) {
      return BlockAxis::from_offsets(at::tensor(offsets, at::kLong).view({1, 1, -1}), 7);
    };
    branch.selection.q_blocks = axis(q_offsets);
    branch.selection.kv_blocks = axis(kv_offsets);
    branch.selection.classes = at::randint(classes, {2, 4, 4, 3}).to(at::kByte);
  }

  static int64_t position(const at::Tensor& rows, int64_t row) {
    return rows.eq(row).nonzero().item<int64_t>();
  }
  static size_t block(const std::vector<int64_t>& offsets, int64_t position) {
    size_t at = 0;
    for (size_t i = 0; i + 1 < offsets.size(); ++i) {
      if (offsets[i] <= position && position < offsets[i + 1]) at = i;
    }
    return at;
  }
  int64_t class_of(int64_t b, int64_t h, int64_t i, size_t kv_block) const {
    const auto q_block = static_cast<int64_t>(block(q_offsets, position(q_rows[0][h], i)));
    return branch.selection.classes[b][h][q_block][static_cast<int64_t>(kv_block)].item<int64_t>();
  }
  size_t kv_block(int64_t h, int64_t j) const {
    return block(kv_offsets, position(kv_rows[0][h / 2], j));
  }
};

TEST(Reference, TakesTheBlocksThatAPlanKeepsInItsOrders) {
  at::manual_seed(1);
  const Mixed mixed(2);
  expect_equal(run(mixed.plan, mixed.call),
               direct(mixed.call, [&](int64_t b, int64_t h, int64_t i) {
                 std::vector<Key> keys;
                 for (int64_t j = 0; j < 13; ++j) {
                   if (mixed.class_of(b, h, i, mixed.kv_block(h, j)) == block_class::exact) {
                     keys.push_back(own_key(mixed.call, b, h, j));
                   }
                 }
                 return keys;
               }));
}

TEST(Reference, SummariesAreMeansOfPiecesWithTheirCount) {
  at::manual_seed(2);
  Mixed mixed(4);
  mixed.branch.selection.summaries = {{.pool = 2}, {.pool = 0, .log_count = false}};
  expect_equal(run(mixed.plan, mixed.call),
               direct(mixed.call, [&](int64_t b, int64_t h, int64_t i) {
                 std::vector<Key> keys;
                 for (size_t block = 0; block < 3; ++block) {
                   const int64_t what = mixed.class_of(b, h, i, block);
                   const int64_t begin = mixed.kv_offsets[block], end = mixed.kv_offsets[block + 1];
                   const int64_t size = what == 1 ? 1 : what == 2 ? 2 : end - begin;
                   for (int64_t p = begin; what != 0 && p < end; p += size) {
                     const int64_t count = std::min(size, end - p);
                     Key mean{at::zeros({8}, at::kDouble), at::zeros({6}, at::kDouble)};
                     for (int64_t at = p; at < p + count; ++at) {
                       const auto row = mixed.kv_rows[0][h / 2][at].item<int64_t>();
                       const Key key = own_key(mixed.call, b, h, row);
                       mean.k += key.k / count;
                       mean.v += key.v / count;
                     }
                     if (what == 2) mean.bias = std::log(static_cast<double>(count));
                     keys.push_back(mean);
                   }
                 }
                 return keys;
               }));
}

TEST(Reference, OrdersDoNotChangeADensePlan) {
  at::manual_seed(3);
  const AttentionCall call = make_call(TokenLayout::grid(2, 3, 4));
  const AttentionResult plain = run(AttentionPlan::dense("plain"), call);
  AttentionPlan plan = AttentionPlan::dense("tiles");
  plan.q_order = TokenOrder::tiles({1, 2, 2});
  plan.kv_order = TokenOrder::axes({{2, 1, 0}, {1, 0, 2}});
  expect_equal(run(plan, call), plain);
}

TEST(Reference, RowsWithoutAKeyAreZeroAndHaveNoGradient) {
  at::manual_seed(4);
  AttentionCall call = make_call(TokenLayout::extra(6));
  AttentionPlan plan = AttentionPlan::dense("empty");
  Selection& selection = std::get<SoftmaxBranch>(plan.branches[0].kind).selection;
  selection.q_blocks = selection.kv_blocks = BlockAxis::uniform(call.q_layout, 3);
  selection.classes = at::tensor({0, 0, 1, 0}, at::kByte).view({1, 1, 2, 2});
  call.q.requires_grad_();
  const AttentionResult result = run(plan, call);
  EXPECT_EQ(result.out.slice(2, 0, 3).abs().max().item<double>(), 0.0);
  EXPECT_TRUE(result.lse.slice(2, 0, 3).eq(-kInfinity).all().item<bool>());
  (result.out.sum() + result.lse.slice(2, 3).sum()).backward();
  EXPECT_EQ(call.q.grad().slice(2, 0, 3).abs().max().item<double>(), 0.0);
  EXPECT_TRUE(call.q.grad().isfinite().all().item<bool>());
  EXPECT_GT(call.q.grad().slice(2, 3).abs().min().item<double>(), 0.0);
}

TEST(Reference, PaddingIsNeverSeenNorPooled) {
  at::manual_seed(5);
  TokenLayout layout = TokenLayout::grid(1, 2, 3);
  layout.append(TokenLayout::text(4, at::tensor({1, 3}, at::kLong)));
  AttentionCall call = make_call(layout);
  AttentionPlan plan = AttentionPlan::dense("padding");
  Selection& selection = std::get<SoftmaxBranch>(plan.branches[0].kind).selection;
  selection.q_blocks = selection.kv_blocks = BlockAxis::uniform(layout, 6);
  selection.classes = at::tensor({1, 2, 1, 1}, at::kByte).view({1, 1, 2, 2});
  selection.summaries = {{.pool = 0}};
  const AttentionResult before = run(plan, call);
  call.k[0].slice(1, 7).fill_(1e30);
  call.v[0].slice(1, 7).fill_(1e30);
  call.k[1].slice(1, 9).fill_(-1e30);
  expect_equal(run(plan, call), before);
}

TEST(Reference, BranchesOfAGroupAreOneSoftmax) {
  at::manual_seed(6);
  const AttentionCall call = make_call(TokenLayout::extra(9));
  AttentionPlan plan = AttentionPlan::dense("halves");
  const at::Tensor classes = at::randint(2, {2, 4, 3, 3}).to(at::kByte);
  plan.branches.push_back({SoftmaxBranch{}});
  for (int i = 0; i < 2; ++i) {
    Selection& selection = std::get<SoftmaxBranch>(plan.branches[i].kind).selection;
    selection.q_blocks = selection.kv_blocks = BlockAxis::uniform(call.q_layout, 3);
    selection.classes = i == 0 ? classes : 1 - classes;
  }
  expect_equal(run(plan, call), run(AttentionPlan::dense("whole"), call));
}

TEST(Reference, GivenKeysTakeTheCallsPlace) {
  at::manual_seed(7);
  const AttentionCall call = make_call(TokenLayout::extra(5));
  AttentionPlan plan = AttentionPlan::dense("given");
  GivenKeys keys{at::randn({2, 4, 3, 8}, at::kDouble), at::randn({2, 4, 3, 6}, at::kDouble),
                 at::randn({1, 4, 3}, at::kDouble)};
  std::get<SoftmaxBranch>(plan.branches[0].kind).keys = keys;
  expect_equal(
      run(plan, call), direct(call, [&](int64_t b, int64_t h, int64_t) {
        std::vector<Key> out;
        for (int64_t j = 0; j < 3; ++j) {
          out.push_back({keys.k[b][h][j], keys.v[b][h][j], keys.bias[0][h][j].item<double>()});
        }
        return out;
      }));
}

// Softmax over the kept blocks plus a projected linear attention over the others.
TEST(Reference, LinearBranchTakesWhatTheSoftmaxSkips) {
  at::manual_seed(8);
  const AttentionCall call = make_call(TokenLayout::extra(8));
  AttentionPlan plan = AttentionPlan::dense("sla");
  plan.branches.reserve(2);  // the reference below stays good
  Selection& selection = std::get<SoftmaxBranch>(plan.branches[0].kind).selection;
  selection.q_blocks = selection.kv_blocks = BlockAxis::uniform(call.q_layout, 2);
  selection.classes = at::eye(4).to(at::kByte).view({1, 1, 4, 4});
  const at::Tensor weight = at::randn({6, 6}, at::kDouble), bias = at::randn({6}, at::kDouble);
  const AttentionResult exact = run(plan, call);
  for (const FeatureMap map : {FeatureMap::softmax, FeatureMap::elu_plus_one, FeatureMap::relu}) {
    plan.branches.resize(1);
    plan.branches.push_back({LinearBranch{.feature_map = map,
                                          .complement_of = 0,
                                          .epsilon = 1e-5,
                                          .proj_weight = weight,
                                          .proj_bias = bias},
                             1});
    const auto phi = [&](const at::Tensor& x) {
      if (map == FeatureMap::softmax) return at::softmax(x, 0);
      return map == FeatureMap::relu ? at::relu(x) : at::where(x > 0, x + 1, x.exp());
    };
    at::Tensor expected = exact.out.clone();
    for (int64_t b = 0; b < 2; ++b) {
      for (int64_t h = 0; h < 4; ++h) {
        for (int64_t i = 0; i < 8; ++i) {
          at::Tensor sum = at::zeros({6}, at::kDouble);
          double total = 0;
          for (int64_t j = 0; j < 8; ++j) {
            if (i / 2 == j / 2) continue;
            const Key key = own_key(call, b, h, j);
            const double share = at::dot(phi(call.q[b][h][i]), phi(key.k)).item<double>();
            sum += share * key.v;
            total += share;
          }
          const at::Tensor mean = total > 0 ? sum / (total + 1e-5) : sum;
          expected[b][h][i] += at::mv(weight, mean) + bias;
        }
      }
    }
    EXPECT_LE(relative_error(run(plan, call).out, expected), 1e-13);
  }
  selection.classes = at::ones({1, 1, 4, 4}, at::kByte);
  auto& linear = std::get<LinearBranch>(plan.branches[1].kind);
  linear.proj_bias = at::Tensor();
  EXPECT_TRUE(run(plan, call).out.equal(run(AttentionPlan::dense("all"), call).out));
}

TEST(Reference, PooledValuesReuseAndWeights) {
  at::manual_seed(9);
  const AttentionCall call = make_call(TokenLayout::extra(5));
  AttentionPlan plan = AttentionPlan::dense("sum");
  const BlockAxis blocks = BlockAxis::uniform(call.q_layout, 3);
  const at::Tensor weights = at::randn({1, 4, 2, 2}, at::kDouble);
  const at::Tensor before = at::randn({2, 4, 5, 6}, at::kDouble);
  const at::Tensor row_weight = at::randn({2, 4, 5, 1}, at::kDouble);
  const at::Tensor dense = run(plan, call).out;
  plan.branches.push_back({PooledValuesBranch{blocks, blocks, weights}, 1});
  plan.branches.push_back({ReuseBranch{before, {}}, 2});
  plan.group_weights = {row_weight, {}, at::full({1}, 0.5, at::kDouble)};
  const at::Tensor v = call.v.repeat_interleave(2, 1);
  const at::Tensor means = at::stack({v.slice(2, 0, 3).mean(2), v.slice(2, 3, 5).mean(2)}, 2);
  const at::Tensor pooled =
      at::matmul(weights, means).repeat_interleave(at::tensor({3, 2}, at::kLong), 2);
  EXPECT_LE(relative_error(run(plan, call).out, dense * row_weight + pooled + 0.5 * before), 1e-13);
}

TEST(Reference, IsDifferentiable) {
  at::manual_seed(10);
  Mixed mixed(3);
  mixed.branch.selection.summaries = {{.pool = 2}};
  std::vector<at::Tensor> inputs = {mixed.call.q, mixed.call.k, mixed.call.v};
  const at::Tensor out_weight = at::randn({2, 4, 13, 6}, at::kDouble);
  const at::Tensor lse_weight = at::randn({2, 4, 13}, at::kDouble);
  const auto loss = [&] {
    const AttentionResult result = run(mixed.plan, mixed.call);
    const at::Tensor lse = result.lse.masked_fill(result.lse.eq(-kInfinity), 0);
    return (result.out * out_weight).sum() + (lse * lse_weight).sum();
  };
  for (at::Tensor& x : inputs) x.requires_grad_();
  loss().backward();
  for (at::Tensor& x : inputs) {
    const at::Tensor direction = at::randn_like(x);
    const double slope = (x.grad() * direction).sum().item<double>();
    const c10::NoGradGuard no_grad;
    const at::Tensor kept = x.clone();
    constexpr double kStep = 1e-6;
    x.copy_(kept + kStep * direction);
    const double above = loss().item<double>();
    x.copy_(kept - kStep * direction);
    const double below = loss().item<double>();
    x.copy_(kept);
    EXPECT_NEAR((above - below) / (2 * kStep) / slope, 1.0, 1e-6);
  }
}

TEST(Plan, DensityCountsWhatIsComputed) {
  Selection selection;
  selection.q_blocks = BlockAxis::uniform(TokenLayout::extra(10), 6);
  selection.kv_blocks = BlockAxis::uniform(TokenLayout::extra(10), 5);
  selection.classes = at::tensor({1, 2, 0, 1}, at::kByte).view({1, 1, 2, 2});
  selection.summaries = {{.pool = 2}};
  // 6 rows with 5 keys and 3 pooled ones, 4 rows with 5 keys.
  EXPECT_NEAR(block_density(selection, at::kCPU).item<double>(), (6 * 8 + 4 * 5) / 100.0, 1e-7);
  EXPECT_EQ(block_density({}, at::kCPU).item<double>(), 1.0);
}

TEST(Plan, SaysWhatItIs) {
  Mixed mixed(2);
  EXPECT_FALSE(mixed.plan.is_dense());
  EXPECT_EQ(mixed.plan.describe(),
            "mixed: q index, kv index; softmax, 4 blocks up to 7 by 3 blocks up to 7");
  EXPECT_TRUE(AttentionPlan::dense("dense").is_dense());
}

TEST(Plan, RefusesWhatTheHostSeesIsWrong) {
  const AttentionCall call = make_call(TokenLayout::extra(6));
  const auto refuse = [&](const char* words, const std::function<void(AttentionPlan&)>& spoil) {
    AttentionPlan plan = AttentionPlan::dense("wrong");
    Selection& selection = std::get<SoftmaxBranch>(plan.branches[0].kind).selection;
    selection.q_blocks = selection.kv_blocks = BlockAxis::uniform(call.q_layout, 3);
    selection.classes = at::ones({1, 1, 2, 2}, at::kByte);
    validate(plan, call);
    spoil(plan);
    expect_error(ErrorCode::usage, words, [&] { validate(plan, call); });
  };
  const auto selection = [](AttentionPlan& plan) -> Selection& {
    return std::get<SoftmaxBranch>(plan.branches[0].kind).selection;
  };
  refuse("0 branches", [](AttentionPlan& plan) { plan.branches.clear(); });
  refuse("5 branches", [](AttentionPlan& plan) { plan.branches.resize(5, plan.branches[0]); });
  refuse("class map", [&](AttentionPlan& plan) {
    selection(plan).classes = at::ones({1, 3, 2, 2}, at::kByte);
  });
  refuse("class map", [&](AttentionPlan& plan) {
    selection(plan).classes = at::ones({1, 1, 2, 3}, at::kByte);
  });
  refuse("class map", [&](AttentionPlan& plan) {
    selection(plan).classes = at::ones({1, 1, 2, 2}, at::kInt);
  });
  refuse("query blocks", [&](AttentionPlan& plan) {
    selection(plan).q_blocks = BlockAxis::uniform(TokenLayout::extra(5), 3);
  });
  refuse("-1 keys", [&](AttentionPlan& plan) { selection(plan).summaries = {{.pool = -1}}; });
  refuse("without a class map", [&](AttentionPlan& plan) {
    selection(plan) = {};
    selection(plan).summaries = {{}};
  });
  refuse("group 0 is empty", [](AttentionPlan& plan) {
    plan.branches[0].group = 0;
    plan.branches.push_back({SoftmaxBranch{}, 1});
    plan.branches[0].group = 1;
  });
  refuse("no log-sum-exp", [](AttentionPlan& plan) { plan.branches.push_back({LinearBranch{}}); });
  refuse("weights of", [](AttentionPlan& plan) { plan.group_weights.resize(2); });
  refuse("no softmax", [](AttentionPlan& plan) {
    plan.branches.push_back({LinearBranch{.complement_of = 1}, 1});
  });
  refuse("given keys", [&](AttentionPlan& plan) {
    std::get<SoftmaxBranch>(plan.branches[0].kind).keys =
        GivenKeys{at::zeros({2, 2, 3, 7}), at::zeros({2, 2, 3, 6}), {}};
  });
  refuse("earlier output", [](AttentionPlan& plan) {
    plan.branches.push_back({ReuseBranch{at::zeros({1}), {}}, 1});
  });
}

}  // namespace
}  // namespace fovea
