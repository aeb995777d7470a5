#pragma once

// The arithmetic of one tile of queries: products with panels, exponentials, running sums. For the
// *_cpu.cpp files of this folder.

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/attention/work_layout.h"
#include "kernels/common/simd.h"

#if defined(__SSE__)
#include <immintrin.h>
#endif

namespace fovea::kernels::FOVEA_ISA {
namespace {

// The block of sums that stays in registers: kMaxRows rows by kGroupUnits units, kGroupParts
// vectors of each unit (the vectors of a unit that are left form a group of their own).
#if FOVEA_VECTOR_FLOATS == 16
constexpr int kMaxRows = 6, kGroupUnits = 4, kGroupParts = 1;
constexpr int64_t kChunkKeys = 128;  // rows of V at a time: 4 panels of them stay in the L1 cache
#elif FOVEA_VECTOR_FLOATS == 8
constexpr int kMaxRows = 6, kGroupUnits = 1, kGroupParts = 2;
constexpr int64_t kChunkKeys = 512;
#else
constexpr int kMaxRows = 4, kGroupUnits = 1, kGroupParts = 2;
constexpr int64_t kChunkKeys = 256;
#endif
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr double kLog2E = 1.4426950408889634;

/// Distances between elements of a product C = A B: of A's rows and of its columns, of the panels'
/// rows, of C's rows. Constants, so that they become displacements.
template <int64_t kRowA, int64_t kColumnA, int64_t kRowB, int64_t kRowC>
struct Strides {
  static constexpr int64_t row_a = kRowA, column_a = kColumnA, row_b = kRowB, row_c = kRowC;
};

/// The inner dimension of a product: `count` columns of A from `column` on against as many rows of
/// the panels from `row` on.
struct Run {
  int64_t column = 0, row = 0, count = 0;
};

/// A list of runs.
struct Runs {
  const Run* data;
  int64_t count;
};

// How a product multiplies: A and the panels hold 32-bit units of kNumbers numbers each along the
// inner dimension.

/// fp32 times fp32.
struct FloatProduct {
  static constexpr int64_t kNumbers = 1;
  using Sum = Float;
  using Unit = Float;
  static Unit broadcast_unit(const float* from) { return *from - Float{}; }
  static void add(Sum& sum, const Unit& left, const Float& right) { sum += left * right; }
};

#if defined(__AVX512BF16__)
/// bf16 times bf16, summed in fp32.
struct BFloat16Product {
  static constexpr int64_t kNumbers = 2;
  using Sum = Float;
  using Unit = Word;
  static Unit broadcast_unit(const float* from) {
    uint32_t bits;
    std::memcpy(&bits, from, sizeof(bits));
    return bits - Word{};
  }
  static void add(Sum& sum, const Unit& left, const Float& right) {
    sum = (Float)_mm512_dpbf16_ps((__m512)sum, (__m512bh)left, (__m512bh)right);
  }
};
#endif

#if defined(__AVX512VNNI__)
/// Signed 8-bit integers times unsigned ones (of the panels), exact.
struct Int8Product {
  static constexpr int64_t kNumbers = 4;
  // Not __m512i: gcc 12 spills sums of that type.
  using Sum = SignedWord;
  using Unit = SignedWord;
  static Unit broadcast_unit(const float* from) {
    int32_t bits;
    std::memcpy(&bits, from, sizeof(bits));
    return bits - SignedWord{};
  }
  static void add(Sum& sum, const Unit& left, const Float& right) {
#if defined(__clang__)
    sum = (SignedWord)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)right, (__m512i)left);
#else
    sum = __builtin_ia32_vpdpbusd_v16si(sum, (SignedWord)right, left);
#endif
  }
};
#endif

// What becomes of sums: result(sum, at, r, u) is stored to `at`, row r and panel u of the block
// whose first row from_row() has named.

struct KeepSums {
  KeepSums from_row(int64_t) const { return *this; }
  Float result(const Float& sum, const float*, int, int) const { return sum; }
};

/// C + sum
struct AddSums {
  AddSums from_row(int64_t) const { return *this; }
  Float result(const Float& sum, const float* at, int, int) const {
    Float before;
    std::memcpy(&before, at, sizeof(before));
    return before + sum;
  }
};

/// C * rescale + sum, with a factor per row.
struct RescaleAndAddSums {
  const float* rescale;

  RescaleAndAddSums from_row(int64_t row) const { return {rescale + row}; }
  Float result(const Float& sum, const float* at, int r, int) const {
    Float before;
    std::memcpy(&before, at, sizeof(before));
    return sum + before * rescale[r];
  }
};

/// sum * factor
struct ScaleSums {
  float factor;

  ScaleSums from_row(int64_t) const { return *this; }
  Float result(const Float& sum, const float*, int, int) const { return sum * factor; }
};

/// (sum + offset of the row) * factor of the row * factor of the column
struct ScaleIntegers {
  const float* row_scale;
  const int32_t* row_offset;
  const float* column_scale[kGroupUnits];  ///< of a panel's columns

