#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <ostream>
#include <vector>

#include "core/attention/executors/cuda.h"
#include "core/check.h"
#include "kernels/attention/backward_check.h"
#include "kernels/common/half.h"
#include "tests/support/emulated_bytes.h"

// What `CudaAttentionArgs` and `CudaAttentionBackwardArgs` say, number by number on the CPU in
// fp64, as a backend: executors of GPUs run with tensors on the CPU then. Looks at what the kernels
// take for granted.

namespace fovea {

// Found by GoogleTest, which otherwise prints an address.
inline void PrintTo(const CudaBackend* backend, std::ostream* out) { *out << backend->name; }

}  // namespace fovea

namespace fovea::test {

class EmulatedCuda {
 public:
  explicit EmulatedCuda(const kernels::CudaAttentionArgs& args) : args_(args) {}

  kernels::Status run() {
    check_rows();
    for (int64_t item = 0; item < args_.batch; ++item) {
      for (int64_t head = 0; head < args_.heads; ++head) run(item, head);
    }
    return {};
  }

 protected:
  double number(const void* data, int64_t at) const {
    const auto bits = static_cast<const uint16_t*>(data)[at];
    return args_.q.dtype == kernels::DType::bf16 ? to_float(kernels::BFloat16{bits})
                                                 : to_float(kernels::Half{bits});
  }
  static const void* row(const kernels::HeadRows& x, int64_t item, int64_t head, int64_t row) {
    return static_cast<const uint16_t*>(x.data) + item * x.batch_stride + head * x.head_stride +
           row * x.row_stride;
  }
  // Whether number `own` of a tile's rows and number `other` of a span are a pair that counts.
  static bool sees(const kernels::TileLists& lists, int queries, const kernels::QueryTile& tile,
                   const kernels::KeySpan& span, int32_t own, int32_t other) {
    if (other >= static_cast<int32_t>(span.len)) return false;
    if (span.mask == 0) return true;
    const int64_t mask = span.mask - 1 + tile.part;
    const uint32_t* words = lists.masks + (mask * queries + own) * kernels::kMaskWords;
    return (words[other % 8 / 2] >> (other / 8 * 2 + other % 2) & 1) != 0;
  }
  const void* key_row(int64_t item, int64_t kv_head, int64_t key, const kernels::HeadRows& own,
                      const kernels::HeadRows& more) const {
    return key < args_.kv_len ? row(own, item, kv_head, key)
                              : row(more, item, kv_head, key - args_.more.begin);
  }
  // Of a query and the key in a position.
  double logit(int64_t item, int64_t head, int64_t query, int64_t key) const {
    const int64_t kv_head = head / (args_.heads / args_.kv_heads);
    const void* q = row(args_.q, item, head, query);
    const void* k = key_row(item, kv_head, key, args_.k, args_.more.k);
    double sum = 0;
    for (int64_t d = 0; d < args_.dim; ++d) sum += number(q, d) * number(k, d);
    sum *= args_.sm_scale;
    const kernels::KeyBias& bias = args_.key_bias;
    if (bias.data == nullptr || key < bias.begin) return sum;
    const float own =
        bias.data[item * bias.batch_stride + head * bias.head_stride + key - bias.begin];
    return std::isinf(own) && own < 0 ? own : sum + own;  // hidden, whatever it is
  }
  // Where the keys end that a position is one of.
  int64_t end_of_keys(int32_t begin) const {
    return begin < args_.kv_len ? args_.kv_len : args_.more.begin + args_.more.len;
  }
  static void store(kernels::DType dtype, double x, uint16_t* to) {
    const auto narrow = static_cast<float>(x);
    *to = dtype == kernels::DType::bf16 ? kernels::from_float<kernels::BFloat16>(narrow).bits
                                        : kernels::from_float<kernels::Half>(narrow).bits;
  }
  static void check(const void* data, int64_t batch, int64_t head, int64_t row) {
    FOVEA_ASSERT(reinterpret_cast<uintptr_t>(data) % 16 == 0, "rows begin anywhere");
    FOVEA_ASSERT(batch % 8 == 0 && head % 8 == 0 && row % 8 == 0, "strides ", batch, " ", head, " ",
                 row);
  }

  const kernels::CudaAttentionArgs& args_;

