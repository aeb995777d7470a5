#include "core/attention/plan_json.h"

#include <functional>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "core/attention/packed_bits.h"
#include "core/attention/plan_data.h"
#include "core/check.h"
#include "tests/core/attention/plan_cases.h"
#include "tests/support/files.h"

namespace fovea {
namespace {

using test::expect_error;

// Through text, as a file would hold it.
AttentionPlan parsed(const AttentionPlan& plan) {
  TensorMap tensors;
  const std::string text = to_json(plan, tensors).dump();
  return plan_from_json(parse_json(text, "plan.json"), tensors, "plan.json");
}

TEST(PackedBits, AreWhereTheHeaderSays) {
  const at::Tensor values = at::tensor({1, 0, 1, 1, 0, 0, 0, 0, 0, 1}, at::kByte);
  EXPECT_TRUE(pack_bits(values, 1).equal(at::tensor({13, 2}, at::kByte)));
  const at::Tensor pairs = at::tensor({3, 0, 2, 1, 2}, at::kByte);
  EXPECT_TRUE(pack_bits(pairs, 2).equal(at::tensor({3 + 2 * 16 + 64, 2}, at::kByte)));
}

TEST(PackedBits, ComeBackForAnyCount) {
  at::manual_seed(1);
  for (const int64_t bits : {1, 2, 4, 8}) {
    for (const int64_t count : {0, 1, 3, 8, 17}) {
      const at::Tensor values = at::randint(int64_t{1} << bits, {2, 3, count}).to(at::kByte);
      const at::Tensor packed = pack_bits(values, bits);
      EXPECT_EQ(packed.size(2), (count * bits + 7) / 8);
      EXPECT_TRUE(unpack_bits(packed, bits, count).equal(values)) << bits << " " << count;
    }
  }
}

TEST(PlanJson, KeepsPlansMadeByHand) {
  at::manual_seed(2);
  const AttentionCall call = test::call_of_all();
  for (const AttentionPlan& plan : test::hand_made_plans(call)) {
    SCOPED_TRACE(plan.describe());
    check_data(plan, call);
    test::expect_same(plan, parsed(plan), call);
  }
}

TEST(PlanJson, KeepsThePlansOfEveryPlanner) {
  at::manual_seed(3);
  const AttentionCall call = test::call_of_all();
  for (const AttentionPlan& plan : test::plans_of_all_planners(call)) {
    SCOPED_TRACE(plan.describe());
    test::expect_same(plan, parsed(plan), call);
  }
}

TEST(PlanJson, KeepsTensorsInTheirTypesAndWithoutGradients) {
  const AttentionCall call = test::call_of_all();
  AttentionPlan plan = AttentionPlan::dense("weights");
  plan.group_weights = {at::rand({4, 1, 1}).to(at::kBFloat16).transpose(0, 1).requires_grad_()};
  const AttentionPlan got = parsed(plan);
  test::expect_same_bits(plan.group_weights[0], got.group_weights[0], "weights");
  EXPECT_FALSE(got.group_weights[0].requires_grad());
}

// A text that is right, changed in one place.
class Damaged : public testing::Test {
 protected:
  Damaged() {
    at::manual_seed(4);
    const AttentionCall call = test::call_of_all();
    json_ = to_json(test::plan_of_summaries(call), tensors_);
  }
  void refused(const std::string& why, const std::function<void(Json&, TensorMap&)>& change) {
    Json json = json_;
    TensorMap tensors = tensors_;
    change(json, tensors);
    expect_error(ErrorCode::bad_data, why, [&] { plan_from_json(json, tensors, "plan.json"); });
  }

  Json json_;
  TensorMap tensors_;
};

TEST_F(Damaged, TextIsRefusedByName) {
  const auto selection = [](Json& json) -> Json& { return json["branches"][0]["selection"]; };
  refused("'blocks'", [](Json& json, TensorMap&) { json["blocks"] = 1; });
  refused("'q_order'", [](Json& json, TensorMap&) { json.erase("q_order"); });
  refused("identity, tiles", [](Json& json, TensorMap&) { json["q_order"]["kind"] = "curve"; });
  refused("three sides", [](Json& json, TensorMap&) {
    json["q_order"] = {{"kind", "tiles"}, {"tile", {1, 2}}};
  });
  refused("HWF", [](Json& json, TensorMap&) {
    json["q_order"] = {{"kind", "axes"}, {"axes", {"FHF"}}};
  });
  refused("axes of no head", [](Json& json, TensorMap&) {
    json["q_order"] = {{"kind", "axes"}, {"axes", Json::array()}};
  });
  refused("branches 0: selection: classes: key 'bits'",
          [&](Json& json, TensorMap&) { selection(json)["classes"]["bits"] = 2; });
  refused("'kind'", [](Json& json, TensorMap&) { json["branches"][1]["kind"] = "scan"; });
  refused("'feature_map'",
          [](Json& json, TensorMap&) { json["branches"][1]["feature_map"] = "exp"; });
  refused("summaries 1: key 'pool'",
          [&](Json& json, TensorMap&) { selection(json)["summaries"][1]["pool"] = -1; });
  refused("count and a size", [&](Json& json, TensorMap&) {
    selection(json)["kv_blocks"] = {{"sizes", {{int64_t{1} << 40, int64_t{1} << 40}}}};
  });
  refused("expected a JSON object", [](Json& json, TensorMap&) { json["branches"][0] = 7; });
}

TEST_F(Damaged, TensorsAreRefusedByName) {
  refused("tensor 'branch.0.classes' is not there",
          [](Json&, TensorMap& tensors) { tensors.erase("branch.0.classes"); });
  refused("tensor 'more' belongs to nothing",
          [](Json&, TensorMap& tensors) { tensors["more"] = at::zeros({1}); });
  refused("expected U8 [.., 6] of 11 columns", [](Json&, TensorMap& tensors) {
    at::Tensor& classes = tensors["branch.0.classes"];
    classes = classes.slice(3, 0, 5);
  });
  refused("int32 or int64", [](Json&, TensorMap& tensors) {
    tensors["q_order"] = tensors["q_order"].to(at::kFloat);
  });
}

TEST(PlanJson, RefusesClassesThatNothingStandsFor) {
  at::manual_seed(5);
  const AttentionCall call = test::call_of_all();
  AttentionPlan plan = test::plan_of_summaries(call);
  test::selection_of(plan).classes[0][0][0][0] = 7;
  TensorMap tensors;
  expect_error(ErrorCode::usage, "class 7", [&] { to_json(plan, tensors); });
}

}  // namespace
}  // namespace fovea
