#pragma once

#include <cstdint>
#include <type_traits>

#include "kernels/common/ptx.cuh"

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

__device__ inline void fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
/// Until at most the last `kGroups` groups are still under way.
template <int kGroups>
__device__ inline void wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kGroups) : "memory");
}

/// Keeps the compiler from moving reads or writes of registers across this place.
template <int kCount>
__device__ inline void pin(float (&c)[kCount]) {
#pragma unroll
  for (float& x : c) asm volatile("" : "+f"(x)::"memory");
}
template <int kCount>
__device__ inline void pin(int32_t (&c)[kCount]) {
#pragma unroll
  for (int32_t& x : c) asm volatile("" : "+r"(x)::"memory");
}

/// Element types of A and B. C is fp32, of s8 int32.
enum class Type { bf16, f16, e4m3, s8 };

/// Bytes from one instruction's part of a row of A or B to the next one's.
constexpr int kStepBytes = 32;

/// A matrix in shared memory, as instructions want it told but for what all of them have in common:
/// rows of 128 bytes, 8 of them 1024 bytes, with the copy engine's 128-byte swizzle.
struct Matrix {
  uint32_t bits;

  /// The same one, so many bytes further. Loops start from one that they keep: to make it anew
  /// takes several times as many instructions, which the matrix units wait for.
  __device__ Matrix further(uint32_t bytes) const { return {bits + (bytes >> 4)}; }
  /// The same one of `k_major` as one of `n_major`, whose panels lie so far apart.
  __device__ Matrix by_columns(uint32_t panel_bytes) const {
    return {bits + ((panel_bytes >> 4) << 16)};
  }
};

/// One whose rows along K are contiguous. Its pattern begins at a multiple of 1024; a step along K
/// is `kStepBytes` further, and 64 16-bit numbers further begins another such matrix.
__device__ inline Matrix k_major(uint32_t address) {
  Matrix out{(address & 0x3ffff) >> 4};
  asm volatile("" : "+r"(out.bits));  // is kept
  return out;
}

/// One of 16-bit numbers whose rows along N are contiguous: rows k of 64 columns, in panels that
/// lie `panel_bytes` apart. A step of 16 along K is 2048 bytes further.
__device__ inline Matrix n_major(uint32_t address, uint32_t panel_bytes) {
  Matrix out{(address & 0x3ffff) >> 4 | (panel_bytes >> 4) << 16};
  asm volatile("" : "+r"(out.bits));
  return out;
}

// The instruction's text names all registers of C by their places in the operand list: FOVEA_P40 is
// "%0, %1, ... %39", FOVEA_C40 their operands. What follows them has the places 40, 41, ...
#define FOVEA_T(T)                                                                       \
  "%" #T "0, %" #T "1, %" #T "2, %" #T "3, %" #T "4, %" #T "5, %" #T "6, %" #T "7, %" #T \
  "8, "                                                                                  \
  "%" #T "9"
#define FOVEA_P16 FOVEA_T() ", %10, %11, %12, %13, %14, %15"
#define FOVEA_P32 FOVEA_T() ", " FOVEA_T(1) ", " FOVEA_T(2) ", %30, %31"
#define FOVEA_P40 FOVEA_T() ", " FOVEA_T(1) ", " FOVEA_T(2) ", " FOVEA_T(3)
#define FOVEA_P48 FOVEA_P40 ", %40, %41, %42, %43, %44, %45, %46, %47"
#define FOVEA_P64 FOVEA_P40 ", " FOVEA_T(4) ", " FOVEA_T(5) ", %60, %61, %62, %63"
#define FOVEA_P80 FOVEA_P40 ", " FOVEA_T(4) ", " FOVEA_T(5) ", " FOVEA_T(6) ", " FOVEA_T(7)
#define FOVEA_P96 FOVEA_P80 ", " FOVEA_T(8) ", %90, %91, %92, %93, %94, %95"
#define FOVEA_C8(KIND, I)                                                                     \
  KIND(c[I]), KIND(c[I + 1]), KIND(c[I + 2]), KIND(c[I + 3]), KIND(c[I + 4]), KIND(c[I + 5]), \
      KIND(c[I + 6]), KIND(c[I + 7])
