#include "core/attention/probe.h"

#include <map>

#include <gtest/gtest.h>

#include <ATen/ATen.h>

#include "core/attention/attention.h"
#include "core/attention/executors/reference.h"
#include "core/attention/plan_map.h"

namespace fovea {
namespace {

// A window of one tile: three tiles of four tokens, each sees itself, or with two more rows of
// them.
AttentionCall small_call(int64_t text = 0) {
  at::manual_seed(5);
  AttentionCall call;
  call.q_layout = TokenLayout::grid(1, 2, 6);
  if (text > 0) call.q_layout.append(TokenLayout::text(text));
  call.kv_layout = call.q_layout;
  const int64_t tokens = call.q_layout.seq_len();
  call.q = at::randn({2, 4, tokens, 16});
  call.k = at::randn({2, 2, tokens, 16});
  call.v = at::randn({2, 2, tokens, 16});
  return call;
}

const Json kOneTile = {{"tile", {1, 2, 2}}, {"window", {1, 1, 1}}};

TEST(PlanMap, CountsBlocksOfOtherSizes) {
  const AttentionCall call = small_call(/*text=*/5);
  const AttentionPlan plan = make_planner("window", kOneTile)->plan(call);
  const std::vector<PlanMap> maps = plan_maps(plan, call);
  ASSERT_EQ(maps.size(), 1u);
  EXPECT_EQ(maps[0].q_offsets, (std::vector<int64_t>{0, 4, 8, 12, 16, 17}));
  // Four rows see four keys and the text; text sees all.
  const double kept = (12 * (4 + 5) + 5 * 17) / (17.0 * 17);
  EXPECT_NEAR(maps[0].density, kept, 1e-12);
  EXPECT_NEAR(*plan_density(plan, call), kept, 1e-6);
  EXPECT_NEAR(maps[0].row_density[0], 9 / 17.0, 1e-12);
  EXPECT_EQ(maps[0].classes[1], block_class::skip);
}

TEST(PlanMap, SaysHowMuchPredicatesLeave) {
  AttentionCall call = small_call();
  const AttentionPlan plan = make_planner("neighborhood", {{"window", {1, 1, 1}}})->plan(call);
  const std::vector<PlanMap> maps = plan_maps(plan, call);
  ASSERT_EQ(maps[0].classes.size(), 1u);
  EXPECT_NEAR(maps[0].seen[0], 1 / 12.0, 1e-6);
  EXPECT_EQ(maps[0].density, 1);  // the block is computed as a whole
  EXPECT_EQ(*plan_density(plan, call), 1);
}

TEST(PlanMap, CountsPooledKeysOfSummaries) {
  const AttentionCall call = small_call();
  AttentionPlan plan = make_planner("window", kOneTile)->plan(call);
  Selection& selection = std::get<SoftmaxBranch>(plan.branches[0].kind).selection;
  selection.summaries = {{.pool = 2}};
  selection.classes = selection.classes.expand({1, 4, 3, 3}).clone();
  selection.classes[0][2][0][1] = block_class::first_summary;
  const std::vector<PlanMap> maps = plan_maps(plan, call);
  ASSERT_EQ(maps.size(), 4u);
  EXPECT_NEAR(maps[0].density, 1 / 3.0, 1e-12);
  EXPECT_NEAR(maps[2].density, 1 / 3.0 + 4 * 2 / 144.0, 1e-12);
  EXPECT_EQ(maps[2].classes[1], block_class::first_summary);
  EXPECT_NE(maps[0], maps[2]);
}

TEST(AttentionProbe, ErrorAndRecallAreThoseOfTheWholeCall) {
  const AttentionCall call = small_call();
  Attention attention("window", kOneTile), dense;
  AttentionProbe probe;
  attention.set_observer([&](const auto&... seen) { probe.observe(seen...); });
  const at::Tensor out = attention.run(call);
  const at::Tensor whole = dense.run(call);
  EXPECT_NEAR(*probe.error(), ((out - whole).norm() / whole.norm()).item<double>(), 1e-5);
  // The mass that the tile of a row holds of its softmax.
  const at::Tensor logits = at::matmul(call.q, call.k.repeat_interleave(2, 1).transpose(2, 3)) / 4;
  const at::Tensor column = at::arange(12, at::kLong).remainder(6).floor_divide(2);
  const at::Tensor seen = column.unsqueeze(1).eq(column.unsqueeze(0));
  const at::Tensor mass = at::softmax(logits, 3).mul(seen).sum(3).mean();
  EXPECT_NEAR(*probe.recall(), mass.item<double>(), 1e-5);
  EXPECT_NEAR(*probe.density(), 1 / 3.0, 1e-6);
  EXPECT_GT(probe.seconds(), 0);
}

// Options with which a planner leaves some pairs of 4x8x8 random tokens out.
Json sparse_options(const std::string& name) {
  const std::map<std::string, Json> own = {
      {"fps", {{"tile", {2, 4, 4}}, {"window", {2, 4, 4}}}},
      {"neighborhood", {{"window", {1, 3, 3}}}},
      {"paro", {{"axes", "WHF"}, {"block", 32}}},  // keeps all without a file
      {"psa", Json::object()},
      {"radial", {{"block", 16}}},
      {"sla", {{"density", 0.3}}},
      {"sparge", {{"density", 0.4}, {"similarity", -1}}},
      {"svg2", {{"q_clusters", 6}, {"kv_clusters", 9}, {"top_p", 0.5}}},
      {"topk", {{"density", 0.3}}},
      {"window", {{"tile", {2, 4, 4}}, {"window", {1, 1, 1}}}},
      {"xattention", {{"top_p", 0.5}}}};
  Json out = own.at(name);
  for (const char* blocks : {"psa", "sla", "sparge", "topk", "xattention"}) {
    if (name == blocks) out.update({{"block_q", 32}, {"block_kv", 16}});
  }
  return out;
}

// Products with pooled keys, a share of all: a block of n keys has n / pool of them.
double pooled_density(const Selection& selection) {
  double density = 0;
  for (size_t i = 0; i < selection.summaries.size(); ++i) {
    const int64_t pool = selection.summaries[i].pool;
    const auto value = static_cast<int64_t>(block_class::first_summary + i);
    const at::Tensor blocks = selection.classes.eq(value).to(at::kFloat);
    density += blocks.mean().item<double>() / static_cast<double>(pool == 0 ? 16 : pool);
  }
  return density;
}

class PlannersPairs : public testing::TestWithParam<std::string> {};

TEST_P(PlannersPairs, GiveDensityAndRecall) {
  at::manual_seed(6);
  AttentionCall call;
  call.q_layout = call.kv_layout = TokenLayout::grid(4, 8, 8);
  call.q = at::randn({2, 2, 256, 16});
  call.k = at::randn({2, 2, 256, 16});
  call.v = at::randn({2, 2, 256, 8});
  const std::string name = GetParam();
  Attention attention(name, sparse_options(name));
  AttentionProbe probe;
  AttentionPlan plan;
  attention.set_observer(
      [&](const AttentionCall& seen, const AttentionPlan& made, const AttentionResult& result) {
        plan = made;
        probe.observe(seen, made, result);
      });
  attention.run(call);
  const auto& branch = std::get<SoftmaxBranch>(plan.branches[0].kind);
  const at::Tensor pairs = exact_pairs(plan, branch, call).expand({2, 2, 256, 256}).to(at::kFloat);
  const double density = pairs.mean().item<double>() + pooled_density(branch.selection);
  ASSERT_TRUE(probe.density() && probe.recall());
  if (branch.selection.predicates.empty()) {
    EXPECT_NEAR(*probe.density(), density, 1e-5);
  } else {  // blocks that a predicate cuts are computed as a whole
    EXPECT_GE(*probe.density(), density);
  }
  const at::Tensor mass = at::softmax(at::matmul(call.q, call.k.transpose(2, 3)) / 4, 3);
  const at::Tensor rows = at::arange(64, at::kLong) * 4;
  const double kept = (mass * pairs).sum(3).index_select(2, rows).mean().item<double>();
  EXPECT_NEAR(*probe.recall(), kept, 1e-5);
  EXPECT_GT(kept, 0.01);
  EXPECT_LT(kept, name == "paro" ? 1.001 : 0.999);
}

// All but the dense one, and `saved`, which has other planners' plans.
std::vector<std::string> sparse_planners() {
  std::vector<std::string> names = planner_names();
  std::erase_if(names, [](const std::string& x) { return x == "dense" || x == "saved"; });
  return names;
}

INSTANTIATE_TEST_SUITE_P(Of, PlannersPairs, testing::ValuesIn(sparse_planners()),
                         [](const auto& info) { return info.param; });

TEST(AttentionProbe, DenseCallsCountAsDensityOneAndOtherRolesAsNothing) {
  AttentionCall call = small_call();
  Attention attention("window", {{"tile", {1, 2, 2}}, {"window", {1, 1, 1}}, {"dense_steps", 1}});
  AttentionProbe probe;
  attention.set_observer([&](const auto&... seen) { probe.observe(seen...); });
  EXPECT_FALSE(probe.density());
  attention.run(call);
  EXPECT_EQ(*probe.density(), 1);
  EXPECT_FALSE(probe.error());
  call.context.step = 1;
  attention.run(call);
  call.role = AttentionRole::cross;
  attention.run(call);
  EXPECT_NEAR(*probe.density(), (1 + 1 / 3.0) / 2, 1e-6);
  EXPECT_TRUE(probe.error() && probe.recall());
}

TEST(AttentionProbe, PaddingIsInNeither) {
  AttentionCall call = small_call();
  call.q_layout.append(TokenLayout::text(4, at::tensor({4, 4}, at::kLong)));
  call.kv_layout = TokenLayout::grid(1, 2, 6);
  call.kv_layout.append(TokenLayout::text(4, at::tensor({1, 3}, at::kLong)));
  for (at::Tensor* x : {&call.q, &call.k, &call.v}) {
    *x = at::cat({*x, at::randn_like(*x).slice(2, 0, 4) * 9}, 2);
  }
  Attention attention("window", kOneTile), dense;
  AttentionProbe probe;
  attention.set_observer([&](const auto&... seen) { probe.observe(seen...); });
  const at::Tensor out = attention.run(call), whole = dense.run(call);
  EXPECT_NEAR(*probe.error(), ((out - whole).norm() / whole.norm()).item<double>(), 1e-5);
  EXPECT_TRUE(*probe.recall() > 0 && *probe.recall() < 1);
}

}  // namespace
}  // namespace fovea
