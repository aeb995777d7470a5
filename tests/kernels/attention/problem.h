#pragma once

// Attention problems with everything the kernel can be asked for, and their answer in fp64.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <numeric>
#include <optional>
#include <random>
#include <vector>

#include "kernels/attention/block_sparse.h"
#include "kernels/common/half.h"

namespace fovea::kernels {

inline float element(const std::vector<unsigned char>& from, DType dtype, int64_t i) {
  float value = 0;
  Half half{};
  BFloat16 bfloat{};
  if (dtype == DType::f32) std::memcpy(&value, from.data() + i * 4, 4);
  if (dtype == DType::f16) std::memcpy(&half, from.data() + i * 2, 2), value = to_float(half);
  if (dtype == DType::bf16) std::memcpy(&bfloat, from.data() + i * 2, 2), value = to_float(bfloat);
  return value;
}

inline void set_element(std::vector<unsigned char>& to, DType dtype, int64_t i, float value) {
  const Half half = from_float<Half>(value);
  const BFloat16 bfloat = from_float<BFloat16>(value);
  if (dtype == DType::f32) std::memcpy(to.data() + i * 4, &value, 4);
  if (dtype == DType::f16) std::memcpy(to.data() + i * 2, &half, 2);
  if (dtype == DType::bf16) std::memcpy(to.data() + i * 2, &bfloat, 2);
}

/// What a problem is made of; the defaults are a dense one.
struct Shape {
  int64_t q_len = 1, kv_len = 1, dim = 8, value_dim = 8;
  int64_t batch = 1, kv_heads = 1, group = 1;
  DType dtype = DType::f32;
  bool orders = false;  ///< random permutations of queries and keys, per batch item and head
  bool blocks = false;  ///< random block sizes, also 0, random lists, also empty ones
  bool map_per_head = false;
  bool block_len = false;  ///< some blocks are not full
  bool bits = false;       ///< some entries have random bits
  bool key_bias = false, bias = false;
  bool strided = false;   ///< rows longer than their channels, and an odd offset
  bool integers = false;  ///< q and k as 8-bit integers, one factor a row
  WeightFormat weights = WeightFormat::none;  ///< quantized
  bool per_entry = false;                     ///< weights are, with some rows not counted
  float q_scale = 1;
};

/// exp(logit - most) quantized, with a the largest of its unit.
inline double quantized_weight(double logit, double most, double a, const Shape& shape) {
  const WeightFormat format = shape.weights;
  const double p = std::exp(logit - most);
  if (format == WeightFormat::none || std::isinf(logit)) return p;
  if (format == WeightFormat::e4m3 && !shape.per_entry) {
    const double origin = std::ceil(most / std::log(2.0)) * std::log(2.0);
    const double x = std::exp(logit - origin), step = std::ldexp(1.0, std::ilogb(x) - 3);
    return std::nearbyint(x / step) * step * std::exp(origin - most);
  }
  const double limit = format == WeightFormat::int8 ? 127 : 448, scale = a == 0 ? 1 : a / limit;
  const double x = std::min(p / scale, limit);
  const double step =
      format == WeightFormat::int8 ? 1 : std::ldexp(1.0, std::max(std::ilogb(x), -6) - 3);
  return scale * (x == 0 ? 0 : std::nearbyint(x / step) * step);
}

/// A tensor [batch, heads, rows, channels] with room around and between its rows, filled with NaN.
struct Tensor {
  DType dtype = DType::f32;
  int64_t offset = 0, row_stride = 0, head_stride = 0, batch_stride = 0;
  std::vector<unsigned char> bytes;

