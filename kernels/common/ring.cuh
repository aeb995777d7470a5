#pragma once

#include <cstdint>

namespace fovea::kernels {

/// A place in a ring of slots, and the parity of its phase: slots are filled and freed in turns.
template <int kSlots>
struct RingPlace {
  int slot = 0;
  uint32_t parity = 0;

  __device__ void next() {
    if (++slot == kSlots) slot = 0, parity ^= 1;
  }
};

}  // namespace fovea::kernels
