#pragma once

// Packing of K and V into panels of 32-bit units, for the *_cpu.cpp files of this folder.

#include <algorithm>
#include <type_traits>

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
  const int32_t* order;          ///< null: positions are rows
  const float* scale = nullptr;  ///< of integers, by row
  /// Rows of fp32 that are rows `begin` and on, or null; those from `own` to there are 0.
  const float* more = nullptr;
  int64_t more_stride = 0, own = 0, begin = 0;

  bool is_own(int64_t position) const { return !more || position < own; }
  int64_t row(int64_t position) const {
    return order && is_own(position) ? order[position] : position;
  }
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

inline HeadView<int8_t> head_view(const ScaledIntegers& rows, const RowOrder& order, int64_t batch,
                                  int64_t head) {
  return {rows.data + batch * rows.batch_stride + head * rows.head_stride, rows.row_stride,
          order_of(order, batch, head),
          rows.scale + batch * rows.scale_batch_stride + head * rows.scale_head_stride};
}

/// The same with `more`, k or v of `args.more`, behind.
template <typename T>
inline HeadView<T> key_head_view(const HeadRows& rows, const HeadRows& more,
                                 const BlockSparseArgs& args, int64_t batch, int64_t head) {
  HeadView<T> out = head_view<T>(rows, args.kv_order, batch, head);
  if (!args.more.k.data) return out;
  out.more =
      static_cast<const float*>(more.data) + batch * more.batch_stride + head * more.head_stride;
  out.more_stride = more.row_stride;
  out.own = args.more.own;
  out.begin = args.more.begin;
  return out;
}

