#pragma once

#include <cstddef>

namespace fovea::emulator {

/// Fills the first bytes of dynamic shared memory with what is no number.
void fill_shared(size_t bytes);

}  // namespace fovea::emulator