 private:
  struct Softmax {
    std::vector<double> logits;
    std::vector<const void*> values;
  };

  void check_rows() const {
    const auto known = [](int64_t count, int64_t stride) { return count == 1 ? 0 : stride; };
    for (const kernels::HeadRows* x : {&args_.k, &args_.v}) {
      check(x->data, known(args_.batch, x->batch_stride), known(args_.kv_heads, x->head_stride),
            known(args_.kv_len, x->row_stride));
    }
    check(args_.q.data, known(args_.batch, args_.q.batch_stride),
          known(args_.heads, args_.q.head_stride), known(args_.q_len, args_.q.row_stride));
    check(args_.out.data, args_.out.batch_stride, args_.out.head_stride, args_.out.row_stride);
    FOVEA_ASSERT(args_.more.k.data == nullptr || args_.more.begin >= args_.kv_len);
  }

  void run(int64_t item, int64_t head) {
    std::vector<int> times(static_cast<size_t>(args_.q_len), 0);
    const kernels::TileLists& lists = args_.lists;
    if (lists.tiles == nullptr) {
      FOVEA_ASSERT(args_.key_bias.data == nullptr && args_.more.k.data == nullptr);
      for (int64_t query = 0; query < args_.q_len; ++query) {
        Softmax softmax;
        for (int64_t key = 0; key < args_.kv_len; ++key) add(item, head, query, key, softmax);
        write(item, head, query, softmax);
      }
      return;
    }
    const int64_t map = item * lists.batch_stride + head * lists.head_stride;
    for (int64_t t = 0; t < lists.tiles_per_map; ++t) {
      const kernels::QueryTile tile = lists.tiles[map * lists.tiles_per_map + t];
      FOVEA_ASSERT(tile.len >= 0 && tile.len <= args_.tile.queries, "a tile of ", tile.len);
      for (int32_t i = 0; i < tile.len; ++i) {
        ++times[static_cast<size_t>(tile.begin + i)];
        run(item, head, tile, i);
      }
    }
    FOVEA_ASSERT(std::all_of(times.begin(), times.end(), [](int n) { return n == 1; }),
                 "queries are in no tile or in two");
  }

  void run(int64_t item, int64_t head, const kernels::QueryTile& tile, int32_t i) {
    const kernels::TileLists& lists = args_.lists;
    const int64_t map = item * lists.batch_stride + head * lists.head_stride;
    const int64_t row = map * lists.rows + tile.row;
    Softmax softmax;
    FOVEA_ASSERT(lists.counts[row] >= 0 && lists.counts[row] <= lists.capacity);
    if (args_.tile.is_packed) {
      add_packed(item, head, tile.begin + i, row, softmax);
      write(item, head, tile.begin + i, softmax);
      return;
    }
    int64_t end = 0;
    for (int32_t s = 0; s < lists.counts[row]; ++s) {
      const kernels::KeySpan span = lists.spans[row * lists.capacity + s];
      const auto len = static_cast<int32_t>(span.len);
      FOVEA_ASSERT(len >= 1 && len <= args_.tile.keys && span.begin >= end, "a span of ", len,
                   " from ", span.begin);
      end = span.begin + len;
      const bool is_own = end <= args_.kv_len;
      FOVEA_ASSERT(is_own ||
                   (span.begin >= args_.more.begin && end <= args_.more.begin + args_.more.len));
      const auto loaded = std::min<int64_t>(args_.tile.keys, end_of_keys(span.begin) - span.begin);
      for (int32_t key = 0; key < loaded; ++key) {
        add(item, head, tile.begin + i, span.begin + key, softmax);
        // A weight of 0, with which values are multiplied nevertheless.
        if (!sees(lists, args_.tile.queries, tile, span, i, key)) {
          softmax.logits.back() = -std::numeric_limits<double>::infinity();
        }
      }
    }
    write(item, head, tile.begin + i, softmax);
  }

