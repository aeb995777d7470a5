#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/attention/block_sparse_cuda.h"
#include "tests/kernels/device_array.h"

// Random problems for the attention kernels of the GPU, and their exact results row by row.

namespace fovea::kernels {

/// What a problem is; rows are laid out as [batch, rows, heads, dim] where `rows_first`.
struct AttentionProblem {
  int64_t batch = 1, heads = 1, kv_heads = 1, q_len = 1, kv_len = 1, dim = 128;
  DType dtype = DType::bf16;
  bool rows_first = false;
  std::optional<double> density = std::nullopt;  ///< random blocks; else all keys
  int64_t block_q = 128, block_kv = 128;         ///< 0: of any size
  int64_t cut_unit = 1;                          ///< of which blocks of any size begin at multiples
  int64_t more_keys = 0;                         ///< in blocks of 50 keys
  int64_t more_gap = 0;                          ///< positions between kv_len and the first of them
  bool masks = false;                            ///< a third of the spans have random pair masks
  std::optional<int64_t> bias_begin = std::nullopt;  ///< first key with a bias
  bool out_order = false;                            ///< a random one per item and head
  bool integers = false;                             ///< q and k are integers with a scale per row
  double sm_scale = 0;                               ///< 0: 1 / sqrt(dim)

  int64_t more_begin() const { return kv_len + more_gap; }
  int64_t positions() const { return more_keys > 0 ? more_begin() + more_keys : kv_len; }
  double scale() const { return sm_scale > 0 ? sm_scale : 1 / std::sqrt(static_cast<double>(dim)); }
};

/// What is tested: a launcher, and its rule for tiles.
struct AttentionKernel {
  Status (*run)(const CudaAttentionArgs& args, CudaTarget target);
  AttentionTile (*tile)(int64_t block_q, int64_t block_kv);
};

namespace attention_test {

inline std::string name_of(const AttentionProblem& p) {
  std::string out = "dim " + std::to_string(p.dim) +
                    (p.dtype == DType::bf16 ? " bf16 " : " fp16 ") + std::to_string(p.q_len) +
                    " x " + std::to_string(p.kv_len);
  if (p.density) {
    out += ", density " + std::to_string(*p.density) + ", blocks " + std::to_string(p.block_q) +
           " x " + std::to_string(p.block_kv);
  }
  return out;
}

inline double round_to(DType dtype, double x) {
  const auto narrow = static_cast<float>(x);
  return dtype == DType::bf16 ? __bfloat162float(__float2bfloat16(narrow))
                              : __half2float(__float2half(narrow));
}

inline uint16_t bits_of(DType dtype, double x) {
  const auto narrow = static_cast<float>(x);
  if (dtype == DType::bf16) return __bfloat16_as_ushort(__float2bfloat16(narrow));
  return __half_as_ushort(__float2half(narrow));
}

inline double value_of(DType dtype, uint16_t bits) {
  return dtype == DType::bf16 ? __bfloat162float(__ushort_as_bfloat16(bits))
                              : __half2float(__ushort_as_half(bits));
}

/// [batch, heads, rows, dim] of random normal numbers of the type.
struct Values {
  int64_t heads, rows, dim;
  bool rows_first;
  DType dtype;
  std::vector<double> values;  // as they lie in memory

  Values(const AttentionProblem& p, int64_t heads, int64_t rows, std::mt19937& random)
      : heads(heads), rows(rows), dim(p.dim), rows_first(p.rows_first), dtype(p.dtype) {
    std::normal_distribution<double> normal;
    values.resize(p.batch * heads * rows * dim);
    for (double& x : values) x = round_to(dtype, normal(random));
  }

