#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "core/check.h"
#include "kernels/attention/eight_bit_cuda.h"
#include "kernels/common/e4m3.h"
#include "kernels/common/half.h"

// What eight_bit_cuda.h and `Precision` say, number by number on the CPU in fp64. Looks at what the
// kernels take for granted.

namespace fovea::test {

class EmulatedBytes {
 public:
  EmulatedBytes(const kernels::CudaAttentionArgs& args, const kernels::EightBitOperands& operands)
      : args_(args), in_(operands), places_(kernels::byte_places(args.kv_len)) {
    const bool is_int8 = in_.format == kernels::ByteFormat::int8;
    q_ = numbers(in_.q, args.batch * args.heads * args.q_len * args.dim, is_int8);
    k_ = numbers(in_.k, args.batch * args.kv_heads * args.kv_len * args.dim, is_int8);
    v_ = numbers(in_.v, args.batch * args.kv_heads * args.dim * places_, false);
  }

  kernels::Status run() {
    FOVEA_ASSERT(args_.q.data == nullptr && args_.more.k.data == nullptr && !in_.online);
    FOVEA_ASSERT(args_.lists.tiles == nullptr || args_.tile == kernels::kEightBitTile);
    for (item_ = 0; item_ < args_.batch; ++item_) {
      for (head_ = 0; head_ < args_.heads; ++head_) {
        args_.lists.tiles == nullptr ? run_dense() : run_listed();
      }
    }
    return {};
  }

 private:
  struct Key {
    int64_t position;
    double logit;
  };

  int64_t kv_head() const {
    return item_ * args_.kv_heads + head_ / (args_.heads / args_.kv_heads);
  }
  static std::vector<float> numbers(const void* data, int64_t count, bool is_int8) {
    const auto* const bytes = static_cast<const uint8_t*>(data);
    std::vector<float> of_byte, out;
    for (int i = 0; i < 256; ++i) {
      const auto byte = static_cast<uint8_t>(i);
      of_byte.push_back(is_int8 ? static_cast<int8_t>(byte) : kernels::from_e4m3(byte));
    }
    for (int64_t i = 0; i < count; ++i) out.push_back(of_byte[bytes[i]]);
    return out;
  }

  // The keys from `begin` on share a scale unless each has its own.
  Key key_of(int64_t query, int64_t begin, int64_t position) const {
    const int64_t q = (item_ * args_.heads + head_) * args_.q_len + query;
    const int64_t k = kv_head() * args_.kv_len + position;
    const float *own_q = q_.data() + q * args_.dim, *own_k = k_.data() + k * args_.dim;
    double sum = 0;  // each product is exact in fp32
    for (int64_t d = 0; d < args_.dim; ++d) sum += own_q[d] * own_k[d];
    const float* scales = in_.k_scale + kv_head() * places_;
    FOVEA_ASSERT(in_.scale_by_key || scales[begin] == scales[position] || std::isnan(scales[begin]),
                 "keys of a span have several scales");
    sum *= args_.sm_scale * in_.q_scale[q] * scales[position];
    const kernels::KeyBias& bias = args_.key_bias;
    if (bias.data != nullptr && position >= bias.begin) {
      const float own =
          bias.data[item_ * bias.batch_stride + head_ * bias.head_stride + position - bias.begin];
      sum = std::isinf(own) && own < 0 ? own : sum + own;
    }
    return {position, sum};
  }

  void run_dense() const {
    FOVEA_ASSERT(args_.key_bias.data == nullptr);
    for (int64_t query = 0; query < args_.q_len; ++query) {
      std::vector<Key> keys;
      for (int64_t key = 0; key < args_.kv_len; ++key) {
        keys.push_back(key_of(query, key / 128 * 128, key));
      }
      write(query, keys);
    }
  }

  void run_listed() const {
    std::vector<int> times(static_cast<size_t>(args_.q_len), 0);
    const kernels::TileLists& lists = args_.lists;
    const int64_t map = item_ * lists.batch_stride + head_ * lists.head_stride;
    for (int64_t t = 0; t < lists.tiles_per_map; ++t) {
      const kernels::QueryTile tile = lists.tiles[map * lists.tiles_per_map + t];
      for (int32_t i = 0; i < tile.len; ++i) {
        ++times[static_cast<size_t>(tile.begin + i)];
        run_row(tile, i);
      }
    }
    FOVEA_ASSERT(std::all_of(times.begin(), times.end(), [](int n) { return n == 1; }),
                 "queries are in no tile or in two");
  }

