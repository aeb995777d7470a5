#pragma once

#include <cstdint>

#include "kernels/common/ptx.cuh"
#include "kernels/common/wgmma_instructions.cuh"
#include "kernels/common/wgmma_types.cuh"

// Products of the matrix units by a warpgroup of 128 threads: C[64, N] += A[64, K] · B[K, N], with
// K of 32 bytes an instruction. B lies in shared memory, A there or in registers, C in registers.
// They run on while the threads go on:
//
//   wgmma::fence();                   // registers written before are seen
//   wgmma::multiply(...); ...         // in order, on the same C
//   wgmma::commit();                  // they form a group
//   wgmma::wait<0>();                 // until then C, and A's registers, are not to be touched
//
// Fragments: thread t holds of C, in register i, row 16 (t / 32) + t % 32 / 4 + 8 (i / 2 % 2) and
// column 8 (i / 4) + 2 (t % 4) + i % 2.

namespace fovea::kernels::wgmma {

/// Keeps the compiler from moving reads or writes of registers across this place.
template <int kCount>
__device__ inline void pin(float (&c)[kCount]) {
#pragma unroll
  for (float& x : c) ptx::opaque(x);
}
template <int kCount>
__device__ inline void pin(int32_t (&c)[kCount]) {
#pragma unroll
  for (int32_t& x : c) asm volatile("" : "+r"(x)::"memory");
}

/// One whose rows along K are contiguous. Its pattern begins at a multiple of 1024; a step along K
/// is `kStepBytes` further, and 64 16-bit numbers further begins another such matrix.
__device__ inline Matrix k_major(uint32_t address) {
  Matrix out{(address & 0x3ffff) >> 4};
  ptx::opaque(out.bits);  // is kept
  return out;
}

/// One of 16-bit numbers whose rows along N are contiguous: rows k of 64 columns, in panels that
/// lie `panel_bytes` apart. A step of 16 along K is 2048 bytes further.
__device__ inline Matrix n_major(uint32_t address, uint32_t panel_bytes) {
  Matrix out{(address & 0x3ffff) >> 4 | (panel_bytes >> 4) << 16};
  ptx::opaque(out.bits);
  return out;
}

/// C += A · B with A and B in shared memory; `keep` 0: C = A · B.
///
/// c    [N / 2], fp32 or int32
/// a    `k_major`, or as `n_major` of one panel where kMMajor: of 16-bit numbers, rows k of 64
/// b    `k_major`, or `n_major` where kNMajor
template <Type kType, bool kNMajor = false, bool kMMajor = false, typename C, int kCount>
__device__ inline void multiply(C (&c)[kCount], Matrix a, Matrix b, int keep) {
  Instruction<2 * kCount>::template shared<kType, kNMajor, kMMajor>(c, a, b, keep);
}

/// The same with A in registers: of 16-bit numbers row 8 (r % 2) + t % 32 / 4 (+ 16 a warp) and
/// columns 8 (r / 2) + 2 (t % 4), + 1 in a[r]; of 8-bit numbers 16 (r / 2) + 4 (t % 4), ... + 3.
template <Type kType, bool kNMajor = false, int kCount>
__device__ inline void multiply(float (&c)[kCount], const uint32_t (&a)[4], Matrix b, int keep) {
  Instruction<2 * kCount>::template registers<kType, kNMajor>(c, a, b, keep);
}

}  // namespace fovea::kernels::wgmma