  HeadRows view(const void* data) const {
    const int64_t head = rows_first ? dim : rows * dim, row = rows_first ? heads * dim : dim;
    return {data, dtype, heads * rows * dim, head, row};
  }
  int64_t at(int64_t item, int64_t head, int64_t row) const {
    const HeadRows v = view(nullptr);
    return item * v.batch_stride + head * v.head_stride + row * v.row_stride;
  }
  const double* row(int64_t item, int64_t head, int64_t row) const {
    return values.data() + at(item, head, row);
  }
  std::vector<uint16_t> bits() const {
    std::vector<uint16_t> out;
    for (const double x : values) out.push_back(bits_of(dtype, x));
    return out;
  }
};

/// A random map of blocks, per batch item and head, as it is and as lists; block row 1 sees
/// nothing.
struct Blocks {
  AttentionTile tile;
  int64_t maps, nq, nk;
  std::vector<int32_t> q_offsets, kv_offsets;  // [maps, blocks + 1]
  std::vector<uint8_t> classes;                // [maps, nq, nk]
  std::vector<QueryTile> tiles;
  std::vector<int32_t> counts;
  std::vector<KeySpan> spans;      // or
  std::vector<PackedSpan> packed;  // where the tile is packed
  std::vector<uint32_t> masks;  // [masks, tile.queries, kMaskWords]; bits of no key are random too
  int64_t tiles_per_map = 0, capacity = 0;

  Blocks(const AttentionProblem& p, AttentionTile tile, std::mt19937& random)
      : tile(tile), maps(p.batch * p.heads) {
    // Blocks of 0 are of any size, some of them empty.
    nq = p.block_q == 0 ? 7 : (p.q_len + p.block_q - 1) / p.block_q;
    nk = p.block_kv == 0 ? 9 : (p.kv_len + p.block_kv - 1) / p.block_kv;
    const int64_t own = nk;
    if (p.more_keys > 0) nk += 1 + (p.more_keys + 49) / 50;
    for (int64_t map = 0; map < maps; ++map) {
      append(q_offsets, nq, {p.block_q, p.cut_unit}, p.q_len, random);
      append(kv_offsets, own, {p.block_kv, p.cut_unit}, p.kv_len, random);
      for (int64_t key = 0; key < p.more_keys; key += 50) {
        kv_offsets.push_back(static_cast<int32_t>(p.more_begin() + key));
      }
      if (p.more_keys > 0) kv_offsets.push_back(static_cast<int32_t>(p.positions()));
    }
    std::uniform_real_distribution<double> uniform;
    classes.resize(maps * nq * nk);
    for (size_t i = 0; i < classes.size(); ++i) {
      const auto at = static_cast<int64_t>(i);
      const bool row_is_empty = at / nk % nq == 1;
      const bool is_gap = p.more_keys > 0 && at % nk == own;
      classes[i] = !row_is_empty && !is_gap && uniform(random) < *p.density;
    }
    tiles_per_map = most_tiles(p.q_len, nq, tile.queries);
    capacity = tile.is_packed ? most_packed(p.positions(), nk, tile.keys)
                              : p.positions() / tile.keys + nk + 1;
    tiles.resize(maps * tiles_per_map);
    counts.resize(maps * nq);
    spans.resize(tile.is_packed ? 0 : maps * nq * capacity);
    packed.resize(tile.is_packed ? maps * nq * capacity : 0);
    int32_t fault = 0;
    tile_lists_cpu(args(p, {tiles.data(), counts.data(), spans.data(), packed.data()}, &fault));
    EXPECT_EQ(fault, 0);
    if (p.masks) add_masks(random);
  }

  struct Cuts {
    int64_t size, unit;
  };
  static void append(std::vector<int32_t>& out, int64_t blocks, Cuts of, int64_t len,
                     std::mt19937& random) {
    std::vector<int32_t> cuts;
    for (int64_t i = 1; i < blocks; ++i) {
      const int64_t at = of.size > 0 ? i * of.size : static_cast<int64_t>(random() % (len + 1));
      cuts.push_back(static_cast<int32_t>(at / of.unit * of.unit));
    }
    std::sort(cuts.begin(), cuts.end());
    out.push_back(0);
    out.insert(out.end(), cuts.begin(), cuts.end());
    out.push_back(static_cast<int32_t>(len));
  }

