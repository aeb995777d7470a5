#include <algorithm>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "core/attention/executors/checked.h"
#include "tests/conformance/suite.h"

// Everything on the executors' list, by itself: 2,000 problems in each type.

namespace fovea::test {
namespace {

constexpr int64_t kShards = 4;
constexpr int64_t kProblems = 500;   // that run, of each shard
constexpr int64_t kTries = 24;       // for each of them, at most
constexpr int64_t kRetrievals = 16;  // of each shard
constexpr int64_t kBeforeGivingUp = 400;

// Checked executors run these ones.
std::vector<std::string> names() {
  std::vector<std::string> out;
  for (const auto& executor : make_executors()) {
    if (executor->name().rfind(kChecked, 0) != 0) out.push_back(executor->name());
  }
  return out;
}

std::unique_ptr<Executor> executor_named(const std::string& name) {
  for (auto& executor : make_executors()) {
    if (executor->name() == name) return std::move(executor);
  }
  return nullptr;
}

bool is_for_gpus(const std::string& name) { return name.rfind("cuda", 0) == 0; }

using Parameters = std::tuple<std::string, at::ScalarType, int64_t>;

std::string name_of(const testing::TestParamInfo<Parameters>& info) {
  return std::get<0>(info.param) + "_" + toString(std::get<1>(info.param)) + "_" +
         std::to_string(std::get<2>(info.param));
}

class EveryExecutor : public testing::TestWithParam<Parameters> {};

TEST_P(EveryExecutor, MeetsTheRules) {
  const auto& [name, dtype, shard] = GetParam();
  if (is_for_gpus(name) && !at::hasCUDA()) GTEST_SKIP() << "missing: a GPU";
  const at::Device device = is_for_gpus(name) ? at::kCUDA : at::kCPU;
  const std::unique_ptr<Executor> executor = executor_named(name);
  Tally tally;
  const auto expect_nothing = [](const std::optional<Finding>& finding) {
    EXPECT_FALSE(finding) << finding->rule << ": " << finding->text;
  };
  for (int64_t i = shard; tally.ran < kProblems && i < kProblems * kTries * kShards; i += kShards) {
    expect_nothing(examine(*executor, make_problem(i, dtype, device), tally));
    if (tally.ran > 0 || tally.refused < kBeforeGivingUp) continue;
    const auto most =
        std::max_element(tally.reasons.begin(), tally.reasons.end(),
                         [](const auto& a, const auto& b) { return a.second < b.second; });
    GTEST_SKIP() << name << ": " << most->first;
  }
  EXPECT_EQ(tally.ran, kProblems) << tally.describe();
  expect_nothing(examine(*executor, make_gain(shard, dtype, device), tally));
  const int64_t before = tally.ran;
  for (int64_t i = shard; i < kRetrievals * kShards; i += kShards) {
    expect_nothing(examine_retrieval(*executor, make_retrieval(i, dtype, device), tally));
  }
  EXPECT_GT(tally.ran, before) << "no retrieval ran";
  printf("%s\n", tally.describe().c_str());
}

INSTANTIATE_TEST_SUITE_P(Executors, EveryExecutor,
                         testing::Combine(testing::ValuesIn(names()),
                                          testing::Values(at::kFloat, at::kBFloat16, at::kHalf,
                                                          at::kDouble),
                                          testing::Range(int64_t{0}, kShards)),
                         name_of);

// A type may be refused, all of them may not; a GPU may be another one.
class NamedExecutor : public testing::TestWithParam<std::string> {};

TEST_P(NamedExecutor, RunsSomething) {
  const std::string& name = GetParam();
  if (is_for_gpus(name) && !at::hasCUDA()) GTEST_SKIP() << "missing: a GPU";
  const at::Device device = is_for_gpus(name) ? at::kCUDA : at::kCPU;
  const at::ScalarType dtype = is_for_gpus(name) ? at::kBFloat16 : at::kFloat;
  const std::unique_ptr<Executor> executor = executor_named(name);
  int64_t ran = 0;
  for (int64_t i = 0; i < 400; ++i) {
    const Problem problem = make_problem(i, dtype, device);
    const auto reason = executor->why_not(problem.plan, problem.call);
    ran += !reason;
    if (reason && reason->rfind("runs on ", 0) == 0) {
      GTEST_SKIP() << "missing: a GPU for " << name << ", which " << *reason;
    }
  }
  EXPECT_GE(ran, 8);
}

INSTANTIATE_TEST_SUITE_P(Executors, NamedExecutor, testing::ValuesIn(names()),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace fovea::test
