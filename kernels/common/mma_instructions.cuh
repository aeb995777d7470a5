#pragma once

#include <cstdint>

#include "kernels/common/ptx.cuh"
#include "kernels/common/wgmma_types.cuh"

// The instructions of mma.cuh.

namespace fovea::kernels::mma {

using wgmma::Type;

/// c[at .. at + 3] += A · B of 16-bit numbers, K = 16.
template <Type kType, int kCount>
__device__ inline void multiply(float (&c)[kCount], int at, const uint32_t (&a)[4], uint32_t b0,
                                uint32_t b1) {
  if constexpr (kType == Type::bf16) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, "
        "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[at]), "+f"(c[at + 1]), "+f"(c[at + 2]), "+f"(c[at + 3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    static_assert(kType == Type::f16, "C is fp32 for 16-bit numbers");
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, "
        "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[at]), "+f"(c[at + 1]), "+f"(c[at + 2]), "+f"(c[at + 3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

/// The same of 8-bit integers, exact, K = 32.
template <int kCount>
__device__ inline void multiply(int32_t (&c)[kCount], int at, const uint32_t (&a)[4], uint32_t b0,
                                uint32_t b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, "
      "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(c[at]), "+r"(c[at + 1]), "+r"(c[at + 2]), "+r"(c[at + 3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// Four matrices of 8 rows of 16 bytes: lane l gives the address of row l % 8 of matrix l / 8, and
/// gets of each matrix the 4 bytes from 4 (l % 4) on of row l / 4.
__device__ inline void load_matrices(uint32_t row_address, uint32_t (&out)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(row_address)
               : "memory");
}

/// The same of 16-bit numbers, transposed: rows 2 (l % 4) and + 1 of column l / 4.
__device__ inline void load_transposed(uint32_t row_address, uint32_t (&out)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(row_address)
               : "memory");
}

// ---- Copies from global to shared memory that run on while the thread goes on -------------------

/// 16 bytes, both at multiples of 16; zeros, and nothing is read, where not `there`.
__device__ inline void copy16(uint32_t shared, const void* global, bool there) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(shared), "l"(global),
               "r"(there ? 16 : 0)
               : "memory");
}

/// 4 bytes, likewise.
__device__ inline void copy4(uint32_t shared, const void* global, bool there) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared), "l"(global),
               "r"(there ? 4 : 0)
               : "memory");
}

/// Arrives at a barrier (ptx.cuh) when this thread's copies so far are there, whose threads wait no
/// further for them: one of its arrivals.
__device__ inline void arrive_with_copies(uint64_t* barrier) {
  asm volatile(
      "cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(ptx::shared_address(barrier))
      : "memory");
}

/// This thread's copies so far form a group.
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

/// Until at most the last `kGroups` groups of this thread are still under way. Others see the rest
/// after a barrier.
template <int kGroups>
__device__ inline void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
}

}  // namespace fovea::kernels::mma
