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
constexpr int64_t kChunkKeys = 128;  // of V at a time: 4 panels of it stay in the first-level cache
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

/// `count` panels of 16 columns; `panel[u]` begins with row 0.
struct Panels {
  const float* panel[kGroupUnits];
  int64_t count;
  int64_t columns = kUnit;  ///< wanted of the last panel
};

/// C = A B (rescale null) or C = C * rescale + A B, for kRows rows, kUnits panels and kVectors
/// vectors of each; panel u is columns u * 16 and on of C.
template <typename S, int kRows, int kUnits, int kVectors>
[[gnu::noinline]] void multiply(const float* a, const Panels& b, Runs runs, float* c,
                                const float* rescale) {
  Float sum[kRows][kUnits][kVectors] = {};
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
        const Float factor = left[r * S::row_a + k * S::column_a] - Float{};
#pragma GCC unroll 4
        for (int u = 0; u < kUnits; ++u) {
#pragma GCC unroll 4
          for (int p = 0; p < kVectors; ++p) sum[r][u][p] += factor * right[u][p];
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
        Float value = sum[r][u][p];
        if (rescale) {
          Float before;
          std::memcpy(&before, at, sizeof(before));
          value += before * rescale[r];
        }
        std::memcpy(at, &value, sizeof(value));
      }
    }
  }
}

/// multiply() for 1 .. kMaxRows rows.
template <typename S, int kUnits, int kVectors, int kRows = kMaxRows>
inline void multiply_rows(int64_t rows, const float* a, const Panels& b, Runs runs, float* c,
                          const float* rescale) {
  if constexpr (kRows > 1) {
    if (rows < kRows)
      return multiply_rows<S, kUnits, kVectors, kRows - 1>(rows, a, b, runs, c, rescale);
  }
  multiply<S, kRows, kUnits, kVectors>(a, b, runs, c, rescale);
}

/// multiply() for all rows of a tile, split evenly among the calls.
template <typename S, int kUnits, int kVectors>
inline void multiply_all(int64_t rows, const float* a, const Panels& b, Runs runs, float* c,
                         const float* rescale) {
  const int64_t groups = (rows + kMaxRows - 1) / kMaxRows;
  int64_t row = 0;
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t end = rows * (g + 1) / groups;
    multiply_rows<S, kUnits, kVectors>(end - row, a + row * S::row_a, b, runs, c + row * S::row_c,
                                       rescale ? rescale + row : nullptr);
    row = end;
  }
}

/// multiply_all() for 1 .. kGroupUnits panels, as many vectors of them as hold wanted columns.
template <typename S, int kUnits = kGroupUnits>
inline void multiply_tile(int64_t rows, const float* a, const Panels& b, Runs runs, float* c,
                          const float* rescale) {
  if constexpr (kUnits > 1) {
    if (b.count < kUnits) return multiply_tile<S, kUnits - 1>(rows, a, b, runs, c, rescale);
  }
  for (int part = 0; part * kWidth < b.columns; part += kGroupParts) {
    Panels panels = b;
    for (int u = 0; u < kUnits; ++u) panels.panel[u] += part * kWidth;
    float* to = c + part * kWidth;
    if (kGroupParts > 1 && b.columns <= (part + 1) * kWidth) {
      multiply_all<S, kUnits, 1>(rows, a, panels, runs, to, rescale);
    } else {
      multiply_all<S, kUnits, kGroupParts>(rows, a, panels, runs, to, rescale);
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

/// Turns `columns` base-2 logits of each row into probabilities under the new running maximum, and
/// updates the running sums.
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
    const float row_max = fold(most[0], [](float a, float b) { return a > b ? a : b; });
    // A row that has seen no key keeps -inf; its differences are taken from 0.
    const float from = row_max == -kInfinity ? 0.0f : row_max;
    Float sum[kAtOnce] = {};
    for (int64_t j = 0; j < columns; j += kUnit) {
      for (int i = 0; i < kAtOnce; ++i) {
        Float x;
        std::memcpy(&x, logits + j + i * kWidth, sizeof(x));
        x = exp2_of_negative(x - from);
        sum[i] += x;
        std::memcpy(logits + j + i * kWidth, &x, sizeof(x));
      }
    }
    for (int i = 1; i < kAtOnce; ++i) sum[0] += sum[i];
    const float step_sum = fold(sum[0], [](float a, float b) { return a + b; });
    m.rescale[r] = exp2_of_negative(m.row_max[r] - from);
    m.row_sum[r] = m.row_sum[r] * m.rescale[r] + step_sum;
    m.row_max[r] = row_max;
  }
}

}  // namespace
}  // namespace fovea::kernels::FOVEA_ISA
