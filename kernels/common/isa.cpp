#include "kernels/common/isa.h"

#include <algorithm>
#include <chrono>
#include <cstdint>

namespace fovea::kernels {

#if FOVEA_X86_VARIANTS
namespace {

// Eight sums, so that neither loop waits for one; the empty assembly hides that they are equal.
typedef float Sixteen __attribute__((vector_size(64)));
typedef short ThirtyTwo __attribute__((vector_size(64)));

#define FOVEA_RATE_LOOP(name, features, step)                                                \
  __attribute__((target(features), noinline)) float name(int64_t rounds) {                   \
    Sixteen s0 = {}, s1 = {}, s2 = {}, s3 = {}, s4 = {}, s5 = {}, s6 = {}, s7 = {}, x = {};  \
    asm volatile("" : "+v"(s0), "+v"(s1), "+v"(s2), "+v"(s3), "+v"(s4), "+v"(s5), "+v"(s6)); \
    asm volatile("" : "+v"(s7), "+v"(x));                                                    \
    for (int64_t i = 0; i < rounds; ++i) {                                                   \
      s0 = step(s0), s1 = step(s1), s2 = step(s2), s3 = step(s3);                            \
      s4 = step(s4), s5 = step(s5), s6 = step(s6), s7 = step(s7);                            \
    }                                                                                        \
    return (s0 + s1 + s2 + s3 + s4 + s5 + s6 + s7)[0];                                       \
  }
#define FOVEA_FMA_STEP(sum) (sum * x + x)
#if defined(__clang__)
typedef int SixteenWords __attribute__((vector_size(64)));
#define FOVEA_DOT_STEP(sum) __builtin_ia32_dpbf16ps_512(sum, (SixteenWords)x, (SixteenWords)x)
#else
#define FOVEA_DOT_STEP(sum) \
  ((Sixteen)__builtin_ia32_dpbf16ps_v16sf(sum, (ThirtyTwo)x, (ThirtyTwo)x))
#endif
FOVEA_RATE_LOOP(fma_loop, "avx512f", FOVEA_FMA_STEP)
FOVEA_RATE_LOOP(dot_loop, "avx512f,avx512bw,avx512bf16", FOVEA_DOT_STEP)

bool bf16_dots_pay() {
  constexpr int64_t kRounds = 2000;
  const auto seconds = [](float (*loop)(int64_t)) {
    const auto start = std::chrono::steady_clock::now();
    volatile float kept = loop(kRounds);
    (void)kept;
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
  double fma = 1, dot = 1;
  for (int i = 0; i < 10; ++i) {
    fma = std::min(fma, seconds(fma_loop));
    dot = std::min(dot, seconds(dot_loop));
  }
  return dot < 1.5 * fma;  // a dot product is two multiply-adds
}

}  // namespace
#endif

bool isa_available(Isa isa) {
  if (isa == Isa::baseline) return true;
#if FOVEA_X86_VARIANTS
  // __builtin_cpu_supports includes the check that the operating system saves the registers.
  if (isa == Isa::avx2) {
#if defined(__clang__)  // 14 does not know f16c, which every processor with AVX2 has
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("f16c");
#endif
  }
  const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  const bool has_vnni = has_avx512 && __builtin_cpu_supports("avx512vnni");
  if (isa == Isa::avx512_bf16) return has_vnni && __builtin_cpu_supports("avx512bf16");
  return isa == Isa::avx512_vnni ? has_vnni : has_avx512;
#else
  return false;
#endif
}

Isa best_isa() {
  static const Isa best = [] {
#if FOVEA_X86_VARIANTS
    if (isa_available(Isa::avx512_bf16) && bf16_dots_pay()) return Isa::avx512_bf16;
    for (const Isa isa : {Isa::avx512_vnni, Isa::avx512, Isa::avx2}) {
      if (isa_available(isa)) return isa;
    }
#endif
    return Isa::baseline;
  }();
  return best;
}

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::baseline:
      return "baseline";
    case Isa::avx2:
      return "AVX2";
    case Isa::avx512:
      return "AVX-512";
    case Isa::avx512_vnni:
      return "AVX-512-VNNI";
    case Isa::avx512_bf16:
      return "AVX-512-BF16";
  }
  return "?";
}

}  // namespace fovea::kernels