  Tensor(const Shape& shape, int64_t heads, int64_t rows, int64_t channels) : dtype(shape.dtype) {
    offset = shape.strided ? 3 : 0;
    // Strided: [batch, rows, heads, channels + 5] as projections give it.
    const int64_t room = channels + (shape.strided ? 5 : 0);
    head_stride = shape.strided ? room : rows * room;
    row_stride = shape.strided ? heads * room : room;
    batch_stride = heads * rows * room;
    const int64_t count = offset + shape.batch * batch_stride;
    bytes.resize(count * dtype_bytes(dtype));
    for (int64_t i = 0; i < count; ++i)
      set_element(bytes, dtype, i, std::numeric_limits<float>::quiet_NaN());
  }
  int64_t at(int64_t b, int64_t h, int64_t row) const {
    return offset + b * batch_stride + h * head_stride + row * row_stride;
  }
  float get(int64_t b, int64_t h, int64_t row, int64_t c) const {
    return element(bytes, dtype, at(b, h, row) + c);
  }
  void set(int64_t b, int64_t h, int64_t row, int64_t c, float value) {
    set_element(bytes, dtype, at(b, h, row) + c, value);
  }
  const unsigned char* data() const { return bytes.data() + offset * dtype_bytes(dtype); }
};

/// The rows of a tensor as 8-bit integers, [batch, heads, rows, channels] with room between rows.
struct Integers {
  int64_t heads = 0, rows = 0, room = 0;
  std::vector<int8_t> data;
  std::vector<float> scale;

  Integers(const Tensor& from, int64_t batch, int64_t num_heads, int64_t num_rows, int64_t channels)
      : heads(num_heads), rows(num_rows), room(channels + 3) {
    data.resize(batch * heads * rows * room, 77);
    for (int64_t i = 0; i < batch * heads * rows; ++i) {
      const int64_t b = i / rows / heads, h = i / rows % heads;
      float most = 0;
      for (int64_t c = 0; c < channels; ++c)
        most = std::max(most, std::abs(from.get(b, h, i % rows, c)));
      scale.push_back(most / 127);
      for (int64_t c = 0; c < channels; ++c) {
        data[i * room + c] =
            static_cast<int8_t>(std::nearbyint(from.get(b, h, i % rows, c) / scale.back()));
      }
    }
  }
  double get(int64_t b, int64_t h, int64_t row, int64_t c) const {
    const int64_t i = (b * heads + h) * rows + row;
    return double{scale[i]} * data[i * room + c];
  }
  ScaledIntegers view() const {
    return {data.data(), heads * rows * room, rows * room, room, scale.data(), heads * rows, rows};
  }
};

struct Answer {
  std::vector<double> out;     ///< [batch, heads, q_len, value_dim]
  std::vector<double> lse;     ///< [batch, heads, q_len]
  std::vector<float> row_max;  ///< as `QuantizedWeights` has them
  std::vector<float> largest;  ///< [batch * heads or, where each has a map, 1][entries]
};

class Problem {
 public:
  Problem(const Shape& shape, uint32_t seed)
      : shape_(shape),
        heads_(shape.kv_heads * shape.group),
        random_(seed),
        q(shape, heads_, shape.q_len, shape.dim),
        k(shape, shape.kv_heads, shape.kv_len, shape.dim),
        v(shape, shape.kv_heads, shape.kv_len, shape.value_dim) {
    fill(q, heads_, shape.q_len, shape.dim, shape.q_scale);
    fill(k, shape.kv_heads, shape.kv_len, shape.dim, 1);
    fill(v, shape.kv_heads, shape.kv_len, shape.value_dim, 1);
    if (shape.integers) {
      q_int8.emplace(q, shape.batch, heads_, shape.q_len, shape.dim);
      k_int8.emplace(k, shape.batch, shape.kv_heads, shape.kv_len, shape.dim);
    }
    if (shape.orders) {
      q_order = orders(shape.batch * heads_, shape.q_len);
      kv_order = orders(shape.batch * shape.kv_heads, shape.kv_len);
    }
    maps_ = shape.map_per_head ? shape.batch * heads_ : 1;
    for (int64_t map = 0; map < maps_; ++map) add_map();
    make_biases();
    for (int64_t i = 0; shape.per_entry && i < shape.batch * shape.q_len; ++i)
      counted.push_back(below(4) != 0);
  }