  void add_packed(int64_t item, int64_t head, int64_t query, int64_t row, Softmax& softmax) const {
    const kernels::TileLists& lists = args_.lists;
    FOVEA_ASSERT(args_.key_bias.data == nullptr && lists.spans == nullptr);
    const kernels::PackedSpan* span = lists.packed + row * lists.capacity;
    for (int32_t step = 0; step < lists.counts[row]; ++step) {
      int32_t keys = 0, spans = 0;
      for (bool is_last = false; !is_last; ++span) {
        const auto len = static_cast<int32_t>(span->len);
        FOVEA_ASSERT(len >= 1 && static_cast<int32_t>(span->row) == keys &&
                     span->begin + len <= end_of_keys(span->begin));
        for (int32_t i = 0; i < len; ++i) add(item, head, query, span->begin + i, softmax);
        keys += len, ++spans;
        is_last = span->ends_step != 0;
      }
      FOVEA_ASSERT(keys <= args_.tile.keys && spans <= kernels::kMostPacked);
    }
    FOVEA_ASSERT(span - lists.packed <= (row + 1) * lists.capacity);
  }

  void add(int64_t item, int64_t head, int64_t query, int64_t key, Softmax& softmax) const {
    const int64_t kv_head = head / (args_.heads / args_.kv_heads);
    softmax.logits.push_back(logit(item, head, query, key));
    softmax.values.push_back(key_row(item, kv_head, key, args_.v, args_.more.v));
  }

  void write(int64_t item, int64_t head, int64_t query, const Softmax& softmax) {
    constexpr double kInfinity = std::numeric_limits<double>::infinity();
    double largest = -kInfinity, total = 0;
    for (const double x : softmax.logits) largest = std::max(largest, x);
    bool is_nan = false;
    for (const double x : softmax.logits) is_nan = is_nan || std::isnan(x);
    std::vector<double> out(static_cast<size_t>(args_.dim), 0);
    for (size_t i = 0; i < softmax.logits.size(); ++i) {
      const double weight = largest == -kInfinity ? 0 : std::exp(softmax.logits[i] - largest);
      total += weight;
      for (int64_t d = 0; d < args_.dim; ++d) {
        out[static_cast<size_t>(d)] += weight * number(softmax.values[i], d);
      }
    }
    if (is_nan) total = std::numeric_limits<double>::quiet_NaN();
    const kernels::RowOrder& order = args_.out_order;
    int64_t at = query;
    if (order.rows) at = order.rows[item * order.batch_stride + head * order.head_stride + query];
    auto* const to = static_cast<uint16_t*>(args_.out.data) + item * args_.out.batch_stride +
                     head * args_.out.head_stride + at * args_.out.row_stride;
    for (int64_t d = 0; d < args_.dim; ++d) {
      store(args_.out.dtype, out[static_cast<size_t>(d)] / (total == 0 ? 1 : total), to + d);
    }
    if (args_.lse == nullptr) return;
    args_.lse[(item * args_.heads + head) * args_.q_len + at] =
        static_cast<float>(total == 0 ? -kInfinity : largest + std::log(total));
  }
};

inline kernels::Status run_emulated(const kernels::CudaAttentionArgs& args, kernels::CudaTarget) {
  return EmulatedCuda(args).run();
}

/// Gradients of queries by the lists of rows, those of keys by those of columns. What tiles and
/// spans have beside what counts is multiplied by 0.
class EmulatedCudaBackward : EmulatedCuda {
 public:
  explicit EmulatedCudaBackward(const kernels::CudaAttentionBackwardArgs& args)
      : EmulatedCuda(args.forward), all_(args) {}

  kernels::Status run() {
    FOVEA_ASSERT(args_.lists.tiles != nullptr ||
                 (args_.key_bias.data == nullptr && args_.more.k.data == nullptr));
    FOVEA_ASSERT(args_.out_order.rows == nullptr);
    const kernels::Status wrong = kernels::what_is_wrong_backward(all_);
    FOVEA_ASSERT(wrong.ok(), wrong.message);
    const auto known = [](int64_t count, int64_t stride) { return count == 1 ? 0 : stride; };
    check(all_.grad_out.data, known(args_.batch, all_.grad_out.batch_stride),
          known(args_.heads, all_.grad_out.head_stride),
          known(args_.q_len, all_.grad_out.row_stride));
    for (const kernels::MutableHeadRows* x : {&args_.out, &all_.grad_q, &all_.grad_k, &all_.grad_v,
                                              &all_.grad_more_k, &all_.grad_more_v}) {
      if (x->data != nullptr) check(x->data, x->batch_stride, x->head_stride, x->row_stride);
    }
    for (int64_t item = 0; item < args_.batch; ++item) {
      for (int64_t head = 0; head < args_.heads; ++head) {
        if (all_.grad_q.data != nullptr) run_rows(item, head);
      }
      for (int64_t head = 0; head < args_.kv_heads; ++head) {
        if (all_.grad_k.data != nullptr) run_columns(item, head);
      }
    }
    return {};
  }

