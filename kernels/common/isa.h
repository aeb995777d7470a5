#pragma once

namespace fovea::kernels {

/// Instruction sets that the CPU kernels are compiled for, the smallest first. All variants of a
/// kernel give the same bits, except those of attention.
enum class Isa {
  baseline,  ///< what the compiler targets by default (SSE2 on x86-64)
  avx2,      ///< AVX2, FMA, F16C
  avx512,    ///< AVX-512 F, BW, DQ, VL
};

/// Whether this build has the variant and this processor can run it.
bool isa_available(Isa isa);

/// The largest available one, determined once.
Isa best_isa();

const char* isa_name(Isa isa);

}  // namespace fovea::kernels