  struct Lists {
    QueryTile* tiles;
    int32_t* counts;
    KeySpan* spans;
    PackedSpan* packed;
  };
  TileListsArgs args(const AttentionProblem& p, const Lists& lists, int32_t* fault) const {
    TileListsArgs out;
    out.classes = classes.data();
    out.q_offsets = q_offsets.data(), out.kv_offsets = kv_offsets.data();
    out.maps = out.q_maps = out.kv_maps = maps;
    out.num_q_blocks = nq, out.num_kv_blocks = nk;
    out.q_len = static_cast<int32_t>(p.q_len), out.kv_len = static_cast<int32_t>(p.positions());
    out.tile_queries = tile.queries, out.span_keys = tile.keys;
    out.tiles = lists.tiles, out.counts = lists.counts, out.fault = fault;
    if (tile.is_packed) {
      out.packed = lists.packed;
    } else {
      out.spans = lists.spans;
    }
    out.tiles_per_map = tiles_per_map, out.capacity = capacity;
    return out;
  }

  // Masks of random bits for every tile of a block; now and then of no bit at all.
  void add_masks(std::mt19937& random) {
    const auto words = static_cast<size_t>(tile.queries) * kMaskWords;
    for (int64_t row = 0; row < maps * nq; ++row) {
      const int32_t* q = q_offsets.data() + row / nq * (nq + 1) + row % nq;
      const int64_t parts = (q[1] - q[0] + tile.queries - 1) / tile.queries;
      for (int32_t i = 0; i < counts[row]; ++i) {
        if (random() % 3 != 0) continue;
        spans[row * capacity + i].mask = static_cast<uint32_t>(1 + masks.size() / words);
        const bool empty = random() % 8 == 0;
        for (size_t word = 0; word < parts * words; ++word) {
          masks.push_back(empty ? 0 : static_cast<uint32_t>(random()));
        }
      }
    }
  }

  // Whether each key of a row counts, from the map and the masks.
  std::vector<bool> visible(const AttentionProblem& p, int64_t map, int64_t row) const {
    std::vector<bool> out(p.positions(), false);
    const int32_t* q = q_offsets.data() + map * (nq + 1);
    const int32_t* kv = kv_offsets.data() + map * (nk + 1);
    int64_t block = 0;
    while (row >= q[block + 1]) ++block;
    for (int64_t j = 0; j < nk; ++j) {
      if (classes[(map * nq + block) * nk + j] == 0) continue;
      std::fill(out.begin() + kv[j], out.begin() + kv[j + 1], true);
    }
    if (!p.masks) return out;
    const int64_t part = (row - q[block]) / tile.queries, own = (row - q[block]) % tile.queries;
    for (int32_t i = 0; i < counts[map * nq + block]; ++i) {
      const KeySpan span = spans[(map * nq + block) * capacity + i];
      if (span.mask == 0) continue;
      const uint32_t* words =
          masks.data() + ((span.mask - 1 + part) * tile.queries + own) * kMaskWords;
      for (int key = 0; key < static_cast<int>(span.len); ++key) {
        const int bit = key / 8 * 2 + key % 2;
        if ((words[key % 8 / 2] >> bit & 1) == 0) out[span.begin + key] = false;
      }
    }
    return out;
  }
};

/// Random integers with a scale for each row, where there are any: what values become.
struct Integers {
  std::vector<int8_t> numbers;  // as the values lie in memory
  std::vector<float> scale;     // [batch, heads, rows]

  void replace(Values& x, std::mt19937& random) {
    numbers.resize(x.values.size());
    const int64_t rows = static_cast<int64_t>(x.values.size()) / x.dim;
    std::uniform_real_distribution<float> uniform(0.6f, 1.4f);
    for (int64_t i = 0; i < rows; ++i) {
      scale.push_back(uniform(random) * 1.7f / 127);
      const int64_t at = x.at(i / x.rows / x.heads, i / x.rows % x.heads, i % x.rows);
      for (int64_t d = 0; d < x.dim; ++d) {
        numbers[at + d] = static_cast<int8_t>(static_cast<int>(random() % 255) - 127);
        x.values[at + d] = static_cast<double>(numbers[at + d]) * scale.back();
      }
    }
  }

