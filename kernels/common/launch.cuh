#pragma once

#include <algorithm>
#include <cstdint>

#include <cuda_runtime.h>

#include "kernels/common/start.cuh"
#include "kernels/common/status.h"

namespace fovea::kernels {

inline Status status_of(cudaError_t code) {
  if (code != cudaSuccess) return {StatusCode::device, cudaGetErrorString(code)};
  return {};
}

/// Starts a kernel; answers `device` with what the runtime says.
template <typename... Parameters, typename... Arguments>
Status launch_kernel(void (*kernel)(Parameters...), const Grid& grid,
                     const Arguments&... arguments) {
  // More than 48 KiB are to be asked for, of which a kernel's static memory is a part.
  constexpr size_t kAlways = 32 * 1024;
  if (grid.shared_bytes > kAlways) {
    const cudaError_t code = cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(grid.shared_bytes));
    if (code != cudaSuccess) return status_of(code);
  }
  start_kernel(kernel, grid, arguments...);
  return status_of(cudaGetLastError());
}

/// How many of `blocks` blocks a device runs at a time, with so many on a multiprocessor.
inline Status resident_blocks(int device, int per_processor, int64_t blocks, unsigned* out) {
  int processors = 0;
  const cudaError_t code =
      cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  *out = static_cast<unsigned>(std::min<int64_t>(processors * per_processor, blocks));
  return status_of(code);
}

}  // namespace fovea::kernels
