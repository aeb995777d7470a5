#include "core/attention/executor.h"
#include "core/attention/executors/cpu.h"
#include "core/attention/executors/reference.h"
#include "core/attention/executors/sdpa.h"
#include "core/check.h"

namespace fovea {

Executor& pick_executor(const std::vector<std::unique_ptr<Executor>>& executors,
                        const AttentionPlan& plan, const AttentionCall& call,
                        const std::string& name) {
  std::string reasons, known;
  bool is_known = name == "auto";
  for (const auto& executor : executors) {
    known += known.empty() ? executor->name() : ", " + executor->name();
    if (name != "auto" && name != executor->name()) continue;
    is_known = true;
    const auto reason = executor->why_not(plan, call);
    if (!reason) return *executor;
    reasons += str(" ", executor->name(), ": ", *reason, ";");
  }
  require(is_known, ErrorCode::usage, "attention", "unknown executor '", printable(name),
          "'; known: auto, ", known);
  throw Error(ErrorCode::device, "attention",
              str("no executor runs the plan of ", plan.planner, ":", reasons));
}

std::vector<std::unique_ptr<Executor>> make_executors() {
  std::vector<std::unique_ptr<Executor>> executors;
  executors.push_back(std::make_unique<CpuExecutor>());
  executors.push_back(std::make_unique<SdpaExecutor>());
  executors.push_back(std::make_unique<ReferenceExecutor>());
  return executors;
}

}  // namespace fovea