  static ScaledIntegers view(const Values& x, const int8_t* data, const float* scale) {
    const HeadRows v = x.view(nullptr);
    return {data, v.batch_stride, v.head_stride, v.row_stride, scale, x.heads * x.rows, x.rows};
  }
};

/// The numbers of a problem.
struct Inputs {
  Values q, k, v, more_k, more_v;
  std::optional<Blocks> blocks;
  // [batch, heads, keys], with 3 unused numbers between heads and 5 more between items.
  std::vector<float> bias;
  int64_t bias_head = 0, bias_item = 0;
  std::vector<int32_t> order;  // [batch, heads, q_len]
  Integers q_int8, k_int8;

  Inputs(const AttentionProblem& p, AttentionTile tile, int seed)
      : Inputs(p, tile, std::mt19937(seed)) {}

  bool sees(const AttentionProblem& p, const std::vector<bool>* listed, int64_t position) const {
    if (listed != nullptr) return (*listed)[position];
    return position < p.kv_len || position >= p.more_begin();
  }

 private:
  Inputs(const AttentionProblem& p, AttentionTile tile, std::mt19937 random)
      : q(p, p.heads, p.q_len, random),
        k(p, p.kv_heads, p.kv_len, random),
        v(p, p.kv_heads, p.kv_len, random),
        more_k(p, p.kv_heads, p.more_keys, random),
        more_v(p, p.kv_heads, p.more_keys, random) {
    if (p.integers) q_int8.replace(q, random), k_int8.replace(k, random);
    if (p.density) blocks.emplace(p, tile, random);
    if (p.bias_begin) {
      bias_head = p.positions() - *p.bias_begin + 3;
      bias_item = bias_head * p.heads + 5;
      std::normal_distribution<float> normal(0, 3);
      bias.resize(p.batch * bias_item);
      for (float& x : bias) {
        x = random() % 10 == 0 ? -std::numeric_limits<float>::infinity() : normal(random);
      }
    }
    if (p.out_order) {
      order.resize(p.batch * p.heads * p.q_len);
      for (int64_t head = 0; head < p.batch * p.heads; ++head) {
        const auto begin = order.begin() + head * p.q_len;
        std::iota(begin, begin + p.q_len, 0);
        std::shuffle(begin, begin + p.q_len, random);
      }
    }
  }
};

struct Row {
  int64_t item, head, index;
};

struct Exact {
  std::vector<double> out;
  double lse = -std::numeric_limits<double>::infinity();
};

/// The logit of a row and a visible key.
inline double exact_logit(const AttentionProblem& p, const Inputs& in, Row row, int64_t position) {
  const int64_t kv_head = row.head / (p.heads / p.kv_heads);
  const double* q = in.q.row(row.item, row.head, row.index);
  const double* k = position < p.kv_len
                        ? in.k.row(row.item, kv_head, position)
                        : in.more_k.row(row.item, kv_head, position - p.more_begin());
  double sum = 0;
  for (int64_t d = 0; d < p.dim; ++d) sum += q[d] * k[d];
  sum *= p.scale();
  if (p.bias_begin && position >= *p.bias_begin) {
    sum += in.bias[row.item * in.bias_item + row.head * in.bias_head + position - *p.bias_begin];
  }
  return sum;
}

inline Exact exact_row(const AttentionProblem& p, const Inputs& in, Row row) {
  const int64_t kv_head = row.head / (p.heads / p.kv_heads);
  std::optional<std::vector<bool>> listed;
  if (in.blocks) listed = in.blocks->visible(p, row.item * p.heads + row.head, row.index);
  std::vector<double> logits(p.positions(), -std::numeric_limits<double>::infinity());
  double largest = -std::numeric_limits<double>::infinity();
  for (int64_t key = 0; key < p.positions(); ++key) {
    if (!in.sees(p, listed ? &*listed : nullptr, key)) continue;
    logits[key] = exact_logit(p, in, row, key);
    largest = std::max(largest, logits[key]);
  }
  Exact exact{std::vector<double>(p.dim, 0)};
  if (std::isinf(largest)) return exact;
  double total = 0;
  for (int64_t key = 0; key < p.positions(); ++key) {
    if (std::isinf(logits[key])) continue;
    const double weight = std::exp(logits[key] - largest);
    total += weight;
    const double* v = key < p.kv_len ? in.v.row(row.item, kv_head, key)
                                     : in.more_v.row(row.item, kv_head, key - p.more_begin());
    for (int64_t d = 0; d < p.dim; ++d) exact.out[d] += weight * v[d];
  }
  for (double& x : exact.out) x /= total;
  exact.lse = largest + std::log(total);
  return exact;
}

// An array of one entry for nothing.
template <typename T>
std::vector<T> or_one(const std::vector<T>& values) {
  return values.empty() ? std::vector<T>(1) : values;
}

}  // namespace attention_test

/// A problem's numbers on the device, as a kernel wants them, and its results.
class AttentionCase {
 public:
  AttentionCase(const AttentionProblem& p, AttentionTile tile, int seed)
      : p_(p),
        in_(p, tile, seed),
        q_(in_.q.bits()),
        k_(in_.k.bits()),
        v_(in_.v.bits()),
        more_k_(attention_test::or_one(in_.more_k.bits())),
        more_v_(attention_test::or_one(in_.more_v.bits())),
        out_(std::vector<uint16_t>(in_.q.values.size(), 0x7fff)),  // NaN
        lse_(std::vector<float>(p.batch * p.heads * p.q_len, 1e9f)),
        tiles_(in_.blocks ? in_.blocks->tiles : std::vector<QueryTile>(1)),
        counts_(in_.blocks ? in_.blocks->counts : std::vector<int32_t>(1)),
        spans_(in_.blocks ? attention_test::or_one(in_.blocks->spans) : std::vector<KeySpan>(1)),
        packed_(in_.blocks ? attention_test::or_one(in_.blocks->packed)
                           : std::vector<PackedSpan>(1)),
        masks_(in_.blocks ? attention_test::or_one(in_.blocks->masks) : std::vector<uint32_t>(1)),
        bias_(attention_test::or_one(in_.bias)),
        order_(attention_test::or_one(in_.order)),
        q_int8_(attention_test::or_one(in_.q_int8.numbers)),
        k_int8_(attention_test::or_one(in_.k_int8.numbers)),
        q_scale_(attention_test::or_one(in_.q_int8.scale)),
        k_scale_(attention_test::or_one(in_.k_int8.scale)) {}

