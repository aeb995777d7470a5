#pragma once

#include <cstdint>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/common/ptx.cuh"
#include "kernels/common/wgmma.cuh"

// What threads hold of results of wgmma.cuh, and what becomes of it.

namespace fovea::kernels::fragment {

/// Row of the first register of a thread among its warpgroup's 64; register i holds row + 8 where
/// i / 2 is odd.
__device__ inline int first_row(int thread) { return thread / 32 * 16 + thread % 32 / 4; }
/// Column of register i.
__device__ inline int column(int thread, int i) { return i / 4 * 8 + thread % 4 * 2 + i % 2; }

/// Two numbers, the first in the low half.
template <wgmma::Type kType>
__device__ inline uint32_t pack(float low, float high) {
  static_assert(kType == wgmma::Type::bf16 || kType == wgmma::Type::f16);
  return kType == wgmma::Type::bf16 ? ptx::pack_bf16(low, high) : ptx::pack_f16(low, high);
}

/// A result [64, 2 kCount] as the A of step `step`, 16 of its columns: exact for what the type
/// holds, rounded else.
template <wgmma::Type kType, int kCount>
__device__ inline void to_operand(const float (&c)[kCount], int step, uint32_t (&a)[4]) {
#pragma unroll
  for (int r = 0; r < 4; ++r) a[r] = pack<kType>(c[8 * step + 2 * r], c[8 * step + 2 * r + 1]);
}

/// The same in e4m3, 32 columns: the B has its rows in the order of `key_of_place` (e4m3.h), as a
/// thread's neighbours in A are not its neighbours in C.
template <int kCount>
__device__ inline void to_operand_e4m3(const float (&c)[kCount], int step, uint32_t (&a)[4]) {
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    const int i = 16 * step + 8 * (r / 2) + 2 * (r % 2);
    a[r] = ptx::pack_e4m3(c[i], c[i + 1], c[i + 4], c[i + 5]);
  }
}

/// Writes a result [64, 2 kCount] in 16-bit numbers to shared memory, as a warpgroup: rows of 64
/// columns, swizzled, in panels `panel_bytes` apart, as the copy engine stores them.
///
/// address  of the 64 rows, a multiple of 1024
template <wgmma::Type kType, int kCount>
__device__ inline void store(const float (&c)[kCount], uint32_t address, uint32_t panel_bytes,
                             int thread) {
  const int lane = thread % 32;
  const int row = thread / 32 * 16 + lane / 8 % 2 * 8 + lane % 8;
#pragma unroll
  for (int step = 0; step < kCount / 8; ++step) {
    const int unit = step % 4 * 2 + lane / 16;  // of 8 columns, within the panel
    const uint32_t place = step / 4 * panel_bytes + row * 128 + ((unit ^ (row % 8)) * 16);
    uint32_t bits[4];
    to_operand<kType>(c, step, bits);
    ptx::store_matrices(address + place, bits);
  }
}

/// Writes a result [64, 16 kSteps], as operands have it, transposed to shared memory, as a
/// warpgroup: for each of its columns a row of 64 numbers, swizzled.
///
/// address  of the rows, a multiple of 1024
template <int kSteps>
__device__ inline void store_transposed(const uint32_t (&a)[kSteps][4], uint32_t address,
                                        int thread) {
  const int lane = thread % 32, row = lane / 16 * 8 + lane % 8;
  const int unit = thread / 32 * 2 + lane / 8 % 2;  // of 8 numbers
  const uint32_t at = address + row * 128 + (unit ^ lane % 8) * 16;
#pragma unroll
  for (int step = 0; step < kSteps; ++step) ptx::store_transposed(at + step * 2048, a[step]);
}

}  // namespace fovea::kernels::fragment
