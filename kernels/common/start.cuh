#pragma once

#include "kernels/common/grid.h"

namespace fovea::kernels {

/// Starts a kernel; what went wrong is asked for later.
template <typename... Parameters, typename... Arguments>
void start_kernel(void (*kernel)(Parameters...), const Grid& grid, const Arguments&... arguments) {
  const auto stream = static_cast<cudaStream_t>(grid.stream);
  if (!grid.together) {
    kernel<<<grid.blocks, grid.threads, grid.shared_bytes, stream>>>(arguments...);
    return;
  }
  cudaLaunchAttribute together;
  together.id = cudaLaunchAttributeCooperative, together.val.cooperative = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid.blocks, config.blockDim = grid.threads;
  config.dynamicSmemBytes = grid.shared_bytes, config.stream = stream;
  config.attrs = &together, config.numAttrs = 1;
  cudaLaunchKernelEx(&config, kernel, arguments...);
}

}  // namespace fovea::kernels
