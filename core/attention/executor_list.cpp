#include "core/attention/executor.h"

#include "core/attention/executors/checked.h"
#include "core/attention/executors/cpu.h"
#include "core/attention/executors/cuda.h"
#include "core/attention/executors/reference.h"
#include "core/attention/executors/sdpa.h"
#include "core/check.h"

namespace fovea {
namespace {

bool checks(const Executor& executor) { return executor.name().rfind(kChecked, 0) == 0; }

// Whether a name, one executor's or one for several, can mean it.
bool is_meant(const std::string& name, const Executor& executor) {
  if (name == "auto") return !checks(executor);
  return name == "checked" ? checks(executor) : name == executor.name();
}

}  // namespace

void check_executor_name(const std::vector<std::unique_ptr<Executor>>& executors,
                         const std::string& name) {
  std::string known = "auto, checked";
  for (const auto& executor : executors) {
    if (is_meant(name, *executor)) return;
    known += ", " + executor->name();
  }
  throw Error(ErrorCode::usage, "attention",
              str("unknown executor '", printable(name), "'; known: ", known));
}

Executor& pick_executor(const std::vector<std::unique_ptr<Executor>>& executors,
                        const AttentionPlan& plan, const AttentionCall& call,
                        const std::string& name) {
  check_executor_name(executors, name);
  std::string reasons;
  for (const auto& executor : executors) {
    if (!is_meant(name, *executor)) continue;
    const auto reason = executor->why_not(plan, call);
    if (!reason) return *executor;
    reasons += str(" ", executor->name(), ": ", *reason, ";");
  }
  throw Error(ErrorCode::device, "attention",
              str("no executor runs the plan of ", plan.planner, ":", reasons));
}

namespace {

std::vector<std::unique_ptr<Executor>> unchecked() {
  std::vector<std::unique_ptr<Executor>> executors;
#if FOVEA_HAS_CUDA
  executors.push_back(std::make_unique<CudaExecutor>(sm90_backend()));
  executors.push_back(std::make_unique<CudaExecutor>(sm80_backend()));
#endif
  executors.push_back(std::make_unique<CpuExecutor>());
  executors.push_back(std::make_unique<SdpaExecutor>());
  executors.push_back(std::make_unique<ReferenceExecutor>());
  return executors;
}

}  // namespace

std::vector<std::unique_ptr<Executor>> make_executors() {
  std::vector<std::unique_ptr<Executor>> executors = unchecked();
  for (auto& executor : unchecked()) {
    executors.push_back(std::make_unique<CheckedExecutor>(std::move(executor)));
  }
  return executors;
}

}  // namespace fovea
