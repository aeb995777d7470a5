#pragma once

// Packing of K and V into fp32 panels, for the *_cpu.cpp files of this folder.

#include <algorithm>

#include "kernels/attention/block_sparse.h"
#include "kernels/attention/work_layout.h"
#include "kernels/common/simd.h"

namespace fovea::kernels::FOVEA_ISA {
namespace {

typedef float Quad __attribute__((vector_size(16)));

/// Positions [begin, end) of an order.
struct Span {
  int64_t begin = 0, end = 0;
};

/// One head of a tensor, its rows reached through an order.
template <typename T>
struct HeadView {
  const T* data;
  int64_t row_stride;
  const int32_t* order;  ///< null: positions are rows

  int64_t row(int64_t position) const { return order ? order[position] : position; }
  const T* at(int64_t position) const { return data + row(position) * row_stride; }
};

inline const int32_t* order_of(const RowOrder& order, int64_t batch, int64_t head) {
  return order.rows ? order.rows + batch * order.batch_stride + head * order.head_stride : nullptr;
}

template <typename T>
inline HeadView<T> head_view(const HeadRows& rows, const RowOrder& order, int64_t batch,
                             int64_t head) {
  const T* data = static_cast<const T*>(rows.data);
  return {data + batch * rows.batch_stride + head * rows.head_stride, rows.row_stride,
          order_of(order, batch, head)};
}

/// The 4 x 4 block at `from` (rows 16 floats apart), transposed, to `to` (rows 16 floats apart).
inline void transpose_quads(const float* from, float* to) {
  Quad a[4];
  for (int i = 0; i < 4; ++i) std::memcpy(&a[i], from + i * kUnit, sizeof(Quad));
  const Quad low01 = __builtin_shufflevector(a[0], a[1], 0, 4, 1, 5);
  const Quad low23 = __builtin_shufflevector(a[2], a[3], 0, 4, 1, 5);
  const Quad high01 = __builtin_shufflevector(a[0], a[1], 2, 6, 3, 7);
  const Quad high23 = __builtin_shufflevector(a[2], a[3], 2, 6, 3, 7);
  const Quad out[4] = {__builtin_shufflevector(low01, low23, 0, 1, 4, 5),
                       __builtin_shufflevector(low01, low23, 2, 3, 6, 7),
                       __builtin_shufflevector(high01, high23, 0, 1, 4, 5),
                       __builtin_shufflevector(high01, high23, 2, 3, 6, 7)};
  for (int i = 0; i < 4; ++i) std::memcpy(to + i * kUnit, &out[i], sizeof(Quad));
}

/// Keys [unit * 16, unit * 16 + 16) to [dim][16]; keys beyond the sequence become 0.
template <typename T>
void pack_key_unit(const HeadView<T>& keys, int64_t kv_len, int64_t dim, int64_t unit, float* to) {
  alignas(64) float block[kUnit * kUnit];
  alignas(64) float turned[kUnit * kUnit];
  const int64_t rows = std::min(kUnit, kv_len - unit * kUnit);
  if (rows < kUnit) std::memset(block, 0, sizeof(block));
  for (int64_t d = 0; d < dim; d += kUnit) {
    const int64_t channels = std::min(kUnit, dim - d);
    for (int64_t r = 0; r < rows; ++r) {
      const T* from = keys.at(unit * kUnit + r) + d;
      store(block + r * kUnit, channels == kUnit ? load(from) : load_tail(from, channels));
    }
    float* target = channels == kUnit ? to + d * kUnit : turned;
    for (int64_t i = 0; i < kUnit; i += 4) {
      for (int64_t j = 0; j < kUnit; j += 4)
        transpose_quads(block + i * kUnit + j, target + j * kUnit + i);
    }
    if (channels < kUnit)
      std::memcpy(to + d * kUnit, turned, channels * kUnit * int64_t{sizeof(float)});
  }
}

/// Values of the positions of a span to panels [16 channels][panel_rows][16], the first position to
/// row 0; channels beyond the last become 0.
template <typename T>
void pack_values(const HeadView<T>& values, int64_t channels, int64_t panel_rows, Span span,
                 float* to) {
  for (int64_t row = 0; row < span.end - span.begin; ++row) {
    const T* from = values.at(span.begin + row);
    for (int64_t c = 0; c < channels; c += kUnit) {
      const int64_t left = std::min(kUnit, channels - c);
      store(to + c * panel_rows + row * kUnit,
            left == kUnit ? load(from + c) : load_tail(from + c, left));
    }
  }
}

/// `rows` rows from position `begin` on, each unit of their channels through f, to rows kRowStride
/// apart; channels beyond the last become f(0).
template <typename T, typename F>
inline void load_rows(const HeadView<T>& view, int64_t begin, int64_t rows, int64_t channels,
                      float* to, F f) {
  for (int64_t r = 0; r < rows; ++r) {
    const T* from = view.at(begin + r);
    for (int64_t c = 0; c < channels; c += kUnit) {
      const int64_t left = std::min(kUnit, channels - c);
      store(to + r * kRowStride + c, f(left == kUnit ? load(from + c) : load_tail(from + c, left)));
    }
  }
}

/// Times a factor that is kept as a sum of two floats: one float's rounding error would be that of
/// every product.
class Scaled {
 public:
  explicit Scaled(double factor)
      : high_(broadcast(static_cast<float>(factor))),
        low_(broadcast(static_cast<float>(factor - static_cast<float>(factor)))) {}
  Floats operator()(const Floats& x) const { return x * low_ + x * high_; }

 private:
  Floats high_, low_;
};

/// load_rows() times the scale.
template <typename T>
inline void load_queries(const HeadView<T>& queries, int64_t begin, int64_t rows, int64_t dim,
                         double scale, float* to) {
  load_rows(queries, begin, rows, dim, to, Scaled(scale));
}

/// One row times a factor, rounded.
template <typename T>
inline void store_row(const float* from, int64_t channels, double factor, T* to) {
  const Scaled scaled(factor);
  for (int64_t c = 0; c < channels; c += kUnit) {
    const Floats values = scaled(load(from + c));
    const int64_t left = std::min(kUnit, channels - c);
    if (left == kUnit) {
      store(to + c, values);
    } else {
      store_tail(to + c, values, left);
    }
  }
}

}  // namespace
}  // namespace fovea::kernels::FOVEA_ISA