/// `count` <= 16 channels from `channel` on of one position, as fp32; the lanes beyond get 0.
template <typename T>
inline Floats load_channels(const HeadView<T>& view, int64_t position, int64_t channel,
                            int64_t count) {
  if (!view.is_own(position)) {
    if (position < view.begin) return broadcast(0.0f);
    const float* from = view.more + (position - view.begin) * view.more_stride + channel;
    return count == kUnit ? load(from) : load_tail(from, count);
  }
  const T* from = view.at(position) + channel;
  Floats x = count == kUnit ? load(from) : load_tail(from, count);
  if constexpr (std::is_same_v<T, int8_t>) x = x * broadcast(view.scale[view.row(position)]);
  return x;
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

/// A block of 16 rows of 16 32-bit units, transposed, to `to`; its first `columns` columns only.
inline void turn_block(const float* block, int64_t columns, float* to) {
  alignas(64) float turned[kUnit * kUnit];
  float* target = columns == kUnit ? to : turned;
  for (int64_t i = 0; i < kUnit; i += 4) {
    for (int64_t j = 0; j < kUnit; j += 4)
      transpose_quads(block + i * kUnit + j, target + j * kUnit + i);
  }
  if (columns < kUnit) std::memcpy(to, turned, columns * kUnit * int64_t{sizeof(float)});
}

/// Keys [unit * 16, unit * 16 + 16) to [dim][16]; keys beyond the sequence become 0.
template <typename T>
void pack_key_unit(const HeadView<T>& keys, int64_t kv_len, int64_t dim, int64_t unit, float* to) {
  alignas(64) float block[kUnit * kUnit];
  const int64_t rows = std::min(kUnit, kv_len - unit * kUnit);
  if (rows < kUnit) std::memset(block, 0, sizeof(block));
  for (int64_t d = 0; d < dim; d += kUnit) {
    const int64_t channels = std::min(kUnit, dim - d);
    for (int64_t r = 0; r < rows; ++r)
      store(block + r * kUnit, load_channels(keys, unit * kUnit + r, d, channels));
    turn_block(block, channels, to + d * kUnit);
  }
}

/// How many 32-bit units hold that many numbers.
template <typename T>
constexpr int64_t units_of(int64_t numbers) {
  constexpr int64_t kNumbers = 4 / int64_t{sizeof(T)};
  return (numbers + kNumbers - 1) / kNumbers;
}

/// The same as they are, to [units_of(dim)][16] 32-bit units, what is missing of a unit 0.
/// Integers get 128 added, which makes them unsigned.
template <typename T>
void pack_raw_key_unit(const HeadView<T>& keys, int64_t kv_len, int64_t dim, int64_t unit,
                       float* to) {
  constexpr int64_t kNumbers = kUnit * 4 / int64_t{sizeof(T)};
  alignas(64) unsigned char block[kUnit * kUnit * 4];
  const int64_t rows = std::min(kUnit, kv_len - unit * kUnit);
  if (rows < kUnit) std::memset(block, 0, sizeof(block));
  for (int64_t d = 0; d < dim; d += kNumbers, to += kUnit * kUnit) {
    const int64_t numbers = std::min(kNumbers, dim - d);
    for (int64_t r = 0; r < rows; ++r) {
      unsigned char* row = block + r * kUnit * 4;
      if (numbers < kNumbers) std::memset(row, 0, kUnit * 4);
      std::memcpy(row, keys.at(unit * kUnit + r) + d, numbers * int64_t{sizeof(T)});
    }
    if constexpr (std::is_same_v<T, int8_t>) {
      for (unsigned char& number : block) number ^= 0x80u;
    }
    float units[kUnit * kUnit];
    std::memcpy(units, block, sizeof(units));
    turn_block(units, units_of<T>(numbers), to);
  }
}

/// Values of the positions of a span to panels [16 channels][panel_rows][16], the first position to
/// row 0; channels beyond the last become 0.
template <typename T>
void pack_values(const HeadView<T>& values, int64_t channels, int64_t panel_rows, Span span,
                 float* to) {
  for (int64_t row = 0; row < span.end - span.begin; ++row) {
    for (int64_t c = 0; c < channels; c += kUnit) {
      const int64_t left = std::min(kUnit, channels - c);
      store(to + c * panel_rows + row * kUnit, load_channels(values, span.begin + row, c, left));
    }
  }
}

/// The same as pairs of bf16 [16 channels][panel_rows][16], the first two positions to row 0; the
/// partner of an odd last position is 0.
inline void pack_value_pairs(const HeadView<BFloat16>& values, int64_t channels, int64_t panel_rows,
                             Span span, float* to) {
  const auto load_bits = [&](int64_t row, int64_t c, int64_t count, uint16_t* bits) {
    BFloat16 rounded[kUnit];
    const BFloat16* from = rounded;
    if (values.is_own(row)) {
      from = values.at(row) + c;
    } else {
      store(rounded, load_channels(values, row, c, count));
    }
    if (count == kUnit) {
      std::memcpy(bits, from, kUnit * sizeof(*bits));
    } else {
      for (int64_t i = 0; i < count; ++i) bits[i] = from[i].bits;
    }
  };
  for (int64_t row = span.begin; row < span.end; row += 2) {
    for (int64_t c = 0; c < channels; c += kUnit) {
      const int64_t left = std::min(kUnit, channels - c);
      uint16_t low[kUnit] = {}, high[kUnit] = {};
      load_bits(row, c, left, low);
      if (row + 1 < span.end) load_bits(row + 1, c, left, high);
      uint32_t pairs[kUnit];
      for (int i = 0; i < kUnit; ++i) pairs[i] = uint32_t{low[i]} | uint32_t{high[i]} << 16;
      std::memcpy(to + c * panel_rows + (row - span.begin) / 2 * kUnit, pairs, sizeof(pairs));
    }
  }
}

/// `rows` rows from position `begin` on, each unit of their channels through f, to rows kRowStride
/// apart; channels beyond the last become f(0).
template <typename T, typename F>
inline void load_rows(const HeadView<T>& view, int64_t begin, int64_t rows, int64_t channels,
                      float* to, F f) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < channels; c += kUnit) {
      const int64_t left = std::min(kUnit, channels - c);
      store(to + r * kRowStride + c, f(load_channels(view, begin + r, c, left)));
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

/// `rows` rows from position `begin` on as they are, kRowStride units apart, what is missing of the
/// last unit 0.
template <typename T>
inline void load_raw_queries(const HeadView<T>& queries, int64_t begin, int64_t rows, int64_t dim,
                             float* to) {
  for (int64_t r = 0; r < rows; ++r) {
    float* row = to + r * kRowStride;
    row[units_of<T>(dim) - 1] = 0;
    std::memcpy(row, queries.at(begin + r), dim * int64_t{sizeof(T)});
  }
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
