#include <cmath>
#include <functional>
#include <limits>
#include <map>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "core/attention/attention.h"
#include "core/attention/executors/reference.h"
#include "core/attention/plan_store.h"
#include "core/attention/planner.h"
#include "core/attention/planners/blocks.h"
#include "core/attention/select.h"
#include "core/check.h"
#include "tests/support/files.h"
#include "tests/support/golden.h"

namespace fovea {
namespace {

using test::expect_error;
using test::relative_error;

AttentionCall make_call(const TokenLayout& layout, int64_t heads = 2, int64_t dim = 8) {
  AttentionCall call;
  call.q_layout = call.kv_layout = layout;
  const int64_t length = layout.seq_len();
  call.q = at::randn({1, heads, length, dim}, at::kDouble);
  call.k = at::randn({1, heads, length, dim}, at::kDouble);
  call.v = at::randn({1, heads, length, dim}, at::kDouble);
  return call;
}

AttentionPlan plan_of(const std::string& planner, const Json& options, const AttentionCall& call) {
  AttentionPlan plan = make_planner(planner, options)->plan(call);
  validate(plan, call);
  return plan;
}

const Selection& selection_of(const AttentionPlan& plan) {
  return std::get<SoftmaxBranch>(plan.branches[0].kind).selection;
}

// Layouts only: planners that go by geometry look at nothing else.
AttentionCall empty_call(const TokenLayout& layout) {
  AttentionCall call;
  call.q_layout = call.kv_layout = layout;
  call.q = call.k = call.v = at::zeros({1, 1, 1, 1}).expand({1, 1, layout.seq_len(), 1});
  return call;
}

double density_of(const std::string& planner, const Json& options, const TokenLayout& layout) {
  const AttentionCall call = empty_call(layout);
  return block_density(selection_of(plan_of(planner, options, call)), at::kCPU).item<double>();
}

// Densities of the released masks at 3,840 tokens a frame.
TEST(RadialPlanner, HasTheDensitiesOfThePaper) {
  const auto density = [](int64_t frames, double decay, int64_t sink) {
    return density_of("radial", {{"decay", decay}, {"sink_frames", sink}},
                      TokenLayout::grid(frames, 48, 80));
  };
  EXPECT_NEAR(density(18, 0.2, 1), 0.2871, 5e-5);
  EXPECT_NEAR(density(18, 0.5, 1), 0.3389, 5e-5);
  EXPECT_NEAR(density(18, 1.0, 1), 0.4309, 5e-5);
  EXPECT_NEAR(density(41, 0.2, 1), 0.1816, 5e-5);
  EXPECT_NEAR(density(20, 0.8, 1), 0.3525, 5e-5);
  EXPECT_NEAR(density(30, 0.95, 0), 0.2746, 5e-5);
  EXPECT_NEAR(density(128, 0.95, 0), 0.1100, 5e-5);
}

TEST(RadialPlanner, KeepsOneFrameDense) {
  for (const TokenLayout& layout : {TokenLayout::grid(1, 7, 13), TokenLayout::grid(2, 9, 5)}) {
    EXPECT_EQ(density_of("radial", Json::object(), layout), 1.0) << layout.describe();
  }
}

// Frames that are no multiple of a block: no block of queries is left without its own frame.
TEST(RadialPlanner, TakesFramesOfAnyLength) {
  TokenLayout layout = TokenLayout::grid(9, 11, 17);
  layout.append(TokenLayout::text(40));
  const AttentionPlan plan = plan_of("radial", {{"block", 32}}, empty_call(layout));
  const Selection& selection = selection_of(plan);
  const at::Tensor pairs =
      exact_pairs(plan, std::get<SoftmaxBranch>(plan.branches[0].kind), empty_call(layout))
          .squeeze(0)
          .squeeze(0);
  for (int64_t i = 0; i < 9; ++i) {
    for (int64_t j = std::max<int64_t>(i - 1, 0); j <= std::min<int64_t>(i + 1, 8); ++j) {
      EXPECT_TRUE(pairs.slice(0, 187 * i, 187 * i + 187)
                      .slice(1, 187 * j, 187 * j + 187)
                      .all()
                      .item<bool>())
          << i << " " << j;
    }
  }
  EXPECT_TRUE(pairs.slice(0, 1683).all().item<bool>());
  EXPECT_TRUE(pairs.slice(1, 1683).all().item<bool>());
  EXPECT_LT(block_density(selection, at::kCPU).item<double>(), 0.9);
}

// Every tile of queries sees window[0] · window[1] · window[2] tiles: densities of the paper's
// canvas, 30 x 48 x 80 tokens in tiles of 6 x 8 x 8.
TEST(WindowPlanner, HasTheDensitiesOfThePaper) {
  const auto density = [](std::vector<int64_t> window) {
    return density_of("window", {{"tile", {6, 8, 8}}, {"window", window}},
                      TokenLayout::grid(30, 48, 80));
  };
  EXPECT_NEAR(density({5, 3, 3}), 0.15, 1e-6);
  EXPECT_NEAR(density({1, 6, 10}), 0.20, 1e-6);
  EXPECT_NEAR(density({3, 3, 5}), 0.15, 1e-6);
  EXPECT_NEAR(density({5, 1, 10}), 1.0 / 6, 1e-6);
  EXPECT_NEAR(density({5, 6, 1}), 0.10, 1e-6);
}

TEST(WindowPlanner, SeesTheTilesAroundEachToken) {
  TokenLayout layout = TokenLayout::text(3);
  layout.append(TokenLayout::grid(3, 5, 6));
  const AttentionCall call = empty_call(layout);
  const AttentionPlan plan = plan_of("window", {{"tile", {1, 2, 2}}, {"window", {1, 2, 3}}}, call);
  const at::Tensor pairs =
      exact_pairs(plan, std::get<SoftmaxBranch>(plan.branches[0].kind), call).squeeze(0).squeeze(0);
  // Tiles along the height: 0, 1, 2 of 3; a window of two begins one before, inside the grid.
  const auto rows_seen = [](int64_t tile) { return std::max<int64_t>(tile - 1, 0); };
  for (int64_t i = 0; i < 93; ++i) {
    for (int64_t j = 0; j < 93; ++j) {
      bool expected = i < 3 || j < 3;
      if (!expected) {
        const int64_t a = i - 3, b = j - 3;
        const int64_t ty = a / 6 % 5 / 2, oy = b / 6 % 5 / 2;
        expected = a / 30 == b / 30 && oy >= rows_seen(ty) && oy < rows_seen(ty) + 2;
      }
      ASSERT_EQ(pairs[i][j].item<bool>(), expected) << i << " " << j;
    }
  }
}

TEST(TopKPlanner, KeepsTheBlocksWithTheHighestMeans) {
  at::manual_seed(1);
  AttentionCall call = make_call(TokenLayout::grid(1, 8, 16));
  const AttentionPlan plan =
      plan_of("topk", {{"density", 0.3}, {"block_q", 32}, {"block_kv", 16}}, call);
  const at::Tensor& classes = selection_of(plan).classes;
  // max(1, floor(0.3 · 8 + 1/2)) = 2
  EXPECT_TRUE(classes.sum(3).eq(2).all().item<bool>());
  const at::Tensor keys = call.k - call.k.mean(2, /*keepdim=*/true);
  const at::Tensor scores = at::matmul(call.q.view({1, 2, 4, 32, 8}).mean(3),
                                       keys.view({1, 2, 8, 16, 8}).mean(3).transpose(2, 3));
  const at::Tensor best = std::get<1>(scores.topk(2, 3));
  EXPECT_TRUE(classes.to(at::kLong).gather(3, best).eq(1).all().item<bool>());
}

// What kernels make of means in two launches is what tensor operations give.
TEST(MeanScores, OfKernelsAreThoseOfTensors) {
  at::manual_seed(4);
  TokenLayout with_text = TokenLayout::grid(2, 9, 12);
  with_text.append(TokenLayout::text(21));
  for (const BlockSizes& sizes : {BlockSizes{.q = 32, .kv = 20, .tile = {}},
                                  BlockSizes{.tile = std::array<int64_t, 3>{1, 4, 8}}}) {
    for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
      AttentionCall call = make_call(with_text, 4, 16);
      call.q = call.q.to(type), call.k = (call.k.slice(1, 0, 2) + 3).to(type);
      AttentionPlan plan = AttentionPlan::dense("test");
      const Selection& selection = sizes.cut(plan, call);
      const auto side = [&](const at::Tensor& x, const BlockAxis& axis, const TokenOrder& order) {
        return shared_blocks(x, axis, order, with_text);
      };
      const ops::SharedBlocks keys = side(call.k, selection.kv_blocks, plan.kv_order);
      const std::vector<at::Tensor> means =
          ops::block_means({side(call.q, selection.q_blocks, plan.q_order), keys});
      const auto expected = pool_blocks(call.k, selection.kv_blocks, plan.kv_order, with_text);
      EXPECT_LE(relative_error(means[1], expected.mean), 1e-6);
      const ops::MeansOfBlocks both{means[0], means[1], keys.offsets};
      const double scale = sm_scale_of(call);
      const at::Tensor scores = *ops::mean_scores(both, scale);
      EXPECT_LE(relative_error(scores, mean_scores(call, plan, selection)), 1e-5);
      const at::Tensor kept = *ops::highest_mean_scores(both, scale, 3);
      EXPECT_TRUE(kept.equal(keep_top_k(scores, 3)));
      EXPECT_TRUE(kept.equal(
          keep_highest_means(call, plan, selection, 3.0 / static_cast<double>(scores.size(3)))));
    }
  }
}

TEST(TopKPlanner, IgnoresPaddingAndKeepsText) {
  at::manual_seed(2);
  TokenLayout layout = TokenLayout::grid(2, 4, 8);
  layout.append(TokenLayout::text(32, at::tensor({5}, at::kLong)));
  AttentionCall call = make_call(layout);
  const Json options = {{"density", 0.3}, {"block_q", 16}, {"block_kv", 16}};
  const AttentionPlan before = plan_of("topk", options, call);
  for (at::Tensor& x : {std::ref(call.q), std::ref(call.k)}) {
    x.slice(2, 69).fill_(std::numeric_limits<double>::quiet_NaN());
  }
  const AttentionPlan after = plan_of("topk", options, call);
  EXPECT_TRUE(selection_of(after).classes.equal(selection_of(before).classes));
  EXPECT_TRUE(selection_of(after).classes.slice(3, 4).eq(1).all().item<bool>());
  EXPECT_TRUE(selection_of(after).classes.slice(2, 4).eq(1).all().item<bool>());
}

TEST(TopKPlanner, TopPTakesTheFewestBlocks) {
  at::manual_seed(3);
  const AttentionCall call = make_call(TokenLayout::grid(1, 8, 16));
  const auto kept = [&](double p) {
    return block_density(selection_of(plan_of("topk", {{"top_p", p}, {"block_kv", 16}}, call)),
                         at::kCPU)
        .mean()
        .item<double>();
  };
  EXPECT_LT(kept(0.1), kept(0.5));
  EXPECT_LT(kept(0.5), kept(0.9));
  EXPECT_EQ(kept(1.0), 1.0);
}

TEST(Select, TiesGoToTheLowerIndex) {
  const at::Tensor scores = at::tensor({1.0, 3.0, 1.0, 3.0, 1.0}).view({1, 5});
  EXPECT_TRUE(keep_top_k(scores, 1).equal(at::tensor({0, 1, 0, 0, 0}).to(at::kBool).view({1, 5})));
  EXPECT_TRUE(keep_top_k(scores, 3).equal(at::tensor({1, 1, 0, 1, 0}).to(at::kBool).view({1, 5})));
}

// 0.5 + 0.25 + 0.125 + 0.125 with p between two sums: the rules differ by one block.
TEST(Select, TheCrossingBlockIsKeptOrNot) {
  const at::Tensor shares = at::tensor({0.125, 0.5, 0.125, 0.25}).view({1, 4});
  const auto count = [&](double p, Crossing crossing, int64_t least) {
    return keep_top_p(shares, p, crossing, least).sum().item<int64_t>();
  };
  EXPECT_EQ(count(0.8, Crossing::kept, 0), 3);
  EXPECT_EQ(count(0.8, Crossing::excluded, 0), 2);
  EXPECT_EQ(count(0.1, Crossing::excluded, 0), 0);
  EXPECT_EQ(count(0.1, Crossing::excluded, 1), 1);
  EXPECT_EQ(count(0.75, Crossing::kept, 0), 2);
}

TEST(Select, CountsAreRounded) {
  EXPECT_EQ(kept_blocks(0.25, 8), 2);
  EXPECT_EQ(kept_blocks(0.01, 8), 1);
  EXPECT_EQ(kept_blocks(0.5, 5), 3);
  EXPECT_EQ(kept_blocks(1.0, 5), 5);
}

TEST(NeighborhoodPlanner, TakesShortAxesWhole) {
  const AttentionCall call = make_call(TokenLayout::grid(2, 9, 9));
  const AttentionPlan plan = plan_of("neighborhood", {{"window", {3, 5, 5}}}, call);
  const at::Tensor pairs = exact_pairs(plan, std::get<SoftmaxBranch>(plan.branches[0].kind), call);
  EXPECT_TRUE(pairs.sum(3).eq(2 * 5 * 5).all().item<bool>());
}

// What every planner on the list promises.
class EveryPlanner : public testing::TestWithParam<std::string> {
 protected:
  static Json options(bool everything) {
    const std::string name = GetParam();
    if (name == "topk" || name == "sla")
      return {{"density", everything ? 1.0 : 0.4}, {"block_q", 16}, {"block_kv", 16}};
    if (name == "psa") {
      return {{"thresholds", everything ? Json{1.0} : Json{0.3, 0.5, 0.7, 0.9}},
              {"block_q", 16},
              {"block_kv", 16}};
    }
    if (name == "svg2") {
      return {{"top_p", everything ? 1.0 : 0.5}, {"q_clusters", 4}, {"kv_clusters", 7}};
    }
    if (name == "fps") {
      return {{"tile", {1, 4, 4}},
              {"window", {9, everything ? 99 : 1, everything ? 99 : 1}},
              {"precision", "storage"}};
    }
    if (name == "paro") return {{"axes", "HWF"}, {"precision", everything ? "storage" : "int8"}};
    if (name == "sparge" || name == "xattention") {
      return {{"top_p", everything ? 1.0 : 0.5}, {"block_q", 16}, {"block_kv", 16}};
    }
    if (name == "radial") return {{"block", 16}, {"decay", everything ? 1e6 : 0.2}};
    if (name == "window") {
      return {{"tile", {1, 4, 4}}, {"window", {9, everything ? 9 : 1, everything ? 9 : 1}}};
    }
    if (name == "neighborhood") {
      return {{"window", everything ? Json{99, 99, 99} : Json{3, 3, 3}}};
    }
    if (name == "saved") return saved(everything);
    return Json::object();
  }

