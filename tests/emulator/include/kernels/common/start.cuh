#pragma once

#include "kernels/common/grid.h"
#include "tests/emulator/simt.h"

// kernels/common/start.cuh on the CPU.

namespace fovea::kernels {

/// Throws emulator::Fault. Of blocks that are started together each needs a multiprocessor.
template <typename... Parameters, typename... Arguments>
void start_kernel(void (*kernel)(Parameters...), const Grid& grid, const Arguments&... arguments) {
  const unsigned blocks = grid.blocks.x * grid.blocks.y * grid.blocks.z;
  if (grid.together && blocks > static_cast<unsigned>(emulator::processors())) {
    throw emulator::Fault("more blocks than run together");
  }
  emulator::run(grid.blocks, grid.threads, grid.shared_bytes,
                [&] { kernel(static_cast<Parameters>(arguments)...); });
}

}  // namespace fovea::kernels