  /// Arguments without an output.
  BlockSparseArgs args() const {
    BlockSparseArgs a;
    a.batch = shape_.batch, a.heads = heads_, a.kv_heads = shape_.kv_heads;
    a.q_len = shape_.q_len, a.kv_len = shape_.kv_len;
    a.dim = shape_.dim, a.value_dim = shape_.value_dim;
    a.v = view(v);
    if (shape_.integers) {
      a.q_int8 = q_int8->view(), a.k_int8 = k_int8->view();
    } else {
      a.q = view(q), a.k = view(k);
    }
    if (shape_.orders) {
      a.q_order = {q_order.data(), heads_ * shape_.q_len, shape_.q_len};
      a.kv_order = {kv_order.data(), shape_.kv_heads * shape_.kv_len, shape_.kv_len};
    }
    a.lists.maps = maps_;
    a.lists.num_q_blocks = num_q_blocks, a.lists.num_kv_blocks = num_kv_blocks;
    a.lists.map_batch_stride = shape_.map_per_head ? heads_ : 0;
    a.lists.map_head_stride = shape_.map_per_head ? 1 : 0;
    a.lists.q_offsets = q_offsets.data(), a.lists.kv_offsets = kv_offsets.data();
    a.lists.row_ptr = row_ptr.data(), a.lists.kv_index = kv_index.data();
    a.lists.num_entries = static_cast<int64_t>(kv_index.size());
    a.lists.kv_block_len = shape_.block_len ? kv_block_len.data() : nullptr;
    a.lists.bits_offset = shape_.bits ? bits_offset.data() : nullptr;
    a.lists.bits = bits.data(), a.lists.num_bit_words = static_cast<int64_t>(bits.size());
    a.sm_scale = scale();
    if (shape_.key_bias) a.key_bias = {key_bias.data(), shape_.kv_len, 0, 0, 1};
    if (shape_.bias) a.bias = {bias.data(), 0, shape_.q_len * shape_.kv_len, shape_.kv_len, 1};
    return a;
  }

  /// What the kernels find of quantized weights, kept in an answer of this problem.
  QuantizedWeights weights(Answer& found) const {
    QuantizedWeights w;
    if (shape_.weights == WeightFormat::none) return w;
    w.format = shape_.weights, w.per_entry = shape_.per_entry;
    w.counted = shape_.per_entry ? counted.data() : nullptr;
    if (w.needs_largest()) w.row_max = found.row_max.data();
    w.largest = found.largest.data();
    const int64_t entries = static_cast<int64_t>(kv_index.size());
    w.largest_batch_stride = shape_.map_per_head ? 0 : heads_ * entries;
    w.largest_head_stride = shape_.map_per_head ? 0 : entries;
    return w;
  }

  int64_t heads() const { return heads_; }
  const Shape& shape() const { return shape_; }
  float scale() const { return 1.0f / std::sqrt(static_cast<float>(shape_.dim)); }

  /// Where the largest weight of an entry is in `Answer::largest`.
  int64_t largest_at(int64_t b, int64_t h, int64_t entry) const {
    return shape_.map_per_head ? entry
                               : (b * heads_ + h) * static_cast<int64_t>(kv_index.size()) + entry;
  }

  /// Calls f(row of q, row of k, entry) for the pairs of positions that (batch, head) computes.
  template <typename F>
  void for_each_pair(int64_t b, int64_t h, F f) const {
    const int64_t map = shape_.map_per_head ? b * heads_ + h : 0;
    const int32_t* q_at = q_offsets.data() + map * (num_q_blocks + 1);
    const int32_t* kv_at = kv_offsets.data() + map * (num_kv_blocks + 1);
    for (int64_t i = 0; i < num_q_blocks; ++i) {
      const int64_t* ptr = row_ptr.data() + map * (num_q_blocks + 1) + i;
      for (int64_t e = ptr[0]; e < ptr[1]; ++e) {
        const int64_t j = kv_index[e], size = kv_at[j + 1] - kv_at[j];
        const int64_t len = shape_.block_len ? kv_block_len[map * num_kv_blocks + j] : size;
        for (int64_t r = q_at[i]; r < q_at[i + 1]; ++r) {
          for (int64_t c = 0; c < len; ++c) {
            if (shape_.bits && bits_offset[e] >= 0) {
              const int64_t word = (r - q_at[i]) * ((size + 63) / 64) + c / 64;
              if ((bits[bits_offset[e] + word] >> (c % 64) & 1u) == 0) continue;
            }
            f(q_row(b, h, r), k_row(b, h / shape_.group, kv_at[j] + c), e);
          }
        }
      }
    }
  }

