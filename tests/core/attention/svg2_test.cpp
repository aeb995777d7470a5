// Sparse VideoGen 2: k-means, its clusters as blocks, and what is kept between steps.

#include <algorithm>
#include <cmath>
#include <numeric>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "core/attention/attention.h"
#include "core/attention/executors/reference.h"
#include "core/attention/planner.h"
#include "core/attention/planners/kmeans.h"
#include "tests/support/attention_cases.h"
#include "tests/support/golden.h"

namespace fovea {
namespace {

using test::relative_error;
using Rows = std::vector<std::vector<int64_t>>;

const Selection& selection_of(const AttentionPlan& plan) {
  return std::get<SoftmaxBranch>(plan.branches[0].kind).selection;
}

// Lloyd's algorithm on tokens [tokens, dim] of one head, one distance after the other.
//
// valid  tokens that count in the means, the first ones
std::vector<int64_t> nearest(const at::Tensor& x, at::Tensor& centroid, int64_t iterations,
                             int64_t valid) {
  std::vector<int64_t> label(static_cast<size_t>(x.size(0)));
  for (int64_t iteration = 0; iteration < iterations; ++iteration) {
    const at::Tensor distances =
        (x.unsqueeze(1) - centroid.unsqueeze(0)).square().sum(2).contiguous();
    const auto d = distances.accessor<double, 2>();
    Rows members(static_cast<size_t>(centroid.size(0)));
    for (int64_t i = 0; i < x.size(0); ++i) {
      int64_t best = 0;
      for (int64_t c = 1; c < centroid.size(0); ++c) {
        if (d[i][c] < d[i][best]) best = c;
      }
      label[static_cast<size_t>(i)] = best;
      if (i < valid) members[static_cast<size_t>(best)].push_back(i);
    }
    for (size_t c = 0; c < members.size(); ++c) {
      if (!members[c].empty()) {
        centroid[static_cast<int64_t>(c)] = test::mean_of(x, members[c]);
      }
    }
  }
  return label;
}

// Kernels of a device beside LibTorch's products on the CPU.
void expect_clusters_by_kernels(at::Device device, at::ScalarType type) {
  at::manual_seed(8);
  const at::Tensor x = at::randn({2, 3, 700, 64}).to(device, type);
  const at::Tensor valid = at::tensor({700, 433}, at::kLong).to(device);
  for (const at::Tensor& lengths : {at::Tensor(), valid}) {
    ASSERT_TRUE(ops::has_k_means(x, 21));
    const at::Tensor begin = first_centroids(x, 21, 3, lengths);
    const at::Tensor label = ops::k_means(x, begin, 1, lengths).label.cpu();
    const at::Tensor expected =
        k_means(x.cpu(), begin.cpu(), 1, lengths.defined() ? lengths.cpu() : lengths).label;
    EXPECT_GE(label.eq(expected).to(at::kDouble).mean().item<double>(), 0.999);
    const Clusters got = ops::k_means(x, begin, 5, lengths);
    at::Tensor is_in = got.label.unsqueeze(3).eq(at::arange(21, got.label.options()));
    EXPECT_TRUE(at::equal(got.count, is_in.sum(2)));
    EXPECT_TRUE(at::equal(got.order.to(at::kLong), at::argsort(got.label, true, 2, false)));
    if (lengths.defined()) {
      const at::Tensor counts = at::arange(700, lengths.options()).lt(lengths.unsqueeze(1));
      is_in = is_in.logical_and(counts.unsqueeze(1).unsqueeze(3));
    }
    EXPECT_TRUE(at::equal(got.valid, is_in.sum(2)));
    EXPECT_GT(got.valid.min().item<int64_t>(), 0);
    const at::Tensor sums = at::matmul(is_in.to(at::kDouble).transpose(2, 3), x.to(at::kDouble));
    EXPECT_LE(relative_error(got.centroid.cpu(), (sums / got.valid.unsqueeze(3)).cpu()), 1e-6);
    EXPECT_TRUE(at::equal(got.centroid, ops::k_means(x, begin, 5, lengths).centroid));
  }
}

TEST(KMeans, ByKernelsIsTheSame) {
  for (const at::ScalarType type : {at::kBFloat16, at::kHalf}) {
    expect_clusters_by_kernels(at::kCPU, type);
  }
}

TEST(KMeans, ByKernelsOnAGpuIsTheSame) {
  if (!at::hasCUDA()) GTEST_SKIP() << "missing: a GPU";
  for (const at::ScalarType type : {at::kBFloat16, at::kHalf}) {
    expect_clusters_by_kernels(at::kCUDA, type);
  }
}

TEST(KMeans, KernelsTakeWhatTheySay) {
  const at::Tensor x = at::zeros({1, 2, 40, 128}, at::kHalf);
  EXPECT_TRUE(ops::has_k_means(x, 6144));
  EXPECT_FALSE(ops::has_k_means(x, 6145));
  EXPECT_FALSE(ops::has_k_means(x.slice(3, 0, 96), 3));
  EXPECT_FALSE(ops::has_k_means(x.to(at::kFloat), 3));
  EXPECT_FALSE(ops::has_k_means(x.slice(2, 0, 0), 3));
}

TEST(KMeans, IsLloydsAlgorithm) {
  at::manual_seed(1);
  const at::Tensor x = at::randn({2, 3, 61, 5}, at::kDouble);
  const at::Tensor begin = first_centroids(x, 7, 3);
  for (const int64_t iterations : {1, 2, 10}) {
    const Clusters got = k_means(x, begin, iterations);
    for (int64_t b = 0; b < 2; ++b) {
      for (int64_t h = 0; h < 3; ++h) {
        at::Tensor centroid = begin[b][h].clone();
        const std::vector<int64_t> label = nearest(x[b][h], centroid, iterations, 61);
        EXPECT_TRUE(got.label[b][h].equal(at::tensor(label, at::kLong)));
        EXPECT_LE(relative_error(got.centroid[b][h], centroid), 1e-14);
        EXPECT_TRUE(got.count[b][h].equal(at::bincount(got.label[b][h], {}, 7)));
        EXPECT_TRUE(got.order[b][h].equal(at::argsort(got.label[b][h], true, 0, false)));
      }
    }
  }
}

TEST(KMeans, TiesGoToTheFirstAndEmptyClustersStay) {
  const at::Tensor x = at::tensor({0.0, 2.0, 4.0}).view({1, 1, 3, 1});
  const at::Tensor begin = at::tensor({1.0, 3.0, 1.0, 50.0}).view({1, 1, 4, 1});
  const Clusters got = k_means(x, begin, 1);
  EXPECT_TRUE(got.label.flatten().equal(at::tensor({0, 0, 1}, at::kLong)));
  EXPECT_TRUE(got.count.flatten().equal(at::tensor({2, 1, 0, 0}, at::kLong)));
  EXPECT_TRUE(got.centroid.flatten().equal(at::tensor({1.0, 4.0, 1.0, 50.0})));
}

TEST(KMeans, BeginsWithOneTokenOfEachRun) {
  at::manual_seed(2);
  const at::Tensor x = at::arange(100, at::kDouble).view({1, 1, 100, 1}).expand({2, 2, 100, 1});
  const at::Tensor first = first_centroids(x, 8, 5).squeeze(3);
  const at::Tensor run = (first / 12.5).floor();  // edges are rounded down
  for (int64_t c = 0; c < 8; ++c) {
    EXPECT_GE(first[0][0][c].item<int64_t>(), c * 100 / 8);
    EXPECT_LT(first[0][0][c].item<int64_t>(), (c + 1) * 100 / 8);
  }
  EXPECT_TRUE(first[0].equal(first[1]));
  EXPECT_FALSE(first[0][0].equal(first[0][1]));
  EXPECT_FALSE(first.equal(first_centroids(x, 8, 6).squeeze(3)));
  EXPECT_TRUE(first_centroids(x, 100, 0).equal(x));
}

TEST(KMeans, PaddingIsInNoMean) {
  at::manual_seed(7);
  at::Tensor x = at::randn({3, 2, 20, 4}, at::kDouble);
  const at::Tensor valid = at::tensor({20, 6, 0}, at::kLong);
  const Clusters whole = k_means(x, first_centroids(x, 5, 1), 4);
  x[1].slice(1, 6).fill_(std::numeric_limits<double>::quiet_NaN());
  x[2].fill_(1e30);
  const at::Tensor begin = first_centroids(x, 5, 1, valid);
  const Clusters got = k_means(x, begin, 4, valid);
  EXPECT_TRUE(got.centroid[0].equal(whole.centroid[0]));
  const at::Tensor alone = x.slice(0, 1, 2).slice(2, 0, 6);
  EXPECT_LE(
      relative_error(got.centroid[1], k_means(alone, first_centroids(alone, 5, 1), 4).centroid[0]),
      1e-14);
  EXPECT_TRUE(got.count.sum(2).eq(20).all().item<bool>());
  EXPECT_TRUE(got.valid.sum(2).eq(valid.unsqueeze(1)).all().item<bool>());
  // One of six tokens is drawn twice for seven clusters, and never a padded one.
  EXPECT_TRUE(first_centroids(x, 7, 1, valid)[1].isfinite().all().item<bool>());
}

struct Side {
  std::vector<int64_t> label;  // by row of the grid
  at::Tensor centroid;
  int64_t valid;  // tokens that are no padding, the first ones
};

Side cluster(const at::Tensor& tokens, const at::Tensor& begin, int64_t iterations, int64_t valid) {
  Side out{{}, begin.clone(), valid};
  at::Tensor x = tokens.clone();
  x.slice(0, valid).fill_(0);  // padding may hold anything, and counts as 0
  out.label = nearest(x, out.centroid, iterations, valid);
  return out;
}

// bool [kv clusters] for each cluster of queries: the heaviest until top_p, `least` at least.
std::vector<std::vector<bool>> kept_of(const Side& q, const Side& k, double top_p, size_t least) {
  const auto clusters = static_cast<size_t>(k.centroid.size(0));
  std::vector<std::vector<bool>> out;
  for (int64_t i = 0; i < q.centroid.size(0); ++i) {
    std::vector<double> weight(clusters, 0);
    for (int64_t at = 0; at < k.valid; ++at) {
      const int64_t j = k.label[static_cast<size_t>(at)];
      weight[static_cast<size_t>(j)] +=
          std::exp(at::dot(q.centroid[i], k.centroid[j]).item<double>() / std::sqrt(8.0));
    }
    const double total = std::accumulate(weight.begin(), weight.end(), 0.0);
    std::vector<size_t> order(clusters);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](size_t a, size_t b) { return weight[a] > weight[b]; });
    out.emplace_back(clusters, false);
    double before = 0;
    for (size_t rank = 0; rank < clusters; ++rank) {
      if (rank < least || before / total < top_p) out.back()[order[rank]] = true;
      before += weight[order[rank]];
    }
  }
  return out;
}

