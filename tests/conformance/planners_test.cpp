#include <algorithm>
#include <limits>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "core/attention/executors/checked.h"
#include "core/attention/executors/reference.h"
#include "core/attention/planner.h"
#include "core/check.h"
#include "tests/conformance/suite.h"
#include "tests/support/golden.h"

// Everything on the planners' list, by itself.

namespace fovea::test {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

// With what options a planner keeps everything; a new one needs an entry.
const std::map<std::string, Json> kEverything = {
    {"dense", Json::object()},
    {"fps", {{"window", {99, 99, 99}}, {"precision", "storage"}}},
    {"neighborhood", {{"window", {99, 99, 99}}}},
    {"paro", {{"precision", "storage"}}},
    {"psa", {{"thresholds", {1.0}}}},
    {"radial", {{"decay", 1e6}}},
    {"sla", {{"density", 1.0}}},
    {"sparge", {{"top_p", 1.0}}},
    {"svg2", {{"top_p", 1.0}}},
    {"topk", {{"density", 1.0}}},
    {"window", {{"window", {99, 99, 99}}}},
    {"xattention", {{"top_p", 1.0}}},
};

bool accepts(const std::string& name, const Json& options) {
  try {
    make_planner(name, options);
    return true;
  } catch (const Error&) {
    return false;
  }
}

// Blocks small enough for small grids to have many, where a planner has such options.
Json small_blocks(const std::string& name, Json options = Json::object()) {
  for (const Json& more :
       {Json{{"block_q", 16}, {"block_kv", 16}}, Json{{"block", 16}},
        Json{{"q_clusters", 4}, {"kv_clusters", 6}}, Json{{"tile", {1, 4, 4}}}}) {
    Json all = options;
    all.update(more);
    if (accepts(name, all)) return all;
  }
  return options;
}

// Grids that no block divides, of one token, of one frame; with text before or behind, padded.
std::vector<TokenLayout> layouts() {
  const at::Tensor valid = at::tensor({9, 2}, at::kLong);
  return {TokenLayout::grid(1, 1, 1),
          TokenLayout::grid(1, 7, 13),
          TokenLayout::grid(3, 5, 7),
          TokenLayout::grid(5, 1, 24),
          TokenLayout::grid(2, 5, 7).append(TokenLayout::text(20, valid)),
          TokenLayout::text(18, valid).append(TokenLayout::grid(3, 4, 9))};
}

AttentionCall call_of(const TokenLayout& layout, uint64_t seed, at::ScalarType dtype) {
  Random random(seed);
  AttentionCall call;
  call.q_layout = call.kv_layout = layout;
  if (layout.segments().size() > 1) call.role = AttentionRole::joint;
  const int64_t length = layout.seq_len();
  call.q = random.normal({2, 4, length, 16}).to(dtype);
  call.k = random.normal({2, 2, length, 16}).to(dtype);
  call.v = random.normal({2, 2, length, 16}).to(dtype);
  return call;
}

AttentionResult result_of(Planner& planner, const AttentionCall& call) {
  const AttentionPlan plan = planner.plan(call);
  validate(plan, call);
  return reference_attention(plan, call);
}

// bool [batch, heads, q_len, kv_len]: what the plan's softmax branches take exactly, together.
at::Tensor pairs_of(const AttentionPlan& plan, const AttentionCall& call) {
  at::Tensor out = at::zeros({2, 4, call.q.size(2), call.k.size(2)}, at::kBool);
  for (const Branch& branch : plan.branches) {
    const auto* softmax = std::get_if<SoftmaxBranch>(&branch.kind);
    if (softmax == nullptr || softmax->keys) continue;
    out = out.logical_or(exact_pairs(plan, *softmax, call));
  }
  return out;
}

// bool [seq_len]: tokens outside of the grid.
at::Tensor outside(const TokenLayout& layout) {
  std::vector<at::Tensor> parts;
  for (const Segment& segment : layout.segments()) {
    parts.push_back(at::full({segment.capacity}, segment.kind != Segment::Kind::grid, at::kBool));
  }
  return at::cat(parts, 0);
}

class EveryPlanner : public testing::TestWithParam<std::string> {
 protected:
  // As a user gets it, and with small blocks.
  std::vector<Json> options() const { return {Json::object(), small_blocks(GetParam())}; }
  std::unique_ptr<Planner> planner(const Json& options) const {
    return make_planner(GetParam(), options);
  }
};

TEST_P(EveryPlanner, GivesTheSameForASeed) {
  for (const Json& own : options()) {
    for (const TokenLayout& layout : layouts()) {
      AttentionCall call = call_of(layout, 1, at::kFloat);
      call.context.seed = 5;
      const std::array<at::Tensor, 3> before = {call.q.clone(), call.k.clone(), call.v.clone()};
      const auto first = planner(own), second = planner(own);
      const AttentionResult a = result_of(*first, call), b = result_of(*second, call);
      EXPECT_TRUE(a.out.equal(b.out) && a.lse.equal(b.lse)) << layout.describe();
      EXPECT_TRUE(call.q.equal(before[0]) && call.k.equal(before[1]) && call.v.equal(before[2]));
    }
  }
}

// No row is left without a key, and text sees and is seen by all that is valid.
TEST_P(EveryPlanner, LeavesNoRowEmptyAndKeepsText) {
  for (const Json& own : options()) {
    for (const TokenLayout& layout : layouts()) {
      const AttentionCall call = call_of(layout, 2, at::kDouble);
      const AttentionPlan plan = planner(own)->plan(call);
      const AttentionResult result = reference_attention(plan, call);
      EXPECT_TRUE(result.lse.isfinite().all().item<bool>()) << layout.describe();
      EXPECT_TRUE(result.out.isfinite().all().item<bool>()) << layout.describe();
      const at::Tensor text = outside(layout);
      if (!text.any().item<bool>()) continue;
      at::Tensor pairs = pairs_of(plan, call);
      pairs = pairs.logical_or(layout.valid_mask().logical_not());
      EXPECT_TRUE(
          pairs.index({at::indexing::Slice(), at::indexing::Slice(), text}).all().item<bool>())
          << "text does not see all of " << layout.describe();
      EXPECT_TRUE(pairs.transpose(2, 3)
                      .index({at::indexing::Slice(), at::indexing::Slice(), text})
                      .all()
                      .item<bool>())
          << "text is not seen by all of " << layout.describe();
    }
  }
}

TEST_P(EveryPlanner, DoesNotLookAtPadding) {
  for (const Json& own : options()) {
    for (const TokenLayout& layout : layouts()) {
      const at::Tensor valid = layout.valid_mask();
      if (!valid.defined()) continue;
      AttentionCall call = call_of(layout, 3, at::kDouble);
      const at::Tensor rows = valid.transpose(2, 3);
      const at::Tensor before = result_of(*planner(own), call).out.masked_fill(rows.eq(0), 0);
      for (const double poison : {kNaN, 1e30}) {
        AttentionCall bad = call;
        for (at::Tensor* x : {&bad.q, &bad.k, &bad.v}) *x = x->masked_fill(rows.eq(0), poison);
        const at::Tensor after = result_of(*planner(own), bad).out.masked_fill(rows.eq(0), 0);
        EXPECT_TRUE(after.equal(before)) << poison << " in " << layout.describe();
      }
    }
  }
}

// Where a planner has an option `density`: no block of queries of the grid keeps more of its
// blocks, but for one block that it may always keep, and half a block of rounding.
TEST_P(EveryPlanner, KeepsItsBudget) {
  if (!accepts(GetParam(), {{"density", 0.3}})) GTEST_SKIP() << "has no budget";
  // Sparge also keeps what its means do not speak for, unless it is told that all do.
  Json own = small_blocks(GetParam(), {{"density", 0.3}});
  Json alike = own;
  alike["similarity"] = -1;
  if (accepts(GetParam(), alike)) own = alike;
  for (const auto& grid : {TokenLayout::grid(1, 7, 13), TokenLayout::grid(3, 5, 7)}) {
    const AttentionCall call = call_of(grid, 4, at::kFloat);
    const AttentionPlan plan = planner(own)->plan(call);
    const auto& selection = std::get<SoftmaxBranch>(plan.branches[0].kind).selection;
    const at::Tensor kept = selection.classes.eq(block_class::exact).sum(3);
    const double blocks = static_cast<double>(selection.kv_blocks.num_blocks());
    EXPECT_LE(kept.max().item<double>(), std::max(1.0, 0.3 * blocks + 0.5)) << grid.describe();
    EXPECT_GE(kept.min().item<double>(), 1) << grid.describe();
  }
}

TEST_P(EveryPlanner, IsDenseWhenItKeepsEverything) {
  const auto everything = kEverything.find(GetParam());
  ASSERT_NE(everything, kEverything.end()) << "say with what options it keeps everything";
  for (const TokenLayout& layout : layouts()) {
    if (layout.segments()[0].grid[0] > 3) continue;  // further frames Radial always thins out
    const AttentionCall call = call_of(layout, 5, at::kDouble);
    const at::Tensor dense = reference_attention(AttentionPlan::dense("dense"), call).out;
    const at::Tensor out =
        result_of(*planner(small_blocks(GetParam(), everything->second)), call).out;
    EXPECT_LE(relative_error(out, dense), 1e-12) << layout.describe();
  }
}

// What the unconditional pass asks in between changes nothing for the conditional one.
TEST_P(EveryPlanner, KeepsGuidanceBranchesApart) {
  for (const Json& own : options()) {
    const TokenLayout layout = layouts()[4];
    const auto alone = planner(own), both = planner(own);
    for (int64_t step = 0; step < 3; ++step) {
      AttentionCall call = call_of(layout, 10 + static_cast<uint64_t>(step), at::kFloat);
      call.context.step = step;
      call.layer = 1;
      AttentionCall other = call_of(layout, 20 + static_cast<uint64_t>(step), at::kFloat);
      other.context = call.context;
      other.context.guidance_branch = GuidanceBranch::unconditional;
      other.layer = 1;
      const at::Tensor expected = result_of(*alone, call).out;
      result_of(*both, other);
      EXPECT_TRUE(result_of(*both, call).out.equal(expected)) << "step " << step;
    }
  }
}

// An item of a batch is planned as if it were alone.
TEST_P(EveryPlanner, DoesNotMixItems) {
  for (const Json& own : options()) {
    for (const TokenLayout& layout : {TokenLayout::grid(1, 7, 13), TokenLayout::grid(3, 5, 7)}) {
      const AttentionCall call = call_of(layout, 6, at::kDouble);
      AttentionCall first = call;
      for (at::Tensor* x : {&first.q, &first.k, &first.v}) *x = x->slice(0, 0, 1);
      const at::Tensor alone = result_of(*planner(own), first).out;
      const at::Tensor together = result_of(*planner(own), call).out.slice(0, 0, 1);
      EXPECT_LE(relative_error(together, alone), 1e-12) << layout.describe();
    }
  }
}

// Each executor either says why it does not run the plan, or is right.
TEST_P(EveryPlanner, RunsOnTheExecutors) {
  Tally tally;
  for (const auto& executor : make_executors()) {
    if (executor->name().rfind(kChecked, 0) == 0) continue;
    for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
      for (const Json& own : options()) {
        for (const TokenLayout& layout : layouts()) {
          Problem problem{.number = 0, .kind = GetParam(), .plan = {}, .call = {}};
          problem.call = call_of(layout, 7, dtype);
          problem.plan = planner(own)->plan(problem.call);
          const auto finding = examine(*executor, problem, tally);
          EXPECT_FALSE(finding) << executor->name() << ": " << finding->rule << ": "
                                << finding->text;
        }
      }
    }
  }
  EXPECT_GE(tally.ran, 24);  // the reference takes all
  printf("%s\n", tally.describe().c_str());
}

// `saved` replays what others planned, and has tests of its own.
std::vector<std::string> names_of_those_that_plan() {
  std::vector<std::string> names = planner_names();
  std::erase(names, "saved");
  return names;
}

INSTANTIATE_TEST_SUITE_P(Planners, EveryPlanner, testing::ValuesIn(names_of_those_that_plan()),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace fovea::test
