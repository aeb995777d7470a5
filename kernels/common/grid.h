#pragma once

#include <cstddef>

#include <cuda_runtime.h>

namespace fovea::kernels {

/// Blocks and their threads, dynamic shared memory of a block, and the CUDA stream. Blocks that
/// wait for one another are to be started together: at once, or not yet, whatever else runs.
struct Grid {
  dim3 blocks, threads;
  size_t shared_bytes = 0;
  void* stream = nullptr;
  bool together = false;
};

}  // namespace fovea::kernels