// The first row of the grid and the number of its tokens.
std::array<int64_t, 2> grid_of(const TokenLayout& layout) {
  int64_t first = 0;
  for (const Segment& segment : layout.segments()) {
    if (segment.kind == Segment::Kind::grid) return {first, segment.capacity};
    first += segment.capacity;
  }
  return {0, 0};
}

TEST(Svg2Planner, IsItsFormula) {
  at::manual_seed(3);
  for (const TokenLayout& layout : test::awkward_layouts()) {
    AttentionCall call = test::awkward_call(layout);
    call.context.seed = 1;
    const auto [first, tokens] = grid_of(layout);
    const int64_t nq = std::min<int64_t>(5, tokens), nk = std::min<int64_t>(9, tokens);
    const Json options = {{"top_p", 0.5},
                          {"min_kept", 0.25},
                          {"q_clusters", 5},
                          {"kv_clusters", 9},
                          {"iterations", 4}};
    const AttentionPlan plan = make_planner("svg2", options)->plan(call);
    validate(plan, call);
    const at::Tensor q = call.q.slice(2, first, first + tokens);
    const at::Tensor k = call.k.slice(2, first, first + tokens);
    // The planner's streams: seed 1, layer 0, queries or keys, grid 0.
    const at::Tensor valid = layout.segments().size() == 1 ? layout.valid_len()[0] : at::Tensor();
    const at::Tensor q_begin = first_centroids(q, nq, 1021 * 2 * 16, valid);
    const at::Tensor k_begin = first_centroids(k, nk, (1021 * 2 + 1) * 16, valid);
    at::Tensor pairs = at::ones({2, 4, layout.seq_len(), layout.seq_len()}, at::kBool);
    test::for_each_head(call, [&](int64_t b, int64_t h, int64_t g) {
      const int64_t count = valid.defined() ? valid[b].item<int64_t>() : tokens;
      const Side queries = cluster(q[b][h], q_begin[b][h], 4, count);
      const Side keys = cluster(k[b][g], k_begin[b][g], 4, count);
      const auto kept =
          kept_of(queries, keys, 0.5, static_cast<size_t>(std::max<int64_t>(1, nk / 4)));
      auto seen = pairs.accessor<bool, 4>();
      for (size_t i = 0; i < queries.label.size(); ++i) {
        for (size_t j = 0; j < keys.label.size(); ++j) {
          seen[b][h][first + static_cast<int64_t>(i)][first + static_cast<int64_t>(j)] =
              kept[static_cast<size_t>(queries.label[i])][static_cast<size_t>(keys.label[j])];
        }
      }
    });
    EXPECT_LE(relative_error(ReferenceExecutor().run(plan, call).out,
                             test::direct_attention(call, pairs)),
              1e-10)
        << layout.describe();
    EXPECT_EQ(plan.q_order.kind(), TokenOrder::Kind::index);
    EXPECT_EQ(tokens > 9, !pairs.all().item<bool>());
  }
}

