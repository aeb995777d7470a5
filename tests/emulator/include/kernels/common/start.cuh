#pragma once

#include "kernels/common/grid.h"
#include "tests/emulator/simt.h"

// kernels/common/start.cuh on the CPU.

namespace fovea::kernels {

/// Throws emulator::Fault.
template <typename... Parameters, typename... Arguments>
void start_kernel(void (*kernel)(Parameters...), const Grid& grid, const Arguments&... arguments) {
  emulator::run(grid.blocks, grid.threads, grid.shared_bytes,
                [&] { kernel(static_cast<Parameters>(arguments)...); });
}

}  // namespace fovea::kernels