#define FOVEA_C16(KIND) FOVEA_C8(KIND, 0), FOVEA_C8(KIND, 8)
#define FOVEA_C32(KIND) FOVEA_C16(KIND), FOVEA_C8(KIND, 16), FOVEA_C8(KIND, 24)
#define FOVEA_C40(KIND) FOVEA_C32(KIND), FOVEA_C8(KIND, 32)
#define FOVEA_C48(KIND) FOVEA_C40(KIND), FOVEA_C8(KIND, 40)
#define FOVEA_C64(KIND) FOVEA_C48(KIND), FOVEA_C8(KIND, 48), FOVEA_C8(KIND, 56)
#define FOVEA_C80(KIND) FOVEA_C64(KIND), FOVEA_C8(KIND, 64), FOVEA_C8(KIND, 72)
#define FOVEA_C96(KIND) FOVEA_C80(KIND), FOVEA_C8(KIND, 80), FOVEA_C8(KIND, 88)
#define FOVEA_FLOAT(X) "+f"(X)
#define FOVEA_INT(X) "+r"(X)

// The upper half of a matrix: 1 << 30 for the swizzle, 1024 / 16 from 8 rows to the next.
#define FOVEA_WGMMA_TEXT(KEEP, A, B, SHAPE, C, OPERANDS)                                     \
  "{\n.reg .pred keep;\n.reg .b64 a, b;\nsetp.ne.b32 keep, %" #KEEP ", 0;\nmov.b64 a, {%" #A \
  ", 0x40000040};\nmov.b64 b, {%" #B                                                         \
  ", 0x40000040};\n"                                                                         \
  "wgmma.mma_async.sync.aligned." SHAPE " {" C "}, " OPERANDS ";\n}\n"