  void run_row(const kernels::QueryTile& tile, int32_t i) const {
    const kernels::TileLists& lists = args_.lists;
    const int64_t map = item_ * lists.batch_stride + head_ * lists.head_stride;
    const int64_t row = map * lists.rows + tile.row;
    std::vector<Key> keys;
    for (int32_t s = 0; s < lists.counts[row]; ++s) {
      const kernels::KeySpan span = lists.spans[row * lists.capacity + s];
      FOVEA_ASSERT(span.begin % 16 == 0 && span.len >= 1 && span.len <= 128, "a span of ",
                   static_cast<int>(span.len), " from ", span.begin);
      FOVEA_ASSERT(span.begin + static_cast<int64_t>(span.len) <= args_.kv_len);
      for (int32_t key = 0; key < static_cast<int32_t>(span.len); ++key) {
        if (span.mask > 0) {
          const int64_t mask = span.mask - 1 + tile.part;
          const uint32_t* words =
              lists.masks + (mask * args_.tile.queries + i) * kernels::kMaskWords;
          if ((words[key % 8 / 2] >> (key / 8 * 2 + key % 2) & 1) == 0) continue;
        }
        keys.push_back(key_of(tile.begin + i, span.begin, span.begin + key));
      }
    }
    write(tile.begin + i, keys);
  }

  // The place of a key in transposed values.
  static int64_t place_of(int64_t key) {
    for (int place = 0; place < 16; ++place) {
      if (kernels::key_of_place(place) == key % 16) return key / 16 * 16 + place;
    }
    return -1;
  }

  void write(int64_t query, const std::vector<Key>& keys) const {
    constexpr double kInfinity = std::numeric_limits<double>::infinity();
    double largest = -kInfinity, total = 0;
    for (const Key& key : keys) largest = std::max(largest, key.logit);
    // Weights are relative to a power of 2, such that the largest is one of e4m3's largest numbers.
    const double power = std::ceil(largest / std::log(2.0) - std::log2(448.0)) * std::log(2.0);
    std::vector<double> out(static_cast<size_t>(args_.dim), 0);
    for (const Key& key : keys) {
      const double weight = largest == -kInfinity ? 0 : std::exp(key.logit - power);
      const double rounded = kernels::from_e4m3(kernels::to_e4m3(static_cast<float>(weight)));
      total += rounded;
      const int64_t place = place_of(key.position);
      for (int64_t d = 0; d < args_.dim; ++d) {
        const int64_t column = kv_head() * args_.dim + d;
        out[static_cast<size_t>(d)] +=
            rounded * in_.v_scale[column] * v_[static_cast<size_t>(column * places_ + place)];
      }
    }
    const kernels::RowOrder& order = args_.out_order;
    int64_t at = query;
    if (order.rows) at = order.rows[item_ * order.batch_stride + head_ * order.head_stride + query];
    auto* const to = static_cast<uint16_t*>(args_.out.data) + item_ * args_.out.batch_stride +
                     head_ * args_.out.head_stride + at * args_.out.row_stride;
    for (int64_t d = 0; d < args_.dim; ++d) {
      const auto x = static_cast<float>(out[static_cast<size_t>(d)] / (total == 0 ? 1 : total));
      to[d] = args_.out.dtype == kernels::DType::bf16
                  ? kernels::from_float<kernels::BFloat16>(x).bits
                  : kernels::from_float<kernels::Half>(x).bits;
    }
    const int64_t of_head = (item_ * args_.heads + head_) * args_.q_len;
    const double more = in_.lse_more == nullptr ? 0 : in_.lse_more[of_head + query];
    args_.lse[of_head + at] =
        static_cast<float>(total == 0 ? -kInfinity : power + std::log(total) + more);
  }

  const kernels::CudaAttentionArgs& args_;
  const kernels::EightBitOperands& in_;
  int64_t places_, item_ = 0, head_ = 0;
  std::vector<float> q_, k_, v_;  // without their scales
};

inline kernels::Status run_emulated_bytes(const kernels::CudaAttentionArgs& args,
                                          const kernels::EightBitOperands& operands,
                                          kernels::CudaTarget) {
  return EmulatedBytes(args, operands).run();
}

}  // namespace fovea::test