TEST(Svg2Planner, IsDenseWithAllTheWeight) {
  at::manual_seed(4);
  for (const TokenLayout& layout : test::awkward_layouts()) {
    const AttentionCall call = test::awkward_call(layout);
    const AttentionPlan plan =
        make_planner("svg2", {{"top_p", 1}, {"q_clusters", 6}, {"kv_clusters", 11}})->plan(call);
    const at::Tensor dense = ReferenceExecutor().run(AttentionPlan::dense("dense"), call).out;
    EXPECT_LE(relative_error(ReferenceExecutor().run(plan, call).out, dense), 1e-13);
  }
}

// As many clusters as asked for, of a tenth of which at least are kept: with one heavy cluster two
// of twenty.
TEST(Svg2Planner, KeepsAShareOfTheClustersAtLeast) {
  at::manual_seed(5);
  AttentionCall call = test::awkward_call(TokenLayout::grid(1, 16, 20));
  call.k.slice(2, 0, 40).add_(call.q.slice(1, 0, 2).mean(2, true) * 1000);
  const auto kept = [&](double least) {
    const AttentionPlan plan =
        make_planner("svg2", {{"top_p", 0}, {"kv_clusters", 20}, {"min_kept", least}})->plan(call);
    return selection_of(plan).classes.sum(3);
  };
  EXPECT_TRUE(kept(0.1).eq(2).all().item<bool>());
  EXPECT_TRUE(kept(0).eq(1).all().item<bool>());
}

