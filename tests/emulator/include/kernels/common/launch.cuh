#pragma once

#include <algorithm>
#include <cstdint>

#include <cuda_runtime.h>

#include "kernels/common/status.h"
#include "tests/emulator/simt.h"

// kernels/common/launch.cuh on the CPU.

namespace fovea::kernels {

struct Grid {
  dim3 blocks, threads;
  size_t shared_bytes = 0;
  void* stream = nullptr;
};

inline Status status_of(cudaError_t code) {
  if (code != cudaSuccess) return {StatusCode::device, cudaGetErrorString(code)};
  return {};
}

/// Throws emulator::Fault.
template <typename... Parameters, typename... Arguments>
Status launch_kernel(void (*kernel)(Parameters...), const Grid& grid,
                     const Arguments&... arguments) {
  if (grid.shared_bytes > emulator::kSharedBytes) return status_of(cudaErrorInvalidValue);
  emulator::run(grid.blocks, grid.threads, grid.shared_bytes,
                [&] { kernel(static_cast<Parameters>(arguments)...); });
  return {};
}

/// Two multiprocessors.
inline Status resident_blocks(int, int per_processor, int64_t blocks, unsigned* out) {
  *out = static_cast<unsigned>(std::min<int64_t>(int64_t{2} * per_processor, blocks));
  return {};
}

}  // namespace fovea::kernels