  CudaAttentionArgs args() const {
    CudaAttentionArgs args;
    args.batch = p_.batch, args.heads = p_.heads, args.kv_heads = p_.kv_heads;
    args.q_len = p_.q_len, args.kv_len = p_.kv_len, args.dim = p_.dim;
    args.q = in_.q.view(q_.data()), args.k = in_.k.view(k_.data()), args.v = in_.v.view(v_.data());
    if (p_.integers) {
      using attention_test::Integers;
      args.q = args.k = {};
      args.q_int8 = Integers::view(in_.q, q_int8_.data(), q_scale_.data());
      args.k_int8 = Integers::view(in_.k, k_int8_.data(), k_scale_.data());
    }
    if (p_.more_keys > 0) {
      args.more = {in_.more_k.view(more_k_.data()), in_.more_v.view(more_v_.data()),
                   static_cast<int32_t>(p_.more_begin()), static_cast<int32_t>(p_.more_keys)};
    }
    const HeadRows out = in_.q.view(nullptr);
    args.out = {out_.data(), p_.dtype, out.batch_stride, out.head_stride, out.row_stride};
    args.lse = lse_.data();
    args.sm_scale = p_.scale();
    if (p_.out_order) args.out_order = {order_.data(), p_.heads * p_.q_len, p_.q_len};
    if (p_.bias_begin) {
      args.key_bias = {bias_.data(), in_.bias_item, in_.bias_head,
                       static_cast<int32_t>(*p_.bias_begin)};
    }
    if (in_.blocks) {
      const attention_test::Blocks& b = *in_.blocks;
      args.tile = b.tile;
      args.lists = {tiles_.data(), counts_.data(), spans_.data(), b.tiles_per_map,
                    b.nq,          b.capacity,     p_.heads,      1,
                    nullptr};
      if (p_.masks) args.lists.masks = masks_.data();
      if (b.tile.is_packed) args.lists.spans = nullptr, args.lists.packed = packed_.data();
    }
    return args;
  }

