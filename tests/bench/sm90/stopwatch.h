#pragma once

#include <algorithm>
#include <cstdio>
#include <functional>

#include <cuda_runtime.h>

#include "kernels/common/status.h"

namespace fovea::kernels {

/// Seconds of one run, from events around runs of 0.3 s in all after as many to warm up.
inline double seconds_of(const char* name, const std::function<Status()>& run) {
  constexpr double kDuration = 0.3;
  cudaEvent_t begin, end;
  cudaEventCreate(&begin), cudaEventCreate(&end);
  int runs = 2;
  float ms = 0;
  for (int pass = 0; pass < 3; ++pass) {  // counts, warms up, measures
    cudaEventRecord(begin);
    for (int i = 0; i < runs; ++i) {
      const Status status = run();
      if (!status.ok()) std::printf("FAILED %s: %s\n", name, status.message);
    }
    cudaEventRecord(end);
    const cudaError_t code = cudaEventSynchronize(end);
    if (code != cudaSuccess) std::printf("FAILED %s: %s\n", name, cudaGetErrorString(code));
    cudaEventElapsedTime(&ms, begin, end);
    if (pass == 0) runs = std::max(1, static_cast<int>(kDuration * 1e3 * runs / ms));
  }
  cudaEventDestroy(begin), cudaEventDestroy(end);
  return ms * 1e-3 / runs;
}

}  // namespace fovea::kernels