  ScaleIntegers from_row(int64_t row) const {
    ScaleIntegers out = *this;
    out.row_scale += row, out.row_offset += row;
    return out;
  }
  Float result(const SignedWord& sum, const float*, int r, int u) const {
    Float scale;
    std::memcpy(&scale, column_scale[u], sizeof(scale));
    return __builtin_convertvector(sum + row_offset[r], Float) * (scale * row_scale[r]);
  }
};

/// `count` panels of 16 columns; `panel[u]` begins with row 0.
struct Panels {
  const float* panel[kGroupUnits];
  int64_t count;
  int64_t columns = kUnit;  ///< wanted of the last panel
};

/// C = what `finish` makes of A B, for kRows rows, kUnits panels and kVectors vectors of each;
/// panel u is columns u * 16 and on of C.
template <typename P, typename S, int kRows, int kUnits, int kVectors, typename F>
[[gnu::noinline]] void multiply(const float* a, const Panels& b, Runs runs, float* c,
                                const F& finish) {
  typename P::Sum sum[kRows][kUnits][kVectors] = {};
  for (int64_t i = 0; i < runs.count; ++i) {
    const Run& run = runs.data[i];
    const float* left = a + run.column * S::column_a;
    const float* panel[kUnits];
    for (int u = 0; u < kUnits; ++u) panel[u] = b.panel[u] + run.row * S::row_b;
    for (int64_t k = 0; k < run.count; ++k) {
      Float right[kUnits][kVectors];
#pragma GCC unroll 4
      for (int u = 0; u < kUnits; ++u) {
#pragma GCC unroll 4
        for (int p = 0; p < kVectors; ++p)
          std::memcpy(&right[u][p], panel[u] + k * S::row_b + p * kWidth, sizeof(Float));
      }
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const auto unit = P::broadcast_unit(left + r * S::row_a + k * S::column_a);
#pragma GCC unroll 4
        for (int u = 0; u < kUnits; ++u) {
#pragma GCC unroll 4
          for (int p = 0; p < kVectors; ++p) P::add(sum[r][u][p], unit, right[u][p]);
        }
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int u = 0; u < kUnits; ++u) {
#pragma GCC unroll 4
      for (int p = 0; p < kVectors; ++p) {
        float* at = c + r * S::row_c + u * kUnit + p * kWidth;
        const Float value = finish.result(sum[r][u][p], at, r, u);
        std::memcpy(at, &value, sizeof(value));
      }
    }
  }
}

/// multiply() for 1 .. kMaxRows rows.
template <typename P, typename S, int kUnits, int kVectors, int kRows = kMaxRows, typename F>
inline void multiply_rows(int64_t rows, const float* a, const Panels& b, Runs runs, float* c,
                          const F& finish) {
  if constexpr (kRows > 1) {
    if (rows < kRows)
      return multiply_rows<P, S, kUnits, kVectors, kRows - 1>(rows, a, b, runs, c, finish);
  }
  multiply<P, S, kRows, kUnits, kVectors>(a, b, runs, c, finish);
}

/// multiply() for all rows of a tile, split evenly among the calls.
template <typename P, typename S, int kUnits, int kVectors, typename F>
inline void multiply_all(int64_t rows, const float* a, const Panels& b, Runs runs, float* c,
                         const F& finish) {
  const int64_t groups = (rows + kMaxRows - 1) / kMaxRows;
  int64_t row = 0;
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t end = rows * (g + 1) / groups;
    multiply_rows<P, S, kUnits, kVectors>(end - row, a + row * S::row_a, b, runs,
                                          c + row * S::row_c, finish.from_row(row));
    row = end;
  }
}

/// multiply_all() for 1 .. kGroupUnits panels, as many vectors of them as hold wanted columns.
template <typename P, typename S, int kUnits = kGroupUnits, typename F>
inline void multiply_tile(int64_t rows, const float* a, const Panels& b, Runs runs, float* c,
                          const F& finish) {
  if constexpr (kUnits > 1) {
    if (b.count < kUnits) return multiply_tile<P, S, kUnits - 1>(rows, a, b, runs, c, finish);
  }
  for (int part = 0; part * kWidth < b.columns; part += kGroupParts) {
    Panels panels = b;
    for (int u = 0; u < kUnits; ++u) panels.panel[u] += part * kWidth;
    float* to = c + part * kWidth;
    if (kGroupParts > 1 && b.columns <= (part + 1) * kWidth) {
      multiply_all<P, S, kUnits, 1>(rows, a, panels, runs, to, finish);
    } else {
      multiply_all<P, S, kUnits, kGroupParts>(rows, a, panels, runs, to, finish);
    }
  }
}

/// The larger one; b where a is NaN.
inline Float max_or_second(Float a, Float b) {
#if FOVEA_VECTOR_FLOATS == 16
  return _mm512_max_ps(a, b);
#elif FOVEA_VECTOR_FLOATS == 8
  return _mm256_max_ps(a, b);
#elif defined(__SSE__)
  return _mm_max_ps(a, b);
#else
  return a > b ? a : b;
#endif
}