  /// Of a pair of rows.
  double logit(int64_t b, int64_t h, int64_t row, int64_t key) const {
    double dot = 0;
    for (int64_t c = 0; c < shape_.dim; ++c)
      dot += q_value(b, h, row, c) * k_value(b, h / shape_.group, key, c);
    dot *= scale();
    if (shape_.key_bias) dot += key_bias[b * shape_.kv_len + key];
    if (shape_.bias) dot += bias[(h * shape_.q_len + row) * shape_.kv_len + key];
    return dot;
  }

  Answer answer() const {
    Answer result;
    const Shape& s = shape_;
    result.largest.resize((s.map_per_head ? 1 : s.batch * heads_) * kv_index.size());
    for (int64_t b = 0; b < s.batch; ++b) {
      for (int64_t h = 0; h < heads_; ++h) append_head(b, h, result);
    }
    return result;
  }

 private:
  static HeadRows view(const Tensor& t) {
    return {t.data(), t.dtype, t.batch_stride, t.head_stride, t.row_stride};
  }
  double q_value(int64_t b, int64_t h, int64_t row, int64_t c) const {
    return q_int8 ? q_int8->get(b, h, row, c) : q.get(b, h, row, c);
  }
  double k_value(int64_t b, int64_t h, int64_t row, int64_t c) const {
    return k_int8 ? k_int8->get(b, h, row, c) : k.get(b, h, row, c);
  }
  int64_t q_row(int64_t b, int64_t h, int64_t position) const {
    return shape_.orders ? q_order[(b * heads_ + h) * shape_.q_len + position] : position;
  }
  int64_t k_row(int64_t b, int64_t h, int64_t position) const {
    return shape_.orders ? kv_order[(b * shape_.kv_heads + h) * shape_.kv_len + position]
                         : position;
  }
  int64_t below(int64_t limit) { return static_cast<int64_t>(random_() % limit); }

  void fill(Tensor& t, int64_t heads, int64_t rows, int64_t channels, float scale) {
    std::normal_distribution<float> normal(0, scale);
    for (int64_t b = 0; b < shape_.batch; ++b) {
      for (int64_t h = 0; h < heads; ++h) {
        for (int64_t r = 0; r < rows; ++r) {
          for (int64_t c = 0; c < channels; ++c) t.set(b, h, r, c, normal(random_));
        }
      }
    }
  }
  std::vector<int32_t> orders(int64_t count, int64_t len) {
    std::vector<int32_t> all(count * len);
    for (int64_t i = 0; i < count; ++i) {
      const auto begin = all.begin() + i * len;
      std::iota(begin, begin + len, 0);
      std::shuffle(begin, begin + len, random_);
    }
    return all;
  }
  /// Blocks of random sizes that cover `len`, always `count` of them.
  void cut(std::vector<int32_t>& offsets, int64_t len, int64_t count) {
    std::vector<int32_t> inner(count - 1);
    for (int32_t& at : inner) at = static_cast<int32_t>(below(len + 1));
    std::sort(inner.begin(), inner.end());
    offsets.push_back(0);
    offsets.insert(offsets.end(), inner.begin(), inner.end());
    offsets.push_back(static_cast<int32_t>(len));
  }
  void add_map() {
    num_q_blocks = shape_.blocks ? 2 + shape_.q_len / 48 : 1;
    num_kv_blocks = shape_.blocks ? 3 + shape_.kv_len / 40 : 1;
    cut(q_offsets, shape_.q_len, num_q_blocks);
    cut(kv_offsets, shape_.kv_len, num_kv_blocks);
    const int32_t* q_at = q_offsets.data() + q_offsets.size() - num_q_blocks - 1;
    const int32_t* kv_at = kv_offsets.data() + kv_offsets.size() - num_kv_blocks - 1;
    for (int64_t j = 0; j < num_kv_blocks; ++j) {
      const int32_t size = kv_at[j + 1] - kv_at[j];
      kv_block_len.push_back(below(2) == 0 ? size : static_cast<int32_t>(below(size + 1)));
    }
    for (int64_t i = 0; i < num_q_blocks; ++i) {
      row_ptr.push_back(static_cast<int64_t>(kv_index.size()));
      // Rows without entries, rows with all, and rows with some.
      const int64_t kind = shape_.blocks ? below(6) : 1;
      for (int64_t j = 0; j < num_kv_blocks; ++j) {
        if (kind == 0 || (kind > 1 && below(2) == 0)) continue;
        kv_index.push_back(static_cast<int32_t>(j));
        add_bits(q_at[i + 1] - q_at[i], (kv_at[j + 1] - kv_at[j] + 63) / 64);
      }
    }
    row_ptr.push_back(static_cast<int64_t>(kv_index.size()));
  }
  void add_bits(int64_t rows, int64_t words) {
    const bool partial = shape_.bits && below(2) == 0;
    bits_offset.push_back(partial ? static_cast<int64_t>(bits.size()) : -1);
    for (int64_t i = 0; partial && i < rows * words; ++i)
      bits.push_back(uint64_t{random_()} << 32 | random_());
  }
  void make_biases() {
    std::normal_distribution<float> normal(0, 1);
    for (int64_t i = 0; shape_.key_bias && i < shape_.batch * shape_.kv_len; ++i) {
      const bool hidden = below(5) == 0;
      key_bias.push_back(hidden ? -std::numeric_limits<float>::infinity() : normal(random_));
    }
    for (int64_t i = 0; shape_.bias && i < heads_ * shape_.q_len * shape_.kv_len; ++i)
      bias.push_back(normal(random_));
  }

