#pragma once

#include <cstddef>

// Dynamic shared memory: `extern __shared__ char NAME[]` of a kernel is a variable of its
// namespace, which shared.cpp defines.

namespace fovea::emulator {

/// Fills the first bytes of all of them with what is no number.
void fill_shared(size_t bytes);

}  // namespace fovea::emulator
