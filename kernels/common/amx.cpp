#include "kernels/common/amx.h"

#include <cstdint>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace fovea::kernels {
namespace {

#if defined(__x86_64__)
/// Whether the operating system saves the tiles: bits 17 and 18 of the register that says so.
bool tiles_are_saved() {
  uint32_t a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid(1, &a, &b, &c, &d) || (c >> 27 & 1) == 0) return false;
  uint32_t low = 0, high = 0;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (low >> 17 & 3) == 3;
}
#endif

}  // namespace

bool has_amx([[maybe_unused]] DType dtype) {
#if defined(__x86_64__)
  uint32_t a = 0, b = 0, c = 0, d = 0;
  if (!tiles_are_saved() || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  const bool tiles = (d >> 24 & 1) != 0, bf16 = (d >> 22 & 1) != 0;
  if (dtype == DType::bf16) return tiles && bf16;
  if (dtype != DType::f16 || !__get_cpuid_count(7, 1, &a, &b, &c, &d)) return false;
  return tiles && (a >> 21 & 1) != 0;
#else
  return false;
#endif
}

}  // namespace fovea::kernels
