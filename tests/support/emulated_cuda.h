#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <ostream>
#include <vector>

#include "core/attention/executors/cuda.h"
#include "core/check.h"
#include "kernels/common/half.h"
#include "tests/support/emulated_bytes.h"

// What `CudaAttentionArgs` says, number by number on the CPU in fp64, as a backend: executors of
// GPUs run with tensors on the CPU then. Looks at what the kernels take for granted.

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

 private:
  struct Softmax {
    std::vector<double> logits;
    std::vector<const void*> values;
  };

  double number(const void* data, int64_t at) const {
    const auto bits = static_cast<const uint16_t*>(data)[at];
    return args_.q.dtype == kernels::DType::bf16 ? to_float(kernels::BFloat16{bits})
                                                 : to_float(kernels::Half{bits});
  }
  static const void* row(const kernels::HeadRows& x, int64_t item, int64_t head, int64_t row) {
    return static_cast<const uint16_t*>(x.data) + item * x.batch_stride + head * x.head_stride +
           row * x.row_stride;
  }
  void check_rows() const {
    const auto check = [](const void* data, int64_t batch, int64_t head, int64_t row) {
      FOVEA_ASSERT(reinterpret_cast<uintptr_t>(data) % 16 == 0, "rows begin anywhere");
      FOVEA_ASSERT(batch % 8 == 0 && head % 8 == 0 && row % 8 == 0, "strides ", batch, " ", head,
                   " ", row);
    };
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
      const int32_t last =
          is_own ? static_cast<int32_t>(args_.kv_len) : args_.more.begin + args_.more.len;
      const int32_t loaded = std::min(args_.tile.keys, last - span.begin);
      for (int32_t key = 0; key < loaded; ++key) {
        bool is_seen = key < len;
        if (is_seen && span.mask > 0) {
          const int64_t mask = span.mask - 1 + tile.part;
          const uint32_t* words =
              lists.masks + (mask * args_.tile.queries + i) * kernels::kMaskWords;
          is_seen = (words[key % 8 / 2] >> (key / 8 * 2 + key % 2) & 1) != 0;
        }
        add(item, head, tile.begin + i, span.begin + key, softmax);
        // A weight of 0, with which values are multiplied nevertheless.
        if (!is_seen) softmax.logits.back() = -std::numeric_limits<double>::infinity();
      }
    }
    write(item, head, tile.begin + i, softmax);
  }

  void add(int64_t item, int64_t head, int64_t query, int64_t key, Softmax& softmax) const {
    const int64_t kv_head = head / (args_.heads / args_.kv_heads);
    const bool is_own = key < args_.kv_len;
    const int64_t at = is_own ? key : key - args_.more.begin;
    const void* q = row(args_.q, item, head, query);
    const void* k = row(is_own ? args_.k : args_.more.k, item, kv_head, at);
    double sum = 0;
    for (int64_t d = 0; d < args_.dim; ++d) sum += number(q, d) * number(k, d);
    sum *= args_.sm_scale;
    const kernels::KeyBias& bias = args_.key_bias;
    if (bias.data != nullptr && key >= bias.begin) {
      const float own =
          bias.data[item * bias.batch_stride + head * bias.head_stride + key - bias.begin];
      sum = std::isinf(own) && own < 0 ? own : sum + own;  // hidden, whatever it is
    }
    softmax.logits.push_back(sum);
    softmax.values.push_back(row(is_own ? args_.v : args_.more.v, item, kv_head, at));
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
      const auto x = static_cast<float>(out[static_cast<size_t>(d)] / (total == 0 ? 1 : total));
      to[d] = args_.out.dtype == kernels::DType::bf16
                  ? kernels::from_float<kernels::BFloat16>(x).bits
                  : kernels::from_float<kernels::Half>(x).bits;
    }
    if (args_.lse == nullptr) return;
    args_.lse[(item * args_.heads + head) * args_.q_len + at] =
        static_cast<float>(total == 0 ? -kInfinity : largest + std::log(total));
  }

  const kernels::CudaAttentionArgs& args_;
};

inline kernels::Status run_emulated(const kernels::CudaAttentionArgs& args, kernels::CudaTarget) {
  return EmulatedCuda(args).run();
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

inline const CudaBackend& emulated_backend() {
  static constexpr CudaBackend kBackend = {"cuda_emulated", &why_not_emulated, &emulated_tile,
                                           &run_emulated, &run_emulated_bytes};
  return kBackend;
}

}  // namespace fovea::test
