#pragma once

namespace fovea::kernels {

/// Instruction sets that the CPU kernels are compiled for, the smallest first; each contains those
/// before it. All variants of a kernel give the same bits, except those of attention.
enum class Isa {
  baseline,     ///< what the compiler targets by default (SSE2 on x86-64)
  avx2,         ///< AVX2, FMA, F16C
  avx512,       ///< AVX-512 F, BW, DQ, VL; the last one for all kernels but attention's forward
  avx512_vnni,  ///< and dot products of 8-bit integers
  avx512_bf16,  ///< and of bfloat16
};

/// Whether this build has the variant and this processor can run it.
bool isa_available(Isa isa);

/// The largest available one that pays, determined once: some processors multiply bfloat16 at half
/// the rate of fp32, so that their dot products are measured (a fifth of a millisecond) and taken
/// only where they are faster.
Isa best_isa();

const char* isa_name(Isa isa);

}  // namespace fovea::kernels
