#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

// 8-bit floats of 4 exponent and 3 fraction bits on the CPU: up to 448, no infinity.

namespace fovea::kernels {

/// The key of each 16 whose value lies at `place` of them in transposed values: matrix units take
/// softmax weights from registers in this order.
constexpr int key_of_place(int place) { return place % 2 + place / 2 % 2 * 8 + place / 4 * 2; }

/// The nearest number, halves to even; what is too large becomes 448, NaN stays NaN.
inline uint8_t to_e4m3(float x) {
  const auto sign = static_cast<uint8_t>(std::bit_cast<uint32_t>(x) >> 31 << 7);
  if (std::isnan(x)) return 0x7f;
  const float size = std::fabs(x);
  if (size >= 448) return sign | 0x7e;
  // Numbers around x are 2^step apart.
  const int exponent = size < 0x1p-6f ? -6 : std::ilogb(size);
  const auto units = static_cast<int>(std::nearbyint(std::ldexp(size, 3 - exponent)));
  // 8 units and more have an exponent; 16 are the next one's 8.
  return static_cast<uint8_t>(sign | (units + (exponent + 6) * 8));
}

inline float from_e4m3(uint8_t bits) {
  const int exponent = bits >> 3 & 15, fraction = bits & 7;
  if ((bits & 0x7f) == 0x7f) return NAN;
  const float size = exponent == 0 ? std::ldexp(static_cast<float>(fraction), -9)
                                   : std::ldexp(static_cast<float>(8 + fraction), exponent - 10);
  return bits & 0x80 ? -size : size;
}

}  // namespace fovea::kernels