 private:
  struct Pair {
    int64_t item, head, query, key;  // a head of queries, a position of keys
  };
  struct Slope {
    double weight, logit;  // the pair's weight, and the gradient of its logit
  };
  using Numbers = std::vector<double>;

  int64_t kv_head(int64_t head) const { return head / (args_.heads / args_.kv_heads); }

  Slope slope(const Pair& p, bool is_seen) const {
    const int64_t of_row = (p.item * args_.heads + p.head) * args_.q_len + p.query;
    const double lse = args_.lse[of_row];
    const bool is_empty = std::isinf(lse);
    const double weight =
        is_seen && !is_empty ? std::exp(logit(p.item, p.head, p.query, p.key) - lse) : 0;
    const auto& [data, dtype, batch, head, step] = args_.out;
    const void* out = row({data, dtype, batch, head, step}, p.item, p.head, p.query);
    const void* grad = row(all_.grad_out, p.item, p.head, p.query);
    const void* v = key_row(p.item, kv_head(p.head), p.key, args_.v, args_.more.v);
    double sum = all_.grad_lse != nullptr && !is_empty ? all_.grad_lse[of_row] : 0;
    for (int64_t d = 0; d < args_.dim; ++d) {
      sum += number(grad, d) * (number(v, d) - (is_empty ? 0 : number(out, d)));
    }
    return {weight, weight * sum};
  }

  void add(const void* x, double weight, Numbers& sum) const {
    for (int64_t d = 0; d < args_.dim; ++d) sum[static_cast<size_t>(d)] += weight * number(x, d);
  }
  void write(const Numbers& sum, double scale, const kernels::MutableHeadRows& to, int64_t item,
             int64_t head, int64_t row) const {
    auto* const place = static_cast<uint16_t*>(to.data) + item * to.batch_stride +
                        head * to.head_stride + row * to.row_stride;
    for (int64_t d = 0; d < args_.dim; ++d) {
      store(args_.q.dtype, scale * sum[static_cast<size_t>(d)], place + d);
    }
  }

  // A map's tiles, or one for each row.
  static std::vector<kernels::QueryTile> tiles_of(const kernels::TileLists& lists, int64_t map,
                                                  int64_t len) {
    std::vector<kernels::QueryTile> out;
    for (int32_t i = 0; lists.tiles == nullptr && i < len; ++i) out.push_back({i, 1, 0, 0});
    if (lists.tiles == nullptr) return out;
    const kernels::QueryTile* tiles = lists.tiles + map * lists.tiles_per_map;
    return {tiles, tiles + lists.tiles_per_map};
  }
  static int64_t map_of(const kernels::TileLists& lists, int64_t item, int64_t head) {
    return item * lists.batch_stride + head * lists.head_stride;
  }

  // Calls f(other row, whether it counts) for all that are loaded for number `own` of a tile.
  template <typename F>
  void for_each_other(bool of_columns, int64_t map, const kernels::QueryTile& tile, int32_t own,
                      const F& f) const {
    const kernels::TileLists& lists = of_columns ? all_.columns : args_.lists;
    const kernels::AttentionTile size = of_columns ? all_.column_tile : args_.tile;
    const int64_t len = of_columns ? args_.q_len : args_.kv_len;
    if (lists.tiles == nullptr) {
      for (int64_t i = 0; i < len; ++i) f(i, true);
      return;
    }
    const int64_t of_row = map * lists.rows + tile.row;
    FOVEA_ASSERT(tile.len <= size.queries && tile.row < lists.rows &&
                 lists.counts[of_row] <= lists.capacity);
    for (int32_t s = 0; s < lists.counts[of_row]; ++s) {
      const kernels::KeySpan span = lists.spans[of_row * lists.capacity + s];
      FOVEA_ASSERT(span.len > 0 && static_cast<int>(span.len) <= size.keys);
      const int64_t end = of_columns ? len : end_of_keys(span.begin);
      for (int32_t i = 0; i < std::min<int64_t>(size.keys, end - span.begin); ++i) {
        f(span.begin + i, sees(lists, size.queries, tile, span, own, i));
      }
    }
  }