  void append_head(int64_t b, int64_t h, Answer& result) const {
    const Shape& s = shape_;
    struct Term {
      int64_t key, entry;
      double logit;
    };
    std::vector<std::vector<Term>> terms(s.q_len);
    for_each_pair(b, h, [&](int64_t row, int64_t key, int64_t entry) {
      terms[row].push_back({key, entry, logit(b, h, row, key)});
    });
    std::vector<double> tops(s.q_len, -std::numeric_limits<double>::infinity());
    for (int64_t row = 0; row < s.q_len; ++row) {
      for (const Term& t : terms[row]) tops[row] = std::max(tops[row], t.logit);
      result.row_max.push_back(static_cast<float>(tops[row] / std::log(2.0)));
      if (std::isinf(tops[row]) || (s.per_entry && counted[b * s.q_len + row] == 0)) continue;
      for (const Term& t : terms[row]) {
        float& largest = result.largest[largest_at(b, h, t.entry)];
        largest = std::max(largest, static_cast<float>(std::exp(t.logit - tops[row])));
      }
    }
    for (int64_t row = 0; row < s.q_len; ++row) {
      const double most = tops[row];
      double sum = 0;
      std::vector<double> out(s.value_dim, 0.0);
      for (const Term& t : terms[row]) {
        if (std::isinf(most)) break;
        const double a = s.per_entry ? result.largest[largest_at(b, h, t.entry)] : 1;
        const double w = quantized_weight(t.logit, most, a, s);
        sum += w;
        for (int64_t c = 0; c < s.value_dim; ++c) out[c] += w * v.get(b, h / s.group, t.key, c);
      }
      for (const double value : out) result.out.push_back(sum > 0 ? value / sum : 0);
      result.lse.push_back(most + std::log(sum));
    }
  }

  Shape shape_;
  int64_t heads_, maps_ = 1;
  std::mt19937 random_;

 public:
  Tensor q, k, v;
  std::optional<Integers> q_int8, k_int8;
  std::vector<int32_t> q_order, kv_order;
  int64_t num_q_blocks = 1, num_kv_blocks = 1;
  std::vector<int32_t> q_offsets, kv_offsets, kv_index, kv_block_len;
  std::vector<int64_t> row_ptr, bits_offset;
  std::vector<uint64_t> bits;
  std::vector<float> key_bias, bias;
  std::vector<uint8_t> counted;
};

}  // namespace fovea::kernels
