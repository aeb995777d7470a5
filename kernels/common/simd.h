#pragma once

// Sixteen fp32 or fp64 values at a time on the vector registers of the instruction set that the
// including file is compiled for. The grouping in sixteens is the same everywhere, and so are the
// bits of every result. Only files named *_cpu.cpp include this; they set FOVEA_ISA.

#include <cstdint>
#include <cstring>

#if defined(__F16C__)
#include <immintrin.h>
#endif

#include "kernels/common/half.h"
#include "kernels/common/tensor_view.h"

namespace fovea::kernels::FOVEA_ISA {
namespace {

#if defined(__AVX512F__)
#define FOVEA_VECTOR_FLOATS 16
#elif defined(__AVX2__)
#define FOVEA_VECTOR_FLOATS 8
#else
#define FOVEA_VECTOR_FLOATS 4
#endif

constexpr int kLanes = 16;
constexpr int kWidth = FOVEA_VECTOR_FLOATS;
constexpr int kParts = kLanes / kWidth;

// One register of fp32, of fp64, of 32-bit words, and the half-size ones that widen into them.
typedef float Float __attribute__((vector_size(kWidth * 4)));
typedef double Double __attribute__((vector_size(kWidth * 4)));
typedef uint32_t Word __attribute__((vector_size(kWidth * 4)));
typedef int32_t SignedWord __attribute__((vector_size(kWidth * 4)));
typedef uint16_t HalfWord __attribute__((vector_size(kWidth * 2)));
typedef float HalfFloat __attribute__((vector_size(kWidth * 2)));

struct Floats {
  Float part[kParts];
};

struct Doubles {
  Double part[2 * kParts] = {};
};

inline Floats broadcast(float value) {
  Floats out;
  for (Float& part : out.part) part = value - Float{};
  return out;
}

inline Floats operator+(const Floats& a, const Floats& b) {
  Floats out;
  for (int i = 0; i < kParts; ++i) out.part[i] = a.part[i] + b.part[i];
  return out;
}

inline Floats operator*(const Floats& a, const Floats& b) {
  Floats out;
  for (int i = 0; i < kParts; ++i) out.part[i] = a.part[i] * b.part[i];
  return out;
}

inline Doubles operator+(const Doubles& a, const Doubles& b) {
  Doubles out;
  for (int i = 0; i < 2 * kParts; ++i) out.part[i] = a.part[i] + b.part[i];
  return out;
}

inline Doubles operator-(const Doubles& a, double b) {
  Doubles out;
  for (int i = 0; i < 2 * kParts; ++i) out.part[i] = a.part[i] - b;
  return out;
}

inline Doubles operator*(const Doubles& a, const Doubles& b) {
  Doubles out;
  for (int i = 0; i < 2 * kParts; ++i) out.part[i] = a.part[i] * b.part[i];
  return out;
}

inline Doubles square(const Doubles& a) {
  Doubles out;
  for (int i = 0; i < 2 * kParts; ++i) out.part[i] = a.part[i] * a.part[i];
  return out;
}

/// The sum in a fixed order: lanes k and k + 8, then k and k + 4, and so on.
inline double sum(const Doubles& a) {
  double lanes[kLanes];
  std::memcpy(lanes, a.part, sizeof(lanes));
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

inline Doubles widen(const Floats& a) {
  Doubles out;
  for (int i = 0; i < kParts; ++i) {
    HalfFloat halves[2];
    std::memcpy(halves, &a.part[i], sizeof(halves));
    out.part[2 * i] = __builtin_convertvector(halves[0], Double);
    out.part[2 * i + 1] = __builtin_convertvector(halves[1], Double);
  }
  return out;
}

inline Floats narrow(const Doubles& a) {
  Floats out;
  for (int i = 0; i < kParts; ++i) {
    const HalfFloat halves[2] = {__builtin_convertvector(a.part[2 * i], HalfFloat),
                                 __builtin_convertvector(a.part[2 * i + 1], HalfFloat)};
    std::memcpy(&out.part[i], halves, sizeof(halves));
  }
  return out;
}

// Part by part: gcc copies the whole array through the stack, in pieces of another size.
inline Floats load(const float* from) {
  Floats out;
  for (int i = 0; i < kParts; ++i) std::memcpy(&out.part[i], from + i * kWidth, sizeof(Float));
  return out;
}

inline void store(float* to, const Floats& a) {
  for (int i = 0; i < kParts; ++i) std::memcpy(to + i * kWidth, &a.part[i], sizeof(Float));
}

inline Floats load(const BFloat16* from) {
  Floats out;
  for (int i = 0; i < kParts; ++i) {
    HalfWord bits;
    std::memcpy(&bits, from + i * kWidth, sizeof(bits));
    const Word words = __builtin_convertvector(bits, Word) << 16;
    std::memcpy(&out.part[i], &words, sizeof(words));
  }
  return out;
}

inline void store(BFloat16* to, const Floats& a) {
  for (int i = 0; i < kParts; ++i) {
    Word words;
    std::memcpy(&words, &a.part[i], sizeof(words));
    const Word rounded = (words + 0x7fffu + ((words >> 16) & 1u)) >> 16;
    const Word quiet_nan = (words >> 16) | 0x40u;
    // Signed comparison: the sign bit is masked off, and AVX2 has no unsigned one.
    const SignedWord is_nan = (SignedWord)(words & 0x7fffffffu) > 0x7f800000;
    const Word chosen = (quiet_nan & (Word)is_nan) | (rounded & ~(Word)is_nan);
    const HalfWord bits = __builtin_convertvector(chosen, HalfWord);
    std::memcpy(to + i * kWidth, &bits, sizeof(bits));
  }
}

#if FOVEA_VECTOR_FLOATS == 16
inline Floats load(const Half* from) {
  __m256i bits;
  std::memcpy(&bits, from, sizeof(bits));
  return {{_mm512_cvtph_ps(bits)}};
}

inline void store(Half* to, const Floats& a) {
  const __m256i bits = _mm512_cvtps_ph(a.part[0], _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  std::memcpy(to, &bits, sizeof(bits));
}
#elif FOVEA_VECTOR_FLOATS == 8
inline Floats load(const Half* from) {
  __m128i bits[kParts];
  std::memcpy(bits, from, sizeof(bits));
  return {{_mm256_cvtph_ps(bits[0]), _mm256_cvtph_ps(bits[1])}};
}

inline void store(Half* to, const Floats& a) {
  const __m128i bits[kParts] = {_mm256_cvtps_ph(a.part[0], _MM_FROUND_TO_NEAREST_INT),
                                _mm256_cvtps_ph(a.part[1], _MM_FROUND_TO_NEAREST_INT)};
  std::memcpy(to, bits, sizeof(bits));
}
#else
inline Floats load(const Half* from) {
  float values[kLanes];
  for (int i = 0; i < kLanes; ++i) values[i] = to_float(from[i]);
  return load(values);
}

inline void store(Half* to, const Floats& a) {
  float values[kLanes];
  store(values, a);
  for (int i = 0; i < kLanes; ++i) to[i] = from_float<Half>(values[i]);
}
#endif

inline Floats load(const int8_t* from) {
  typedef int8_t Byte __attribute__((vector_size(kWidth)));
  Floats out;
  for (int i = 0; i < kParts; ++i) {
    Byte bytes;
    std::memcpy(&bytes, from + i * kWidth, sizeof(bytes));
    out.part[i] = __builtin_convertvector(__builtin_convertvector(bytes, SignedWord), Float);
  }
  return out;
}

/// `count` < 16 values; the lanes beyond get 0.
template <typename T>
inline Floats load_tail(const T* from, int64_t count) {
  float values[kLanes];
  for (int i = 0; i < kLanes; ++i) values[i] = i < count ? to_float(from[i]) : 0.0f;
  return load(values);
}

template <typename T>
inline void store_tail(T* to, const Floats& a, int64_t count) {
  T values[kLanes];
  store(values, a);
  for (int64_t i = 0; i < count; ++i) to[i] = values[i];
}

/// a0 a0 a1 a1 ... a7 a7 of eight values in memory.
inline Floats load_twice(const float* from) {
  Floats out;
  for (int i = 0; i < kParts; ++i) {
    HalfFloat a;
    std::memcpy(&a, from + i * kWidth / 2, sizeof(a));
#if FOVEA_VECTOR_FLOATS == 16
    out.part[i] = __builtin_shufflevector(a, a, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
#elif FOVEA_VECTOR_FLOATS == 8
    out.part[i] = __builtin_shufflevector(a, a, 0, 0, 1, 1, 2, 2, 3, 3);
#else
    out.part[i] = __builtin_shufflevector(a, a, 0, 0, 1, 1);
#endif
  }
  return out;
}

/// a1 a0 a3 a2 ...
inline Floats swap_pairs(const Floats& a) {
  Floats out;
  for (int i = 0; i < kParts; ++i) {
    const Float p = a.part[i];
#if FOVEA_VECTOR_FLOATS == 16
    out.part[i] =
        __builtin_shufflevector(p, p, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
#elif FOVEA_VECTOR_FLOATS == 8
    out.part[i] = __builtin_shufflevector(p, p, 1, 0, 3, 2, 5, 4, 7, 6);
#else
    out.part[i] = __builtin_shufflevector(p, p, 1, 0, 3, 2);
#endif
  }
  return out;
}

/// -a0 a1 -a2 a3 ...
inline Floats negate_even(const Floats& a) {
  Floats out;
  for (int i = 0; i < kParts; ++i) {
    Word words;
    std::memcpy(&words, &a.part[i], sizeof(words));
    for (int lane = 0; lane < kWidth; lane += 2) words[lane] ^= 0x80000000u;
    std::memcpy(&out.part[i], &words, sizeof(words));
  }
  return out;
}

/// Calls f with a null pointer of the element type that `dtype` names.
template <typename F>
inline void with_type(DType dtype, F f) {
  switch (dtype) {
    case DType::f32:
      return f(static_cast<float*>(nullptr));
    case DType::f16:
      return f(static_cast<Half*>(nullptr));
    case DType::bf16:
      return f(static_cast<BFloat16*>(nullptr));
  }
}

}  // namespace
}  // namespace fovea::kernels::FOVEA_ISA
