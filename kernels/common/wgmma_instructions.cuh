#pragma once

#include <cstdint>

#include "kernels/common/wgmma_types.cuh"

// The instructions behind wgmma.cuh.

namespace fovea::kernels::wgmma {

__device__ inline void fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
/// Until at most the last `kGroups` groups are still under way.
template <int kGroups>
__device__ inline void wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kGroups) : "memory");
}

// The instruction's text names all registers of C by their places in the operand list: FOVEA_P40 is
// "%0, %1, ... %39", FOVEA_C40 their operands. What follows them has the places 40, 41, ...
#define FOVEA_T(T)                                                                       \
  "%" #T "0, %" #T "1, %" #T "2, %" #T "3, %" #T "4, %" #T "5, %" #T "6, %" #T "7, %" #T \
  "8, "                                                                                  \
  "%" #T "9"
#define FOVEA_P16 FOVEA_T() ", %10, %11, %12, %13, %14, %15"
#define FOVEA_P32 FOVEA_T() ", " FOVEA_T(1) ", " FOVEA_T(2) ", %30, %31"
#define FOVEA_P36 FOVEA_P32 ", %32, %33, %34, %35"
#define FOVEA_P40 FOVEA_T() ", " FOVEA_T(1) ", " FOVEA_T(2) ", " FOVEA_T(3)
#define FOVEA_P48 FOVEA_P40 ", %40, %41, %42, %43, %44, %45, %46, %47"
#define FOVEA_P64 FOVEA_P40 ", " FOVEA_T(4) ", " FOVEA_T(5) ", %60, %61, %62, %63"
#define FOVEA_P80 FOVEA_P40 ", " FOVEA_T(4) ", " FOVEA_T(5) ", " FOVEA_T(6) ", " FOVEA_T(7)
#define FOVEA_P88 FOVEA_P80 ", %80, %81, %82, %83, %84, %85, %86, %87"
#define FOVEA_P96 FOVEA_P80 ", " FOVEA_T(8) ", %90, %91, %92, %93, %94, %95"
#define FOVEA_C8(KIND, I)                                                                     \
  KIND(c[I]), KIND(c[I + 1]), KIND(c[I + 2]), KIND(c[I + 3]), KIND(c[I + 4]), KIND(c[I + 5]), \
      KIND(c[I + 6]), KIND(c[I + 7])
#define FOVEA_C16(KIND) FOVEA_C8(KIND, 0), FOVEA_C8(KIND, 8)
#define FOVEA_C32(KIND) FOVEA_C16(KIND), FOVEA_C8(KIND, 16), FOVEA_C8(KIND, 24)
#define FOVEA_C36(KIND) FOVEA_C32(KIND), KIND(c[32]), KIND(c[33]), KIND(c[34]), KIND(c[35])
#define FOVEA_C40(KIND) FOVEA_C32(KIND), FOVEA_C8(KIND, 32)
#define FOVEA_C48(KIND) FOVEA_C40(KIND), FOVEA_C8(KIND, 40)
#define FOVEA_C64(KIND) FOVEA_C48(KIND), FOVEA_C8(KIND, 48), FOVEA_C8(KIND, 56)
#define FOVEA_C80(KIND) FOVEA_C64(KIND), FOVEA_C8(KIND, 64), FOVEA_C8(KIND, 72)
#define FOVEA_C88(KIND) FOVEA_C80(KIND), FOVEA_C8(KIND, 80)
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
    template <Type kType, bool kNMajor, bool kMMajor>                                             \
    __device__ static void shared(Accumulator<kType> (&c)[COUNT], Matrix a, Matrix b, int keep) { \
      if constexpr (kType == Type::bf16) {                                                        \
        asm volatile(FOVEA_WGMMA_TEXT(P2, P0, P1, "m64n" #N "k16.f32.bf16.bf16", FOVEA_P##COUNT,  \
                                      "a, b, keep, 1, 1, %" #P4 ", %" #P3)                        \
                     : FOVEA_C##COUNT(FOVEA_FLOAT)                                                \
                     : "r"(a.bits), "r"(b.bits), "r"(keep), "n"(kNMajor), "n"(kMMajor));          \
      } else if constexpr (kType == Type::f16) {                                                  \
        asm volatile(FOVEA_WGMMA_TEXT(P2, P0, P1, "m64n" #N "k16.f32.f16.f16", FOVEA_P##COUNT,    \
                                      "a, b, keep, 1, 1, %" #P4 ", %" #P3)                        \
                     : FOVEA_C##COUNT(FOVEA_FLOAT)                                                \
                     : "r"(a.bits), "r"(b.bits), "r"(keep), "n"(kNMajor), "n"(kMMajor));          \
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

template <int kN>
struct Instruction;
FOVEA_WGMMA(32, 16, 16, 17, 18, 19, 20, 21, 22)
FOVEA_WGMMA(64, 32, 32, 33, 34, 35, 36, 37, 38)
FOVEA_WGMMA(72, 36, 36, 37, 38, 39, 40, 41, 42)
FOVEA_WGMMA(80, 40, 40, 41, 42, 43, 44, 45, 46)
FOVEA_WGMMA(96, 48, 48, 49, 50, 51, 52, 53, 54)
FOVEA_WGMMA(128, 64, 64, 65, 66, 67, 68, 69, 70)
FOVEA_WGMMA(160, 80, 80, 81, 82, 83, 84, 85, 86)
FOVEA_WGMMA(176, 88, 88, 89, 90, 91, 92, 93, 94)
FOVEA_WGMMA(192, 96, 96, 97, 98, 99, 100, 101, 102)

#undef FOVEA_WGMMA
#undef FOVEA_WGMMA_TEXT
#undef FOVEA_FLOAT
#undef FOVEA_INT
#undef FOVEA_T
#undef FOVEA_C8
#undef FOVEA_C16
#undef FOVEA_C32
#undef FOVEA_C36
#undef FOVEA_C40
#undef FOVEA_C48
#undef FOVEA_C64
#undef FOVEA_C80
#undef FOVEA_C88
#undef FOVEA_C96
#undef FOVEA_P16
#undef FOVEA_P32
#undef FOVEA_P36
#undef FOVEA_P40
#undef FOVEA_P48
#undef FOVEA_P64
#undef FOVEA_P80
#undef FOVEA_P88
#undef FOVEA_P96

}  // namespace fovea::kernels::wgmma
