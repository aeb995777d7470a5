#pragma once

#include <cstdint>
#include <type_traits>

namespace fovea::kernels::wgmma {

/// Element types of A and B. C is fp32, of s8 int32.
enum class Type { bf16, f16, e4m3, s8 };

template <Type kType>
using Accumulator = std::conditional_t<kType == Type::s8, int32_t, float>;

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

}  // namespace fovea::kernels::wgmma