  // A folder without a plan, so that all calls are planned by its recipe.
  static Json saved(bool everything) {
    static const test::TemporaryFolder folder;
    const fs::path path = folder.path / (everything ? "all" : "some");
    const Json density = {{"density", everything ? 1.0 : 0.4}, {"block_q", 16}, {"block_kv", 16}};
    if (!fs::exists(path)) PlanStore("", {"topk", density}, 1).save(path);
    return {{"file", path.string()}, {"replan", true}};
  }
};

TEST_P(EveryPlanner, RunsAnyGrid) {
  at::manual_seed(4);
  for (const std::array<int64_t, 3>& grid :
       {std::array<int64_t, 3>{1, 1, 1}, {1, 7, 13}, {5, 1, 24}, {3, 6, 10}}) {
    for (const int64_t text : {0, 5}) {
      TokenLayout layout = TokenLayout::grid(grid[0], grid[1], grid[2]);
      if (text > 0) layout.append(TokenLayout::text(text, at::tensor({3}, at::kLong)));
      const AttentionCall call = make_call(layout);
      const AttentionPlan plan = plan_of(GetParam(), options(false), call);
      const AttentionResult result = ReferenceExecutor().run(plan, call);
      EXPECT_TRUE(result.out.isfinite().all().item<bool>()) << layout.describe();
      EXPECT_TRUE(result.lse.isfinite().all().item<bool>()) << layout.describe();
      const AttentionPlan again = plan_of(GetParam(), options(false), call);
      EXPECT_TRUE(ReferenceExecutor().run(again, call).out.equal(result.out));
    }
  }
}

TEST_P(EveryPlanner, IsDenseWhenItKeepsEverything) {
  at::manual_seed(5);
  // Three frames: Radial thins out further ones whatever the decay.
  const AttentionCall call = make_call(TokenLayout::grid(3, 6, 10));
  const at::Tensor dense = ReferenceExecutor().run(AttentionPlan::dense("dense"), call).out;
  const AttentionPlan plan = plan_of(GetParam(), options(true), call);
  EXPECT_LE(relative_error(ReferenceExecutor().run(plan, call).out, dense), 1e-13);
}

TEST_P(EveryPlanner, IsDenseWhereTheScheduleSays) {
  at::manual_seed(6);
  Json settings = options(false);
  settings["dense_steps"] = 2;
  settings["dense_layers"] = 1;
  const auto planner = make_planner(GetParam(), settings);
  AttentionCall call = make_call(TokenLayout::grid(3, 6, 10));
  for (int64_t step = 0; step < 4; ++step) {
    for (int64_t layer = 0; layer < 3; ++layer) {
      call.context.step = step;
      call.layer = layer;
      const bool dense = step < 2 || layer < 1 || std::string(GetParam()) == "dense";
      EXPECT_EQ(planner->plan(call).is_dense(), dense) << step << " " << layer;
    }
  }
}

TEST_P(EveryPlanner, RefusesAMisspeltOption) {
  Json settings = options(false);
  settings["densty"] = 1;
  expect_error(ErrorCode::usage, "densty", [&] { make_planner(GetParam(), settings); });
}

// A share to keep is an option of those papers that have one.
TEST(PlannerOptions, AreListedWhereOneIsMistaken) {
  const std::string blocks = "block_kv, block_q, dense_layers, dense_steps, ";
  const std::string schedule = "dense_layers, dense_steps";
  const std::map<std::string, std::string> known = {
      {"dense", schedule},
      {"fps", schedule + ", precision, switch, tile, window"},
      {"neighborhood", "causal, " + schedule + ", dilation, stride, window"},
      {"paro", "axes, block, " + schedule + ", file, precision"},
      {"psa", blocks + "min_exact, shares, thresholds, tile"},
      {"radial", "block, decay, " + schedule + ", sink_frames"},
      {"sla", blocks + "density, feature_map, linear_over, projection, tile"},
      {"sparge", blocks + "density, similarity, sink, tile, top_p"},
      {"svg2",
       schedule + ", iterations, kv_clusters, later_iterations, min_kept, q_clusters, top_p"},
      {"topk", blocks + "density, tile, top_p"},
      {"window", schedule + ", tile, window"},
      {"xattention", blocks + "sink, stride, tile, top_p"}};
  for (const std::string& name : planner_names()) {
    if (name == "saved") continue;  // names its folder first
    ASSERT_TRUE(known.contains(name)) << name;
    const bool has_density = known.at(name).find("density") != std::string::npos;
    const std::string mistaken = has_density ? "densty" : "density";
    expect_error(
        ErrorCode::usage,
        str("attention ", name, ": unknown option '", mistaken, "'; known: ", known.at(name)), [&] {
          make_planner(name, {{mistaken, 0.5}});
        });
  }
  expect_error(ErrorCode::usage, "unknown options '_tile', 'dense'", [] {
    make_planner("window", {{"_tile", 1}, {"dense", 2}});
  });
}

INSTANTIATE_TEST_SUITE_P(Planners, EveryPlanner, testing::ValuesIn(planner_names()),
                         [](const auto& info) { return info.param; });

// Cached plans give what new ones do, per layout; other roles run dense.
TEST(Attention, KeepsThePlansOfEachLayout) {
  at::manual_seed(7);
  Attention attention("window", {{"tile", {1, 2, 2}}, {"window", {1, 1, 1}}});
  for (int round = 0; round < 2; ++round) {
    for (const TokenLayout& layout : {TokenLayout::grid(2, 4, 4), TokenLayout::grid(2, 6, 4)}) {
      AttentionCall call = make_call(layout);
      const AttentionPlan plan =
          plan_of("window", {{"tile", {1, 2, 2}}, {"window", {1, 1, 1}}}, call);
      EXPECT_TRUE(attention.run(call).equal(ReferenceExecutor().run(plan, call).out));
      call.role = AttentionRole::cross;
      attention.run(call);
    }
  }
  EXPECT_EQ(attention.counts().at("self: window on reference"), 4);
  EXPECT_EQ(attention.counts().at("cross: dense on sdpa"), 4);
}

}  // namespace
}  // namespace fovea