// All instructions of one N: COUNT registers of C, then the places of six more operands.
#define FOVEA_WGMMA(N, COUNT, P0, P1, P2, P3, P4, P5, P6)                                         \
  template <>                                                                                     \
  struct Instruction<N> {                                                                         \
    template <Type kType, bool kNMajor>                                                           \
    __device__ static void shared(Accumulator<kType> (&c)[COUNT], Matrix a, Matrix b, int keep) { \
      if constexpr (kType == Type::bf16) {                                                        \
        asm volatile(FOVEA_WGMMA_TEXT(P2, P0, P1, "m64n" #N "k16.f32.bf16.bf16", FOVEA_P##COUNT,  \
                                      "a, b, keep, 1, 1, 0, %" #P3)                               \
                     : FOVEA_C##COUNT(FOVEA_FLOAT)                                                \
                     : "r"(a.bits), "r"(b.bits), "r"(keep), "n"(kNMajor));                        \
      } else if constexpr (kType == Type::f16) {                                                  \
        asm volatile(FOVEA_WGMMA_TEXT(P2, P0, P1, "m64n" #N "k16.f32.f16.f16", FOVEA_P##COUNT,    \
                                      "a, b, keep, 1, 1, 0, %" #P3)                               \
                     : FOVEA_C##COUNT(FOVEA_FLOAT)                                                \
                     : "r"(a.bits), "r"(b.bits), "r"(keep), "n"(kNMajor));                        \
      } else if constexpr (kType == Type::e4m3) {                                                 \
        asm volatile(FOVEA_WGMMA_TEXT(P2, P0, P1, "m64n" #N "k32.f32.e4m3.e4m3", FOVEA_P##COUNT,  \
                                      "a, b, keep, 1, 1")                                         \
                     : FOVEA_C##COUNT(FOVEA_FLOAT)                                                \
                     : "r"(a.bits), "r"(b.bits), "r"(keep));                                      \
      } else {                                                                                    \
        asm volatile(                                                                             \
            FOVEA_WGMMA_TEXT(P2, P0, P1, "m64n" #N "k32.s32.s8.s8", FOVEA_P##COUNT, "a, b, keep") \
            : FOVEA_C##COUNT(FOVEA_INT)                                                           \
            : "r"(a.bits), "r"(b.bits), "r"(keep));                                               \
      }                                                                                           \
    }                                                                                             \
    template <Type kType, bool kNMajor>                                                           \
    __device__ static void registers(float (&c)[COUNT], const uint32_t (&a)[4], Matrix b,         \
                                     int keep) {                                                  \
      if constexpr (kType == Type::bf16) {                                                        \
        asm volatile(                                                                             \
            FOVEA_WGMMA_TEXT(P5, P4, P4, "m64n" #N "k16.f32.bf16.bf16", FOVEA_P##COUNT,           \
                             "{%" #P0 ", %" #P1 ", %" #P2 ", %" #P3 "}, b, keep, 1, 1, %" #P6)    \
            : FOVEA_C##COUNT(FOVEA_FLOAT)                                                         \
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b.bits), "r"(keep), "n"(kNMajor));  \
      } else if constexpr (kType == Type::f16) {                                                  \
        asm volatile(                                                                             \
            FOVEA_WGMMA_TEXT(P5, P4, P4, "m64n" #N "k16.f32.f16.f16", FOVEA_P##COUNT,             \
                             "{%" #P0 ", %" #P1 ", %" #P2 ", %" #P3 "}, b, keep, 1, 1, %" #P6)    \
            : FOVEA_C##COUNT(FOVEA_FLOAT)                                                         \
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b.bits), "r"(keep), "n"(kNMajor));  \
      } else {                                                                                    \
        static_assert(kType == Type::e4m3, "A in registers is a float");                          \
        asm volatile(FOVEA_WGMMA_TEXT(P5, P4, P4, "m64n" #N "k32.f32.e4m3.e4m3", FOVEA_P##COUNT,  \
                                      "{%" #P0 ", %" #P1 ", %" #P2 ", %" #P3 "}, b, keep, 1, 1")  \
                     : FOVEA_C##COUNT(FOVEA_FLOAT)                                                \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b.bits), "r"(keep));       \
      }                                                                                           \
    }                                                                                             \
  };

template <Type kType>
using Accumulator = std::conditional_t<kType == Type::s8, int32_t, float>;

template <int kN>
struct Instruction;
FOVEA_WGMMA(32, 16, 16, 17, 18, 19, 20, 21, 22)
FOVEA_WGMMA(64, 32, 32, 33, 34, 35, 36, 37, 38)
FOVEA_WGMMA(80, 40, 40, 41, 42, 43, 44, 45, 46)
FOVEA_WGMMA(96, 48, 48, 49, 50, 51, 52, 53, 54)
FOVEA_WGMMA(128, 64, 64, 65, 66, 67, 68, 69, 70)
FOVEA_WGMMA(160, 80, 80, 81, 82, 83, 84, 85, 86)
FOVEA_WGMMA(192, 96, 96, 97, 98, 99, 100, 101, 102)

/// C += A · B with A and B in shared memory; `keep` 0: C = A · B.
///
/// c    [N / 2], fp32 or int32
/// a    `k_major`
/// b    `k_major`, or `n_major` where kNMajor
template <Type kType, bool kNMajor = false, typename C, int kCount>
__device__ inline void multiply(C (&c)[kCount], Matrix a, Matrix b, int keep) {
  Instruction<2 * kCount>::template shared<kType, kNMajor>(c, a, b, keep);
}

/// The same with A in registers: of 16-bit numbers row 8 (r % 2) + t % 32 / 4 (+ 16 a warp) and
/// columns 8 (r / 2) + 2 (t % 4), + 1 in a[r]; of 8-bit numbers 16 (r / 2) + 4 (t % 4), ... + 3.
template <Type kType, bool kNMajor = false, int kCount>
__device__ inline void multiply(float (&c)[kCount], const uint32_t (&a)[4], Matrix b, int keep) {
  Instruction<2 * kCount>::template registers<kType, kNMajor>(c, a, b, keep);
}

#undef FOVEA_WGMMA
#undef FOVEA_WGMMA_TEXT
#undef FOVEA_FLOAT
#undef FOVEA_INT
#undef FOVEA_T
#undef FOVEA_C8
#undef FOVEA_C16
#undef FOVEA_C32
#undef FOVEA_C40
#undef FOVEA_C48
#undef FOVEA_C64
#undef FOVEA_C80
#undef FOVEA_C96
#undef FOVEA_P16
#undef FOVEA_P32
#undef FOVEA_P40
#undef FOVEA_P48
#undef FOVEA_P64
#undef FOVEA_P80
#undef FOVEA_P96

}  // namespace fovea::kernels::wgmma
