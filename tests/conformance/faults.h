#pragma once

#include <functional>
#include <string>
#include <vector>

#include "core/attention/executor.h"

namespace fovea::test {

/// What a wrong kernel gives for a plan.
using FaultyRun = std::function<AttentionResult(const AttentionPlan&, const AttentionCall&)>;

/// A mistake that kernels are known to make. All else about the kernel is right.
struct Fault {
  std::string name;
  FaultyRun run;
  /// In fp16 and bf16 it is within what the rules allow, or is what they compare with.
  bool only_fp32 = false;
};

/// Every one of them must be found by the conformance suite.
std::vector<Fault> planted_faults();

/// A wrong kernel as an executor that takes every plan.
class FaultyExecutor : public Executor {
 public:
  explicit FaultyExecutor(const Fault& fault) : fault_(fault) {}
  std::string name() const override { return fault_.name; }
  std::optional<std::string> why_not(const AttentionPlan&, const AttentionCall&) const override {
    return std::nullopt;
  }
  AttentionResult run(const AttentionPlan& plan, const AttentionCall& call,
                      const LoweredPlan*) override {
    return fault_.run(plan, call);
  }

 private:
  Fault fault_;
};

}  // namespace fovea::test
