#include "tests/conformance/faults.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "core/attention/executors/reference.h"
#include "tests/conformance/suite.h"

// The suite finds every planted fault, and nothing in the reference.

namespace fovea::test {
namespace {

constexpr int64_t kProblems = 400;  // a fifth of what an executor is asked

struct Verdict {
  std::optional<Finding> finding;
  int64_t problems = 0;  ///< looked at
};

Verdict look_for(Executor& executor, at::ScalarType dtype) {
  Tally tally;
  Verdict out;
  const auto found = [&](std::optional<Finding> finding) {
    ++out.problems;
    out.finding = std::move(finding);
    return out.finding.has_value();
  };
  for (int64_t i = 0; i < kProblems; ++i) {
    if (found(examine(executor, make_problem(i, dtype, at::kCPU), tally))) return out;
    // Probes take longer, and are for what problems do not show.
    if (i % 20 != 19) continue;
    if (found(examine(executor, make_gain(i / 20, dtype, at::kCPU), tally))) return out;
    const Problem retrieval = make_retrieval(i / 20, dtype, at::kCPU);
    if (found(examine_retrieval(executor, retrieval, tally))) return out;
  }
  return out;
}

constexpr int64_t kShards = 4;

class PlantedFaults : public testing::TestWithParam<std::tuple<at::ScalarType, int64_t>> {};

TEST_P(PlantedFaults, AreAllFound) {
  int64_t planted = 0, found = 0;
  const auto [dtype, shard] = GetParam();
  const std::vector<Fault> faults = planted_faults();
  for (size_t i = static_cast<size_t>(shard); i < faults.size(); i += kShards) {
    const Fault& fault = faults[i];
    if (fault.only_fp32 && dtype != at::kFloat) continue;
    FaultyExecutor executor(fault);
    const Verdict verdict = look_for(executor, dtype);
    ++planted;
    EXPECT_TRUE(verdict.finding) << fault.name << " passes as right";
    if (!verdict.finding) continue;
    ++found;
    printf("%-40s %-9s after %lld problems\n", fault.name.c_str(), verdict.finding->rule.c_str(),
           static_cast<long long>(verdict.problems));
  }
  printf("%lld of %lld planted faults found\n", static_cast<long long>(found),
         static_cast<long long>(planted));
  EXPECT_GE(planted, 10);
}

// What flags everything proves nothing.
class NoFault : public testing::TestWithParam<at::ScalarType> {};

TEST_P(NoFault, IsSeenInTheReference) {
  ReferenceExecutor executor;
  const Verdict verdict = look_for(executor, GetParam());
  EXPECT_FALSE(verdict.finding) << verdict.finding->rule << ": " << verdict.finding->text;
}

INSTANTIATE_TEST_SUITE_P(Types, NoFault, testing::Values(at::kFloat, at::kBFloat16, at::kHalf),
                         [](const auto& info) { return std::string(toString(info.param)); });

INSTANTIATE_TEST_SUITE_P(Types, PlantedFaults,
                         testing::Combine(testing::Values(at::kFloat, at::kBFloat16, at::kHalf),
                                          testing::Range(int64_t{0}, kShards)),
                         [](const auto& info) {
                           return std::string(toString(std::get<0>(info.param))) + "_" +
                                  std::to_string(std::get<1>(info.param));
                         });

}  // namespace
}  // namespace fovea::test
