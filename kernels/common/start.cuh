#pragma once

#include "kernels/common/grid.h"

namespace fovea::kernels {

/// Starts a kernel; what went wrong is asked for later.
template <typename... Parameters, typename... Arguments>
void start_kernel(void (*kernel)(Parameters...), const Grid& grid, const Arguments&... arguments) {
  kernel<<<grid.blocks, grid.threads, grid.shared_bytes, static_cast<cudaStream_t>(grid.stream)>>>(
      arguments...);
}

}  // namespace fovea::kernels
