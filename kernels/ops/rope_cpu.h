#pragma once

#include "kernels/ops/rope.h"
#include "kernels/ops/row_cpu.h"

namespace fovea::kernels::FOVEA_ISA {
namespace {

/// x1 cos - x2 sin, x1 sin + x2 cos for eight interleaved pairs; subtracting a product and adding
/// the product of the negated sine round alike.
inline Floats rotate(const Floats& x, const Floats& cos, const Floats& sin) {
  return x * cos + swap_pairs(x) * negate_even(sin);
}

/// Rotates every head of one row; x and y may be the same.
template <typename T>
inline void rotate_row(const T* x, T* y, int64_t dim, const RotaryTables& rope, int64_t row) {
  const int64_t pairs = rope.head_dim / 2;
  const float* cos = rope.cos + row % rope.seq_len * pairs;
  const float* sin = rope.sin + row % rope.seq_len * pairs;
  for (int64_t head = 0; head < dim; head += rope.head_dim) {
    int64_t i = 0;
    for (; i + kLanes <= rope.head_dim; i += kLanes) {
      const Floats turned =
          rotate(load(x + head + i), load_twice(cos + i / 2), load_twice(sin + i / 2));
      store(y + head + i, turned);
    }
    for (; i < rope.head_dim; i += 2) {
      const float c = cos[i / 2], s = sin[i / 2];
      const float x1 = to_float(x[head + i]), x2 = to_float(x[head + i + 1]);
      y[head + i] = from_float<T>(x1 * c - x2 * s);
      y[head + i + 1] = from_float<T>(x1 * s + x2 * c);
    }
  }
}

}  // namespace
}  // namespace fovea::kernels::FOVEA_ISA
