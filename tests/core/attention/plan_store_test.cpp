#include "core/attention/plan_store.h"

#include <fstream>
#include <functional>
#include <iterator>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "core/attention/plan_of_head.h"
#include "core/check.h"
#include "tests/core/attention/plan_cases.h"
#include "tests/support/files.h"

namespace fovea {
namespace {

using test::expect_error;

const PlanRecipe kRecipe = {"topk", {{"density", 0.25}}};

std::string bytes_of(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

TEST(StepBucket, CutsTheStepsIntoEqualParts) {
  const auto bucket = [](int64_t step, int64_t steps, int64_t buckets) {
    StepContext context;
    context.step = step;
    context.num_steps = steps;
    return step_bucket(context, buckets);
  };
  EXPECT_EQ(bucket(0, 50, 10), 0);
  EXPECT_EQ(bucket(4, 50, 10), 0);
  EXPECT_EQ(bucket(5, 50, 10), 1);
  EXPECT_EQ(bucket(49, 50, 10), 9);
  EXPECT_EQ(bucket(2, 4, 8), 4);
  EXPECT_EQ(bucket(9, 0, 8), 7);
}

class Store : public testing::Test {
 protected:
  Store() { at::manual_seed(1); }

  PlanStore reopened(const PlanStore& store) const {
    fs::remove_all(path_);
    store.save(path_);
    return PlanStore::open(path_);
  }

  test::TemporaryFolder folder_;
  fs::path path_ = folder_.path / "plans";
  AttentionCall call_ = test::call_of_all();
};

TEST_F(Store, GivesBackEveryPlan) {
  std::vector<AttentionPlan> plans = test::hand_made_plans(call_);
  for (AttentionPlan& plan : test::plans_of_all_planners(call_)) plans.push_back(std::move(plan));
  PlanStore store("", kRecipe, 7);
  for (size_t i = 0; i < plans.size(); ++i) {
    store.put({.layer = static_cast<int64_t>(i), .bucket = 3}, plans[i], call_);
  }
  const PlanStore again = reopened(store);
  EXPECT_EQ(again.recipe(), kRecipe);
  EXPECT_EQ(again.buckets(), 7);
  EXPECT_EQ(again.entries(), store.entries());
  for (size_t i = 0; i < plans.size(); ++i) {
    SCOPED_TRACE(plans[i].describe());
    const PlanKey key = {.layer = static_cast<int64_t>(i), .bucket = 3};
    test::expect_same(plans[i], store.get(key, call_).value(), call_);
    test::expect_same(plans[i], again.get(key, call_).value(), call_);
  }
  EXPECT_FALSE(again.get({.layer = 99, .bucket = 3}, call_).has_value());
  // A folder that was opened can be written once more.
  again.save(folder_.path / "copy");
  const PlanStore copy = PlanStore::open(folder_.path / "copy");
  test::expect_same(plans[2], copy.get({.layer = 2, .bucket = 3}, call_).value(), call_);
}

TEST_F(Store, KeepsEqualPlansOnce) {
  PlanStore store("", kRecipe, 4);
  const AttentionPlan plan = test::plan_of_predicates(call_);
  for (int64_t layer = 0; layer < 5; ++layer) store.put({.layer = layer}, plan, call_);
  store.put({.layer = 5}, test::plan_of_predicates(call_), call_);  // other random classes
  EXPECT_EQ(store.num_plans(), 2u);
  EXPECT_TRUE(store.is_shared(0));
  EXPECT_FALSE(store.is_shared(1));
  EXPECT_EQ(reopened(store).entries().size(), 6u);
}

TEST_F(Store, FindsTheLastPlanBefore) {
  PlanStore store("", kRecipe, 10);
  const auto put = [&](const PlanKey& key) {
    store.put(key, test::plan_of_predicates(call_), call_);
  };
  put({.layer = 1, .bucket = 2});
  put({.layer = 1, .bucket = 6});
  put({.layer = 1, .guidance = GuidanceBranch::unconditional, .bucket = 4});
  const auto find = [&](int64_t bucket, GuidanceBranch guidance) {
    return store.find({.layer = 1, .guidance = guidance, .bucket = bucket});
  };
  EXPECT_EQ(find(2, GuidanceBranch::conditional), 0u);
  EXPECT_EQ(find(5, GuidanceBranch::conditional), 0u);
  EXPECT_EQ(find(9, GuidanceBranch::conditional), 1u);
  EXPECT_EQ(find(9, GuidanceBranch::unconditional), 2u);
  EXPECT_EQ(find(3, GuidanceBranch::unconditional), 0u);  // the other branch's
  EXPECT_EQ(find(1, GuidanceBranch::conditional), std::nullopt);
  EXPECT_EQ(store.find({.layer = 1, .role = AttentionRole::joint, .bucket = 9}), std::nullopt);
  expect_error(ErrorCode::usage, "bucket 10 of 10", [&] { put({.bucket = 10}); });
}

TEST_F(Store, GivesThePlanOfOneHead) {
  PlanStore store("", kRecipe, 1);
  const std::vector<AttentionPlan> plans = test::hand_made_plans(call_);
  for (size_t i = 0; i < plans.size(); ++i) {
    SCOPED_TRACE(plans[i].describe());
    store.put({.layer = 0}, plans[i], call_);
    const at::Tensor whole = ReferenceExecutor().run(plans[i], call_).out;
    for (int64_t head = 0; head < 4; ++head) {
      const AttentionPlan own = store.get({.layer = 0}, head, call_).value();
      const AttentionCall part = call_of_head(call_, head);
      validate(own, part);
      EXPECT_LE(
          test::relative_error(ReferenceExecutor().run(own, part).out, whole.narrow(1, head, 1)),
          1e-14);
    }
  }
  expect_error(ErrorCode::usage, "head 4 of 4", [&] { store.get({.layer = 0}, 4, call_); });
}

TEST_F(Store, RefusesAnotherModelAndOtherShapes) {
  PlanStore store("abc", kRecipe, 1);
  store.put({}, test::plan_of_predicates(call_), call_);
  store.save(path_);
  EXPECT_EQ(PlanStore::open(path_).model(), "abc");
  EXPECT_EQ(PlanStore::open(path_, "abc").recipe(), kRecipe);
  expect_error(ErrorCode::usage, "of another model", [&] { PlanStore::open(path_, "abd"); });
  const PlanStore again = PlanStore::open(path_);
  const AttentionCall other = test::awkward_call(TokenLayout::grid(2, 5, 8));
  expect_error(ErrorCode::usage,
               "made for grid 2x5x7 + text 20, 4 heads on 2, the call is of grid 2x5x8",
               [&] { again.get({}, other); });
  AttentionCall heads = call_;
  heads.q = call_.q.narrow(1, 0, 2);
  expect_error(ErrorCode::usage, "the call is of grid 2x5x7 + text 20, 2 heads",
               [&] { again.get({}, heads); });
}

TEST_F(Store, IsWrittenAsAWholeOrNotAtAll) {
  PlanStore store("", kRecipe, 1);
  store.put({}, test::plan_of_predicates(call_), call_);
  store.save(path_);
  const std::string before = bytes_of(path_ / "plan.json");
  expect_error(ErrorCode::conflict, "plans", [&] { store.save(path_); });
  expect_error(ErrorCode::usage, "none", [&] { store.save(folder_.path / "none/plans"); });
  EXPECT_EQ(bytes_of(path_ / "plan.json"), before);
  EXPECT_EQ(std::distance(fs::directory_iterator(folder_.path), {}), 1);
  EXPECT_EQ(std::distance(fs::directory_iterator(path_), {}), 2);
}

class DamagedStore : public Store {
 protected:
  DamagedStore() {
    PlanStore store("abc", kRecipe, 1);
    store.put({}, test::plan_of_summaries(call_), call_);
    store.save(path_);
  }
  void expect_refused(const std::string& why) {
    expect_error(ErrorCode::bad_data, why, [&] { PlanStore::open(path_).get({}, call_); });
  }
  void index(const std::function<void(Json&)>& change, const std::string& why) {
    const std::string before = bytes_of(path_ / "plan.json");
    Json json = parse_json(before, "plan.json");
    change(json);
    test::write_bytes(path_ / "plan.json", json.dump());
    SCOPED_TRACE(why);
    expect_refused(why);
    test::write_bytes(path_ / "plan.json", before);
  }
  // Another tensor under the same name, and the right sum of the file.
  void tensor(const std::string& name, const std::function<void(at::Tensor&)>& change,
              const std::string& why) {
    const fs::path shard = path_ / "plans-0.safetensors";
    const std::string before = bytes_of(shard);
    TensorMap tensors = load_tensors(shard);
    change(tensors.at(name));
    save_tensors(shard, tensors, /*overwrite=*/true);
    index([&](Json& json) { json["shards"][0]["sha256"] = sha256_file(shard); }, why);
    test::write_bytes(shard, before);
  }
};

TEST_F(DamagedStore, IsRefusedForItsIndex) {
  index([](Json& json) { json["format"] = "plans"; }, "key 'format'");
  index([](Json& json) { json["version"] = 2; }, "version 1 is read, got 2");
  index([](Json& json) { json["heads"] = 2; }, "'heads'");
  index([](Json& json) { json.erase("recipe"); }, "key 'recipe'");
  index([](Json& json) { json["recipe"]["steps"] = 1; }, "recipe: ignored unknown key 'steps'");
  index([](Json& json) { json["buckets"] = 0; }, "key 'buckets'");
  index([](Json& json) { json["plans"] = 1; }, "key 'plans'");
  index([](Json& json) { json["plans"][0]["shard"] = 1; }, "key 'shard'");
  index([](Json& json) { json["plans"][0].erase("plan"); }, "key 'plan'");
  index([](Json& json) { json["plans"][0]["plan"]["branches"][0]["kind"] = "none"; },
        "plan 0: branches 0: key 'kind'");
  index([](Json& json) { json["entries"][0]["role"] = "other"; }, "key 'role'");
  index([](Json& json) { json["entries"][0]["plan"] = 1; }, "key 'plan'");
  index([](Json& json) { json["entries"][0]["hour"] = 1; }, "'hour'");
  index([](Json& json) { json["entries"].push_back(json["entries"][0]); },
        "entries 1: stands for the same calls");
  index([](Json& json) { json["shards"][0]["file"] = "../x.safetensors"; }, "same folder");
  index([](Json& json) { json["shards"][0]["file"] = "gone.safetensors"; }, "gone.safetensors");
  index([](Json& json) { json["shards"] = Json::array(), json["plans"][0]["shard"] = nullptr; },
        "is not there");
}

TEST_F(DamagedStore, IsRefusedForBytes) {
  const fs::path json = path_ / "plan.json", shard = path_ / "plans-0.safetensors";
  const std::string text = bytes_of(json);
  test::write_bytes(json, text.substr(0, text.size() / 2));
  expect_refused("malformed JSON");
  fs::remove(json);
  expect_refused("plan.json");
  test::write_bytes(json, text);
  std::string bytes = bytes_of(shard);
  bytes[bytes.size() - 9] = static_cast<char>(bytes[bytes.size() - 9] ^ 4);
  test::write_bytes(shard, bytes);
  expect_refused("plans-0.safetensors: is damaged");
}

TEST_F(DamagedStore, IsRefusedForTensorsThatLie) {
  tensor(
      "plan.0.q_order", [](at::Tensor& rows) { rows[0][0][0] = rows[0][0][1]; },
      "query order is no permutation");
  tensor(
      "plan.0.branch.0.q_blocks", [](at::Tensor& offsets) { offsets[0][0][1] = 9999; },
      "query offsets do not ascend");
  tensor(
      "plan.0.branch.0.classes", [](at::Tensor& classes) { classes.fill_(255); },
      "class 15 of a block");
  tensor(
      "plan.0.branch.0.classes", [](at::Tensor& classes) { classes = classes.narrow(2, 0, 3); },
      "expected a class map");
  tensor(
      "plan.0.group.1.weight", [](at::Tensor& weight) { weight = weight.narrow(2, 0, 5); },
      "weights of shape");
}

}  // namespace
}  // namespace fovea
