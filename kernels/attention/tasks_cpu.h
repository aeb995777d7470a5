#pragma once

// Sharing tasks among the caller's threads, for the *_cpu.cpp files of this folder.

#include <algorithm>
#include <atomic>

#include "kernels/attention/block_sparse.h"

namespace fovea::kernels::FOVEA_ISA {
namespace {

/// Lets the workers take `count` tasks in ascending order until none is left:
/// f(job, task, worker). A task may wait for those before it, which somebody computes by then.
template <typename Job, typename F>
void run_tasks(Job& job, const Parallel& parallel, int64_t count, F) {
  struct Shared {
    Job& job;
    int64_t count;
    std::atomic<int64_t> next = 0;
  } shared{job, count};
  const auto work = [](void* state, int64_t worker) {
    Shared& all = *static_cast<Shared*>(state);
    for (int64_t task; (task = all.next.fetch_add(1)) < all.count;) F{}(all.job, task, worker);
  };
  const int64_t workers = std::min<int64_t>(std::max(parallel.threads, 1), count);
  if (workers <= 0) return;
  if (parallel.run && workers > 1) {
    parallel.run(parallel.context, workers, work, &shared);
  } else {
    work(&shared, 0);
  }
}

}  // namespace
}  // namespace fovea::kernels::FOVEA_ISA
