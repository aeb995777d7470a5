#pragma once

#include <cstdint>

#include "kernels/common/mma_instructions.cuh"

// Products by one warp, for compute capability 8.0 and newer: C[16, 8] += A[16, K] · B[K, 8] with K
// of 32 bytes an instruction, everything in registers; how operands get there from shared memory,
// and data into it.
//
// Fragments: lane l holds of C, in register i, row l / 4 + 8 (i / 2) and column 2 (l % 4) + i % 2.
// A result [16, N], 8 columns after the other, lies as fragment.cuh says of a warpgroup's 64 rows.
// Of A and B it holds 4 bytes a register: of A rows l / 4 + 8 (r % 2), of B column l / 4, both
// along K from byte 4 (l % 4) + 16 (r / 2 of A, r of B) on.

namespace fovea::kernels::mma {

// ---- Where things lie in shared memory ----------------------------------------------------------

/// Rows of kBytes that lie one after the other from a multiple of 128 on. The 16-byte units of a
/// row change places, so that the eight rows which a matrix is read from, and the units that
/// neighbouring threads copy, lie in different banks.
template <int kBytes>
struct MixedRows {
  static_assert(kBytes % 16 == 0);
  static constexpr int kUnits = kBytes / 16;  // of a row
  // Units that change places with each other: a power of two that divides those of a row.
  static constexpr int kMixed = kUnits % 8 == 0 ? 8 : kUnits % 4 == 0 ? 4 : kUnits % 2 == 0 ? 2 : 1;

  /// Bytes from the first row's begin.
  __host__ __device__ static constexpr int place(int row, int unit) {
    return row * kBytes + (unit ^ (row * kMixed / 8 % kMixed)) * 16;
  }
  /// From the address of unit 0 or 1 of a row to that of the unit `units` behind it, an even
  /// number.
  __host__ __device__ static constexpr uint32_t behind(uint32_t address, int units) {
    return (address ^ static_cast<uint32_t>(units % kMixed * 16)) + units / kMixed * (kMixed * 16);
  }
};

}  // namespace fovea::kernels::mma