  void run_rows(int64_t item, int64_t head) const {
    const int64_t map = map_of(args_.lists, item, head);
    for (const kernels::QueryTile& tile : tiles_of(args_.lists, map, args_.q_len)) {
      for (int32_t i = 0; i < tile.len; ++i) {
        Numbers sum(static_cast<size_t>(args_.dim), 0);
        for_each_other(false, map, tile, i, [&](int64_t key, bool is_seen) {
          const void* k = key_row(item, kv_head(head), key, args_.k, args_.more.k);
          add(k, slope({item, head, tile.begin + i, key}, is_seen).logit, sum);
        });
        write(sum, args_.sm_scale, all_.grad_q, item, head, tile.begin + i);
      }
    }
  }

  void run_columns(int64_t item, int64_t head) const {
    const int64_t group = args_.heads / args_.kv_heads, first = head * group;
    const int64_t map = map_of(all_.columns, item, first);
    for (const kernels::QueryTile& tile : tiles_of(all_.columns, map, args_.kv_len)) {
      for (int32_t i = 0; i < tile.len; ++i) {
        const int64_t key = tile.begin + i;
        Numbers dk(static_cast<size_t>(args_.dim), 0), dv = dk;
        for (int64_t h = first; h < first + group; ++h) {
          const auto add_query = [&](int64_t query, bool is_seen) {
            const Slope own = slope({item, h, query, key}, is_seen);
            add(row(args_.q, item, h, query), own.logit, dk);
            add(row(all_.grad_out, item, h, query), own.weight, dv);
          };
          for_each_other(true, map_of(all_.columns, item, h), tile, i, add_query);
        }
        const bool is_own = key < args_.kv_len;
        const int64_t at = is_own ? key : key - args_.more.begin;
        write(dk, args_.sm_scale, is_own ? all_.grad_k : all_.grad_more_k, item, head, at);
        write(dv, 1, is_own ? all_.grad_v : all_.grad_more_v, item, head, at);
      }
    }
  }

  const kernels::CudaAttentionBackwardArgs& all_;
};

inline int64_t emulated_workspace_bytes(const kernels::CudaAttentionBackwardArgs&) { return 16; }

inline kernels::Status run_backward_emulated(const kernels::CudaAttentionBackwardArgs& args,
                                             kernels::CudaTarget) {
  return EmulatedCudaBackward(args).run();
}

inline std::optional<std::string> why_not_emulated(const AttentionCall& call) {
  if (!call.q.is_cpu()) return "runs on the CPU";
  if (call.q.size(3) % 8 != 0) return "takes multiples of 8 channels";
  return std::nullopt;
}

/// Tiles as `cuda_sm90` has them.
inline kernels::AttentionTile emulated_tile(int64_t block_q, int64_t block_kv) {
  if (block_q % 128 != 0) return {64, 64};
  return block_kv % 128 == 0 ? kernels::AttentionTile{128, 128} : kernels::AttentionTile{128, 64};
}

inline kernels::AttentionTile emulated_packed_tile() { return {128, 160, true}; }

inline std::optional<std::string> why_no_emulated_gradients(const AttentionCall& call) {
  if (call.q.size(3) <= 128) return std::nullopt;
  return "gives gradients of up to 128 channels a head";
}

/// As both backends have them.
inline kernels::AttentionTile emulated_column_tile(int64_t /*block_q*/, int64_t block_kv) {
  return {block_kv % 128 == 0 ? 128 : 64, 64};
}

inline const CudaBackend& emulated_backend() {
  static constexpr CudaBackend kBackend = {"cuda_emulated",
                                           &why_not_emulated,
                                           &emulated_tile,
                                           &emulated_packed_tile,
                                           &run_emulated,
                                           {&why_no_emulated_gradients, &emulated_column_tile,
                                            &emulated_workspace_bytes, &run_backward_emulated},
                                           &run_emulated_bytes};
  return kBackend;
}

}  // namespace fovea::test
