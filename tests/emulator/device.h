#pragma once

// What CUDA has built in, for kernels compiled as C++: included before everything else.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "tests/emulator/simt.h"

#define FOVEA_EMULATED 1

template <typename Result, typename... Parameters>
cudaError_t cudaFuncSetAttribute(Result (*kernel)(Parameters...), cudaFuncAttribute attribute,
                                 int value) {
  return cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), attribute, value);
}

// Each block has a thread of the system to itself. As `thread_local` may stand behind
// `extern` and makes variables of functions static.
#undef __shared__
#define __shared__ thread_local
#undef __launch_bounds__
#define __launch_bounds__(...)

#define threadIdx (::fovea::emulator::place().thread)
#define blockIdx (::fovea::emulator::place().block)
#define blockDim (::fovea::emulator::place().threads)
#define gridDim (::fovea::emulator::place().blocks)

using std::isinf;
using std::isnan;
using std::max;
using std::min;

namespace fovea::emulator {

template <typename Out, typename In>
Out bits_as(const In& in) {
  static_assert(sizeof(Out) == sizeof(In));
  Out out;
  std::memcpy(&out, &in, sizeof out);
  return out;
}

/// Each lane gets value(lane, in), where `in` has a pointer to what each gave.
template <typename Out, typename In, typename Value>
Out collected(uint32_t mask, const char* what, In in, const Value& value) {
  Out out{};
  collect(mask, what, &in, &out, [&](const void* const* all, void* const* results) {
    for (int lane = 0; lane < 32; ++lane) {
      if ((mask >> lane & 1) == 0) continue;
      *static_cast<Out*>(results[lane]) =
          value(lane, [&](int other) -> const In& { return *static_cast<const In*>(all[other]); });
    }
  });
  return out;
}

template <typename T, typename From>
T shuffled(uint32_t mask, const char* what, T x, int width, const From& from) {
  return collected<T>(mask, what, x, [&](int lane, const auto& in) {
    const int other = lane / width * width + from(lane % width);
    const bool inside = other >= lane / width * width && other < (lane / width + 1) * width;
    return in(inside ? other : lane);
  });
}

}  // namespace fovea::emulator

// Sources differ from lane to lane only for __shfl_sync; lanes give their own then.
template <typename T>
T __shfl_sync(uint32_t mask, T x, int source, int width = 32) {
  struct Gift {
    T x;
    int source;
  };
  return fovea::emulator::collected<T>(mask, "__shfl_sync", Gift{x, source},
                                       [&](int lane, const auto& in) {
                                         const int own = in(lane).source;
                                         return in(lane / width * width + own % width).x;
                                       });
}
template <typename T>
T __shfl_xor_sync(uint32_t mask, T x, int bits, int width = 32) {
  return fovea::emulator::shuffled(mask, "__shfl_xor_sync", x, width,
                                   [&](int lane) { return lane ^ bits; });
}
template <typename T>
T __shfl_up_sync(uint32_t mask, T x, int by, int width = 32) {
  return fovea::emulator::shuffled(mask, "__shfl_up_sync", x, width,
                                   [&](int lane) { return lane - by; });
}
template <typename T>
T __shfl_down_sync(uint32_t mask, T x, int by, int width = 32) {
  return fovea::emulator::shuffled(mask, "__shfl_down_sync", x, width,
                                   [&](int lane) { return lane + by; });
}
inline uint32_t __ballot_sync(uint32_t mask, int predicate) {
  return fovea::emulator::collected<uint32_t>(mask, "__ballot_sync", predicate,
                                              [&](int, const auto& in) {
                                                uint32_t out = 0;
                                                for (int lane = 0; lane < 32; ++lane) {
                                                  if ((mask >> lane & 1) != 0 && in(lane) != 0)
                                                    out |= 1u << lane;
                                                }
                                                return out;
                                              });
}
inline int __any_sync(uint32_t mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(uint32_t mask, int predicate) {
  return __ballot_sync(mask, predicate) == mask;
}
template <typename T>
uint32_t __match_any_sync(uint32_t mask, T x) {
  return fovea::emulator::collected<uint32_t>(
      mask, "__match_any_sync", x, [&](int own, const auto& in) {
        uint32_t out = 0;
        for (int lane = 0; lane < 32; ++lane) {
          if ((mask >> lane & 1) != 0 && in(lane) == in(own)) out |= 1u << lane;
        }
        return out;
      });
}
/// The lanes' values put together two by two.
template <typename T, typename Join>
T reduced(uint32_t mask, const char* what, T x, const Join& join) {
  return fovea::emulator::collected<T>(mask, what, x, [&](int, const auto& in) {
    T out = in(__builtin_ctz(mask));
    for (int lane = __builtin_ctz(mask) + 1; lane < 32; ++lane) {
      if ((mask >> lane & 1) != 0) out = join(out, in(lane));
    }
    return out;
  });
}
template <typename T>
T __reduce_add_sync(uint32_t mask, T x) {
  return reduced(mask, "__reduce_add_sync", x, [](T a, T b) { return a + b; });
}
template <typename T>
T __reduce_max_sync(uint32_t mask, T x) {
  return reduced(mask, "__reduce_max_sync", x, [](T a, T b) { return std::max(a, b); });
}
inline void __syncwarp(uint32_t mask = 0xffffffff) {
  fovea::emulator::collected<int>(mask, "__syncwarp", 0, [](int, const auto&) { return 0; });
}

inline void __syncthreads() { fovea::emulator::sync_all(); }
inline int __syncthreads_or(int predicate) {
  static thread_local int any;  // of the block
  if (fovea::emulator::thread_index() == 0) any = 0;
  __syncthreads();
  if (predicate != 0) any = 1;
  __syncthreads();
  const int out = any;
  __syncthreads();
  return out;
}
inline int __syncthreads_and(int predicate) { return !__syncthreads_or(predicate == 0); }
inline void __threadfence() {}
template <typename T>
void __stcs(T* to, T x) {
  *to = x;
}

template <typename T>
T atomicAdd(T* at, std::type_identity_t<T> x) {
  const T before = *at;
  *at = before + x;
  return before;
}
template <typename T>
T atomicMax(T* at, std::type_identity_t<T> x) {
  const T before = *at;
  *at = std::max(before, x);
  return before;
}
template <typename T>
T atomicOr(T* at, std::type_identity_t<T> x) {
  const T before = *at;
  *at = before | x;
  return before;
}

inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline int __float2int_rn(float a) {
  if (std::isnan(a)) return 0;
  return static_cast<int>(std::clamp(std::nearbyint(static_cast<double>(a)), -0x1p31, 0x1p31 - 1));
}
inline float __frcp_rn(float a) { return 1 / a; }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline float __expf(float x) { return std::exp(x); }
inline float rsqrtf(float x) { return 1 / std::sqrt(x); }
inline int __popc(uint32_t x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<uint32_t>(x)); }
inline uint32_t __float_as_uint(float x) { return fovea::emulator::bits_as<uint32_t>(x); }
inline int __float_as_int(float x) { return fovea::emulator::bits_as<int>(x); }
inline float __uint_as_float(uint32_t x) { return fovea::emulator::bits_as<float>(x); }
inline float __int_as_float(int x) { return fovea::emulator::bits_as<float>(x); }