  /// A counter of tiles, for kernels that take one.
  int32_t* next_tile() const { return next_tile_.data(); }
  int32_t tiles_counted() const { return next_tile_.read()[0]; }

  /// The bits of out, as they lie in memory.
  std::vector<uint16_t> out() const { return out_.read(); }

  /// Every row of out and lse against fp64: its largest errors, and the relative L2 error of all.
  void check() const {
    const Results results{out_.read(), lse_.read()};
    double error = 0, size = 0;
    for (int64_t item = 0; item < p_.batch; ++item) {
      for (int64_t head = 0; head < p_.heads; ++head) {
        for (int64_t row = 0; row < p_.q_len; ++row) {
          check_row({item, head, row}, results, error, size);
          if (testing::Test::HasFatalFailure()) return;
        }
      }
    }
    // Weights and results are rounded to 8 bits of fraction, or to 11.
    EXPECT_LT(std::sqrt(error / std::max(size, 1e-300)), p_.dtype == DType::bf16 ? 4e-3 : 5e-4);
  }

 private:
  struct Results {
    std::vector<uint16_t> out;
    std::vector<float> lse;
  };

  void check_row(attention_test::Row row, const Results& results, double& error,
                 double& size) const {
    const attention_test::Exact exact = attention_test::exact_row(p_, in_, row);
    const int64_t of_head = (row.item * p_.heads + row.head) * p_.q_len;
    const int64_t place = p_.out_order ? in_.order[of_head + row.index] : row.index;
    const float got = results.lse[of_head + place];
    if (std::isinf(exact.lse)) {
      ASSERT_EQ(got, exact.lse) << "item " << row.item << ", head " << row.head << ", row "
                                << row.index;
    } else {
      ASSERT_NEAR(got, exact.lse, 2e-5 * std::max(1.0, std::abs(exact.lse)))
          << "item " << row.item << ", head " << row.head << ", row " << row.index;
    }
    for (int64_t d = 0; d < p_.dim; ++d) {
      const uint16_t bits = results.out[in_.q.at(row.item, row.head, place) + d];
      const double apart = attention_test::value_of(p_.dtype, bits) - exact.out[d];
      ASSERT_LT(std::abs(apart), 0.05)
          << "item " << row.item << ", head " << row.head << ", row " << row.index << ", channel "
          << d << ", exact " << exact.out[d];
      error += apart * apart, size += exact.out[d] * exact.out[d];
    }
  }

  AttentionProblem p_;
  attention_test::Inputs in_;
  DeviceArray<uint16_t> q_, k_, v_, more_k_, more_v_, out_;
  DeviceArray<float> lse_;
  DeviceArray<QueryTile> tiles_;
  DeviceArray<int32_t> counts_;
  DeviceArray<KeySpan> spans_;
  DeviceArray<PackedSpan> packed_;
  DeviceArray<uint32_t> masks_;
  DeviceArray<float> bias_;
  DeviceArray<int32_t> order_;
  DeviceArray<int32_t> next_tile_{std::vector<int32_t>(1)};
  DeviceArray<int8_t> q_int8_, k_int8_;
  DeviceArray<float> q_scale_, k_scale_;
};

/// Runs the kernel on a random problem and checks every row.
inline void check_attention(const AttentionProblem& p, const AttentionKernel& kernel, int seed) {
  const AttentionCase one(p, kernel.tile(p.block_q, p.block_kv), seed);
  const Status status = kernel.run(one.args(), {});
  ASSERT_TRUE(status.ok()) << status.message;
  one.check();
}

}  // namespace fovea::kernels
