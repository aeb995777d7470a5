#include "core/attention/executor.h"
#include "core/attention/executors/cpu.h"
#include "core/attention/executors/reference.h"
#include "core/attention/executors/sdpa.h"

namespace fovea {

std::vector<std::unique_ptr<Executor>> make_executors() {
  std::vector<std::unique_ptr<Executor>> executors;
  executors.push_back(std::make_unique<CpuExecutor>());
  executors.push_back(std::make_unique<SdpaExecutor>());
  executors.push_back(std::make_unique<ReferenceExecutor>());
  return executors;
}

}  // namespace fovea
