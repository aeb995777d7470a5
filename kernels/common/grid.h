#pragma once

#include <cstddef>

#include <cuda_runtime.h>

namespace fovea::kernels {

/// Blocks and their threads, dynamic shared memory of a block, and the CUDA stream.
struct Grid {
  dim3 blocks, threads;
  size_t shared_bytes = 0;
  void* stream = nullptr;
};

}  // namespace fovea::kernels
