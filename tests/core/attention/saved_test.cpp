#include "core/attention/planners/saved.h"

#include <map>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "core/attention/attention.h"
#include "core/check.h"
#include "tests/support/attention_cases.h"
#include "tests/support/files.h"

// Runs of a planner, and the same runs from what was saved.

namespace fovea {
namespace {

using test::expect_error;

constexpr int64_t kSteps = 4, kLayers = 2;

// All calls of a run, other q, k and v in each.
std::vector<AttentionCall> calls_of(const TokenLayout& layout) {
  at::manual_seed(1);
  std::vector<AttentionCall> out;
  for (int64_t step = 0; step < kSteps; ++step) {
    for (const auto guidance : {GuidanceBranch::conditional, GuidanceBranch::unconditional}) {
      for (int64_t layer = 0; layer < kLayers; ++layer) {
        AttentionCall call = test::awkward_call(layout);
        call.layer = layer;
        call.context.step = step;
        call.context.num_steps = kSteps;
        call.context.guidance_branch = guidance;
        out.push_back(std::move(call));
      }
    }
  }
  return out;
}

class Saved : public testing::TestWithParam<std::string> {
 protected:
  // What a run gives; with a store, its plans are kept.
  static std::vector<at::Tensor> run(const std::string& planner, const Json& options,
                                     const std::vector<AttentionCall>& calls,
                                     PlanStore* store = nullptr) {
    Attention attention(planner, options);
    if (store != nullptr) {
      attention.set_observer(
          [&](const AttentionCall& call, const AttentionPlan& plan, const AttentionResult&) {
            store->put({call.layer, call.role, call.context.guidance_branch,
                        step_bucket(call.context, store->buckets())},
                       plan, call);
          });
    }
    std::vector<at::Tensor> out;
    for (const AttentionCall& call : calls) out.push_back(attention.run(call));
    return out;
  }

  Json save(const std::string& planner, const Json& options,
            const std::vector<AttentionCall>& calls) {
    PlanStore store("abc", make_planner(planner, options)->recipe(options), kSteps);
    expected_ = run(planner, options, calls, &store);
    plans_ = store.num_plans();
    store.save(folder_.path / "plans");
    return {{"file", (folder_.path / "plans").string()}};
  }

  test::TemporaryFolder folder_;
  std::vector<at::Tensor> expected_;
  size_t plans_ = 0;
};

TEST_P(Saved, GivesTheSameRun) {
  const std::map<std::string, Json> options = {
      {"topk", {{"density", 0.3}, {"block_q", 16}, {"block_kv", 16}, {"dense_steps", 1}}},
      {"svg2", {{"q_clusters", 4}, {"kv_clusters", 6}, {"top_p", 0.5}}},
      {"psa", {{"block_q", 16}, {"block_kv", 16}}},
      {"fps", {{"tile", {1, 2, 3}}, {"window", {1, 3, 3}}}},
      {"sla", {{"projection", "identity"}, {"block_q", 16}, {"block_kv", 16}}}};
  const std::vector<AttentionCall> calls = calls_of(TokenLayout::grid(3, 5, 7));
  const Json folder = save(GetParam(), options.at(GetParam()), calls);
  const std::vector<at::Tensor> got = run("saved", folder, calls);
  for (size_t i = 0; i < calls.size(); ++i) EXPECT_TRUE(got[i].equal(expected_[i])) << i;
  // One tiling, whatever the step; clusters of the data.
  EXPECT_EQ(plans_ == 1, GetParam() == "fps");
  EXPECT_EQ(plans_ == calls.size(), GetParam() != "fps" && GetParam() != "topk");
}

INSTANTIATE_TEST_SUITE_P(Planners, Saved, testing::Values("fps", "psa", "sla", "svg2", "topk"),
                         [](const auto& info) { return info.param; });

using SavedPlans = Saved;

TEST_F(SavedPlans, ArePlannedAnewForOtherShapesOnlyWhenAsked) {
  const Json topk = {{"density", 0.3}, {"block_q", 16}, {"block_kv", 16}, {"dense_layers", 1}};
  Json folder = save("topk", topk, calls_of(TokenLayout::grid(3, 5, 7)));
  const std::vector<AttentionCall> calls = calls_of(TokenLayout::grid(4, 6, 7));
  expect_error(ErrorCode::usage, "made for grid 3x5x7", [&] { run("saved", folder, calls); });
  expect_error(ErrorCode::usage, "replan=true plans anew with 'topk'",
               [&] { run("saved", folder, calls); });
  folder["replan"] = true;
  const std::vector<at::Tensor> got = run("saved", folder, calls),
                                expected = run("topk", topk, calls);
  for (size_t i = 0; i < calls.size(); ++i) EXPECT_TRUE(got[i].equal(expected[i])) << i;
}

TEST_F(SavedPlans, AreRefusedWhereThereAreNone) {
  const Json topk = {{"density", 0.3}};
  std::vector<AttentionCall> calls = calls_of(TokenLayout::grid(3, 5, 7));
  const Json folder = save("topk", topk, calls);
  calls[0].layer = 7;
  expect_error(ErrorCode::usage, "no plan for step 0 of layer 7",
               [&] { run("saved", folder, calls); });
  expect_error(ErrorCode::usage, "file", [] { make_planner("saved"); });
  expect_error(ErrorCode::bad_data, "nowhere", [] {
    make_planner("saved", {{"file", "/nowhere"}});
  });
  Json other = folder;
  other["model"] = "abd";
  expect_error(ErrorCode::usage, "another model", [&] { make_planner("saved", other); });
}

TEST_F(SavedPlans, AreOfTheRolesThatWereSaved) {
  std::vector<AttentionCall> calls = calls_of(TokenLayout::grid(3, 5, 7));
  const Json folder = save("topk", {{"density", 0.3}}, calls);
  const auto planner = make_planner("saved", folder);
  EXPECT_TRUE(planner->plans(AttentionRole::self));
  EXPECT_FALSE(planner->plans(AttentionRole::joint));
  EXPECT_FALSE(planner->plans(AttentionRole::text));
}

// What a plan file says for each head goes along; its masks, which are for one shape, do not.
TEST_F(SavedPlans, KeepTheChoicesOfAPlanFile) {
  const fs::path file = folder_.path / "paro.json";
  test::write_bytes(file, R"({"block": 16, "axes": [["HWF", "WFH"], ["FWH"]]})");
  const auto paro = make_planner("paro", {{"file", file.string()}, {"precision", "storage"}});
  const PlanRecipe recipe = paro->recipe({{"file", file.string()}, {"precision", "storage"}});
  fs::remove(file);
  EXPECT_FALSE(recipe.options.contains("file"));
  const auto again = make_planner(recipe.planner, recipe.options);
  for (AttentionCall& call : calls_of(TokenLayout::grid(2, 4, 6))) {
    const AttentionPlan a = paro->plan(call), b = again->plan(call);
    EXPECT_EQ(a.describe(), b.describe());
    EXPECT_EQ(a.kv_order.describe(), call.layer == 0 ? "axes 1.2.0 2.0.1" : "axes 0.2.1");
  }
}

// A schedule around saved plans is part of what is saved next.
TEST_F(SavedPlans, KeepTheSchedule) {
  Json folder = save("topk", {{"density", 0.3}}, calls_of(TokenLayout::grid(3, 5, 7)));
  folder["dense_steps"] = 2;
  const PlanRecipe recipe = make_planner("saved", folder)->recipe(folder);
  EXPECT_EQ(recipe, (PlanRecipe{"topk", {{"density", 0.3}, {"dense_steps", 2}}}));
}

}  // namespace
}  // namespace fovea