TEST(Svg2Planner, HasAClusterForSoManyTokens) {
  const AttentionCall call = test::awkward_call(TokenLayout::grid(3, 16, 20));
  const AttentionPlan plan = make_planner("svg2", {{"iterations", 1}})->plan(call);
  EXPECT_EQ(selection_of(plan).q_blocks.num_blocks(), 4);    // 960 / 256
  EXPECT_EQ(selection_of(plan).kv_blocks.num_blocks(), 13);  // 960 / 76
}

// The order of the keys as a planner with these steps before would sort them.
class Svg2State : public testing::Test {
 protected:
  AttentionCall at_step(int64_t step, uint64_t seed,
                        GuidanceBranch branch = GuidanceBranch::conditional, int64_t layer = 0) {
    at::manual_seed(seed);
    AttentionCall call = test::awkward_call(TokenLayout::grid(2, 9, 8));
    call.context.step = step;
    call.context.guidance_branch = branch;
    call.layer = layer;
    return call;
  }
  static at::Tensor order(Planner& planner, const AttentionCall& call) {
    return planner.plan(call).kv_order.rows(call.kv_layout, at::kCPU);
  }
  static std::unique_ptr<Planner> planner() {
    return make_planner("svg2", {{"kv_clusters", 12}, {"iterations", 3}, {"later_iterations", 1}});
  }
};

