#pragma once

#include "kernels/common/ptx.cuh"
#include "kernels/common/wgmma_types.cuh"
#include "tests/emulator/simt.h"

// kernels/common/wgmma_instructions.cuh on the CPU.

namespace fovea::kernels::wgmma {

// The lanes of a warp do these together.
inline void fence() {}
inline void commit() {
  __syncwarp();
  emulator::commit_products();
}
template <int kGroups>
void wait() {
  emulator::finish_products(kGroups);
  __syncwarp();
}

template <int kN>
struct Instruction {
  template <Type kType, bool kNMajor, bool kMMajor>
  static void shared(Accumulator<kType> (&c)[kN / 2], Matrix a, Matrix b, int keep) {
    emulator::Product own = product(kType, kNMajor, true, a.bits, b.bits, keep);
    own.m_major = kMMajor;
    emulator::start_product(own, c, nullptr);
  }
  template <Type kType, bool kNMajor>
  static void registers(float (&c)[kN / 2], const uint32_t (&a)[4], Matrix b, int keep) {
    emulator::start_product(product(kType, kNMajor, false, 0, b.bits, keep), c, a);
  }

 private:
  static emulator::Product product(Type type, bool n_major, bool a_in_shared, uint32_t a,
                                   uint32_t b, int keep) {
    return {static_cast<emulator::Product::Type>(type),
            kN,
            n_major,
            false,
            a_in_shared,
            a,
            b,
            keep != 0};
  }
};

}  // namespace fovea::kernels::wgmma