/// 2^x for x <= 0, with a relative error of 2e-7; exactly 0 below -126.5, NaN for NaN.
inline Float exp2_of_negative(Float x) {
  // Adding 1.5 * 2^23 leaves the nearest integer in the low bits of the sum; with the exponent's
  // bias added as well, a shift makes them the exponent. -127 becomes 0.
  const Float shift = 12582912.0f + 127.0f - Float{};
  x = max_or_second(-127.0f - Float{}, x);
  const Float rounded = x + shift;
  const Float f = x - (rounded - shift);
  Word bits;
  std::memcpy(&bits, &rounded, sizeof(bits));
  bits <<= 23;
  Float power;
  std::memcpy(&power, &bits, sizeof(power));
  // Minimax for |f| <= 0.5 with the constant term 1.
  Float p = 0.00132647145f * f + 0.00967151392f;
  p = p * f + 0.0555073395f;
  p = p * f + 0.240222424f;
  p = p * f + 0.693147004f;
  p = p * f + 1.0f;
  return p * power;
}

inline float exp2_of_negative(float x) { return exp2_of_negative(x - Float{})[0]; }

/// Folds a vector into one value, lanes k and k + half first.
template <typename F>
inline float fold(Float a, F f) {
  float lanes[kWidth];
  std::memcpy(lanes, &a, sizeof(lanes));
  for (int half = kWidth / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lanes[i] = f(lanes[i], lanes[i + half]);
  }
  return lanes[0];
}

/// Weights as they are, relative to the largest logit.
struct ExactWeights {
  static Float weight(const Float& p) { return p; }
  static float origin(float row_max) { return row_max; }
};

/// Where probabilities go: over the logits, as fp32 or as pairs of bf16 in the row's first half.
struct KeepFloats : ExactWeights {
  static constexpr bool kRounds = false;
  static constexpr int kAtOnce = kUnit / kWidth;
  static void store(float* row, int64_t column, const Float* p) {
    for (int i = 0; i < kAtOnce; ++i) std::memcpy(row + column + i * kWidth, p + i, sizeof(Float));
  }
};

#if defined(__AVX512BF16__)
struct RoundToBFloat16 : ExactWeights {
  static constexpr bool kRounds = true;
  static void store(float* row, int64_t column, const Float* p) {
    const __m256bh rounded = _mm512_cvtneps_pbh((__m512)*p);
    std::memcpy(row + column / 2, &rounded, sizeof(rounded));
  }
  /// What the product with the values sees of p.
  static Float kept(const Float& p) {
    const HalfWord bits = (HalfWord)_mm512_cvtneps_pbh((__m512)p);
    return (Float)(__builtin_convertvector(bits, Word) << 16);
  }
};
#endif

/// Turns `columns` base-2 logits of each row into probabilities under the new running maximum, and
/// updates the running sums.
template <typename Storage>
inline void softmax_step(WorkerMemory& m, int64_t rows, int64_t columns) {
  constexpr int kAtOnce = kUnit / kWidth;
  for (int64_t r = 0; r < rows; ++r) {
    float* logits = m.logits + r * kLogitStride;
    Float most[kAtOnce];
    for (Float& part : most) part = m.row_max[r] - Float{};
    for (int64_t j = 0; j < columns; j += kUnit) {
      for (int i = 0; i < kAtOnce; ++i) {
        Float x;
        std::memcpy(&x, logits + j + i * kWidth, sizeof(x));
        most[i] = max_or_second(x, most[i]);
      }
    }
    for (int i = 1; i < kAtOnce; ++i) most[0] = max_or_second(most[0], most[i]);
    const float row_max =
        Storage::origin(fold(most[0], [](float a, float b) { return a > b ? a : b; }));
    // A row that has seen no key keeps -inf; its differences are taken from 0.
    const float from = row_max == -kInfinity ? 0.0f : row_max;
    Float sum[kAtOnce] = {}, kept = {};
    for (int64_t j = 0; j < columns; j += kUnit) {
      Float p[kAtOnce];
      for (int i = 0; i < kAtOnce; ++i) {
        std::memcpy(&p[i], logits + j + i * kWidth, sizeof(Float));
        p[i] = Storage::weight(exp2_of_negative(p[i] - from));
        sum[i] += p[i];
        if constexpr (Storage::kRounds) kept += Storage::kept(p[i]);
      }
      Storage::store(logits, j, p);
    }
    for (int i = 1; i < kAtOnce; ++i) sum[0] += sum[i];
    const float step_sum = fold(sum[0], [](float a, float b) { return a + b; });
    m.rescale[r] = exp2_of_negative(m.row_max[r] - from);
    m.row_sum[r] = m.row_sum[r] * m.rescale[r] + step_sum;
    const float kept_sum =
        Storage::kRounds ? fold(kept, [](float a, float b) { return a + b; }) : step_sum;
    m.row_weight[r] = m.row_weight[r] * m.rescale[r] + kept_sum;
    m.row_max[r] = row_max;
  }
}

}  // namespace
}  // namespace fovea::kernels::FOVEA_ISA
