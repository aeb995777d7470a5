#include "core/ops/kernel_threads.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include "core/parallel.h"

namespace fovea::ops {
namespace {

constexpr int64_t kAlignment = 64;

void run_tasks(void*, int64_t count, kernels::Parallel::Task task, void* state) {
  parallel_for(count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) task(state, i);
  });
}

}  // namespace

kernels::Parallel all_threads() { return {run_tasks, nullptr, at::get_num_threads()}; }

kernels::Workspace workspace_in(at::Tensor& memory, int64_t bytes) {
  if (!memory.defined() || memory.numel() < bytes + kAlignment) {
    memory = at::empty({bytes + kAlignment}, at::kByte);
  }
  auto* data = memory.mutable_data_ptr<uint8_t>();
  data += (kAlignment - reinterpret_cast<uintptr_t>(data) % kAlignment) % kAlignment;
  return {data, bytes};
}

}  // namespace fovea::ops
