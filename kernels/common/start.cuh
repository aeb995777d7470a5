#pragma once

#include <cuda_runtime.h>

namespace fovea::kernels {

/// Blocks and their threads, dynamic shared memory of a block, and the CUDA stream.
struct Grid {
  dim3 blocks, threads;
  size_t shared_bytes = 0;
  void* stream = nullptr;
};

/// Starts a kernel; what went wrong is asked for later.
template <typename... Parameters, typename... Arguments>
void start_kernel(void (*kernel)(Parameters...), const Grid& grid, const Arguments&... arguments) {
  kernel<<<grid.blocks, grid.threads, grid.shared_bytes, static_cast<cudaStream_t>(grid.stream)>>>(
      arguments...);
}

}  // namespace fovea::kernels
