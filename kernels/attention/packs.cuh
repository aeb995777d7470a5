#pragma once

#include <cstdint>
#include <type_traits>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace fovea::kernels {

constexpr int kPackChannels = 8;

/// Channels of a row as one thread reads them, 16 bytes or twice as many.
template <typename T>
struct alignas(16) Pack {
  uint32_t words[kPackChannels * sizeof(T) / 4];

  __device__ void widen(float (&x)[kPackChannels]) const {
#pragma unroll
    for (int i = 0; i < kPackChannels / 2; ++i) {
      if constexpr (std::is_same_v<T, float>) {
        x[2 * i] = __uint_as_float(words[2 * i]);
        x[2 * i + 1] = __uint_as_float(words[2 * i + 1]);
      } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
        x[2 * i] = __uint_as_float(words[i] << 16);
        x[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
      } else {
        x[2 * i] = __half2float(__ushort_as_half(static_cast<uint16_t>(words[i])));
        x[2 * i + 1] = __half2float(__ushort_as_half(static_cast<uint16_t>(words[i] >> 16)));
      }
    }
  }
};

}  // namespace fovea::kernels
