#pragma once

// Threads and memory for the attention kernels under test.

#include <cstdint>
#include <limits>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "kernels/attention/block_sparse.h"

namespace fovea::kernels {

inline void run_on_threads(void*, int64_t count, Parallel::Task task, void* state) {
  std::vector<std::thread> threads;
  for (int64_t i = 1; i < count; ++i) threads.emplace_back(task, state, i);
  task(state, 0);
  for (std::thread& thread : threads) thread.join();
}

inline std::vector<Isa> isas() {
  std::vector<Isa> all;
  for (const Isa isa :
       {Isa::baseline, Isa::avx2, Isa::avx512, Isa::avx512_vnni, Isa::avx512_bf16}) {
    if (isa_available(isa)) all.push_back(isa);
  }
  return all;
}

/// An aligned workspace full of NaN, which looks at its end whether something is behind it.
class CheckedWorkspace {
 public:
  explicit CheckedWorkspace(int64_t bytes)
      : bytes_(bytes), memory_(bytes / 4 + 32, std::numeric_limits<float>::quiet_NaN()) {
    const auto address = reinterpret_cast<uintptr_t>(memory_.data());
    aligned_ = memory_.data() + (64 - address % 64) % 64 / 4;
  }
  ~CheckedWorkspace() {
    for (const float* at = aligned_ + bytes_ / 4; at < memory_.data() + memory_.size(); ++at)
      EXPECT_TRUE(*at != *at) << "written behind the workspace";
  }
  CheckedWorkspace(const CheckedWorkspace&) = delete;
  CheckedWorkspace& operator=(const CheckedWorkspace&) = delete;
  Workspace get() { return {aligned_, bytes_}; }

 private:
  int64_t bytes_;
  std::vector<float> memory_;
  float* aligned_;
};

}  // namespace fovea::kernels