TEST_F(Svg2State, GoesOnFromTheLastStepsCentroids) {
  const AttentionCall first = at_step(4, 1), second = at_step(5, 2);
  const auto one = planner();
  order(*one, first);
  const at::Tensor warm = order(*one, second);
  const Clusters before = k_means(first.k, first_centroids(first.k, 12, 16), 3);
  const at::Tensor expected = k_means(second.k, before.centroid, 1).label;
  EXPECT_TRUE(warm.equal(at::argsort(expected, /*stable=*/true, 2, false)));
  EXPECT_FALSE(warm.equal(order(*planner(), second)));
}

TEST_F(Svg2State, PlansARepeatedStepAsBefore) {
  const auto one = planner();
  const AttentionCall first = at_step(4, 1), second = at_step(5, 2);
  const at::Tensor at_first = order(*one, first);
  EXPECT_TRUE(order(*one, first).equal(at_first));
  const at::Tensor at_second = order(*one, second);
  EXPECT_TRUE(order(*one, second).equal(at_second));
  // Another run begins.
  EXPECT_TRUE(order(*one, first).equal(at_first));
}

TEST_F(Svg2State, BelongsToOneLayerAndGuidanceBranch) {
  const auto one = planner(), alone = planner();
  order(*alone, at_step(0, 1));
  order(*one, at_step(0, 1));
  order(*one, at_step(0, 7, GuidanceBranch::unconditional));
  order(*one, at_step(0, 8, GuidanceBranch::conditional, 1));
  EXPECT_TRUE(order(*one, at_step(1, 2)).equal(order(*alone, at_step(1, 2))));
  // Another number of items has no centroids yet.
  AttentionCall half = at_step(2, 3);
  for (at::Tensor* x : {&half.q, &half.k, &half.v}) *x = x->slice(0, 0, 1);
  EXPECT_TRUE(order(*one, half).equal(order(*planner(), half)));
}

// Items are planned alone.
TEST_F(Svg2State, MixesNoItems) {
  const AttentionCall both = at_step(0, 1);
  AttentionCall second = both;
  for (at::Tensor* x : {&second.q, &second.k, &second.v}) *x = x->slice(0, 1);
  EXPECT_TRUE(order(*planner(), both)[1].equal(order(*planner(), second)[0]));
}

// Through the whole engine; the CPU executor takes variable blocks in orders of their own.
TEST(Attention, RunsSvg2) {
  at::manual_seed(6);
  AttentionCall call = test::awkward_call(TokenLayout::grid(3, 8, 9));
  for (at::Tensor* x : {&call.q, &call.k, &call.v}) *x = x->to(at::kFloat);
  const Json options = {{"top_p", 0.6}, {"q_clusters", 6}, {"kv_clusters", 12}};
  Attention attention("svg2", options);
  const AttentionPlan plan = make_planner("svg2", options)->plan(call);
  EXPECT_LE(relative_error(attention.run(call), ReferenceExecutor().run(plan, call).out), 1e-6);
  EXPECT_EQ(attention.counts().at("self: svg2 on cpu"), 1);
}

}  // namespace
}  // namespace fovea
