#pragma once

// Loops over one row in groups of sixteen, for the *_cpu.cpp files of this folder.

#include <type_traits>

#include "kernels/common/simd.h"
#include "kernels/common/tensor_view.h"

namespace fovea::kernels::FOVEA_ISA {
namespace {

/// Calls f(load, store) for each group of sixteen columns. `load(pointer)` reads the group of a row
/// or vector, `store(pointer, values)` writes it; the last, shorter group is padded with zeros.
template <typename F>
inline void for_each_group(int64_t dim, F f) {
  int64_t column = 0;
  for (; column + kLanes <= dim; column += kLanes) {
    f([=](const auto* from) { return load(from + column); },
      [=](auto* to, const Floats& values) { store(to + column, values); });
  }
  if (column < dim) {
    const int64_t count = dim - column;
    f([=](const auto* from) { return load_tail(from + column, count); },
      [=](auto* to, const Floats& values) { store_tail(to + column, values, count); });
  }
}

template <typename T>
inline const T* row_of(const ConstRows& rows, int64_t row) {
  return static_cast<const T*>(rows.data) + row * rows.stride;
}

template <typename T>
inline T* row_of(const Rows& rows, int64_t row) {
  return static_cast<T*>(rows.data) + row * rows.stride;
}

/// 1 / sqrt(total / dim + eps)
inline float inverse_root(double total, int64_t dim, double eps) {
  return static_cast<float>(1.0 / __builtin_sqrt(total / static_cast<double>(dim) + eps));
}

}  // namespace
}  // namespace fovea::kernels::FOVEA_ISA
