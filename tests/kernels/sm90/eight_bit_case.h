#pragma once

#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include <cuda_fp8.h>

#include "kernels/attention/eight_bit_cuda.h"
#include "tests/kernels/attention_problem.h"

// Attention in 8-bit numbers: random operands on the device, and what comes of them, emulated in
// fp64 step by step.

namespace fovea::kernels {

struct EightBitProblem {
  AttentionProblem shape;
  ByteFormat format = ByteFormat::e4m3;
  bool scale_by_key = false;
  bool lse_more = false;
  bool negative = false;  // all logits are
};

inline double e4m3_value(uint8_t bits) {
  __nv_fp8_e4m3 x;
  x.__x = bits;
  return static_cast<float>(x);
}
inline uint8_t e4m3_bits(double x) { return __nv_fp8_e4m3(static_cast<float>(x)).__x; }

/// Numbers and scales on the host, as the kernel wants them; the values they stand for are put into
/// the tensors of `Inputs`.
struct EightBitNumbers {
  std::vector<uint8_t> q, k, v;
  std::vector<float> q_scale, k_scale, v_scale, lse_more;
  int64_t places;

  EightBitNumbers(const EightBitProblem& p, attention_test::Inputs& in, int seed)
      : places(byte_places(p.shape.kv_len)), format_(p.format), random_(seed) {
    const AttentionProblem& s = p.shape;
    const int64_t kv_heads = s.batch * s.kv_heads;
    fill_rows(in.q, q, p.negative ? 1 : 0), fill_rows(in.k, k, p.negative ? -1 : 0);
    q_scale.resize(s.batch * s.heads * s.q_len);
    for (float& x : q_scale) x = scale();
    k_scale.resize(kv_heads * places);
    for (int64_t head = 0; head < kv_heads; ++head) {
      const float all = scale();
      for (int64_t at = 0; at < places; ++at) {
        // Of steps of 128 keys the first key's counts; where spans begin elsewhere all agree.
        float& own = k_scale[head * places + at];
        own = p.scale_by_key ? scale() : all;
        if (!p.scale_by_key && !s.density)
          own = at % 128 == 0 ? scale() : k_scale[head * places + at - 1];
      }
    }
    for (int64_t i = 0; i < static_cast<int64_t>(in.q.values.size()); ++i) {
      in.q.values[i] *= q_scale[i / s.dim];
    }
    for (int64_t i = 0; i < static_cast<int64_t>(in.k.values.size()); ++i) {
      const int64_t row = i / s.dim;
      in.k.values[i] *= k_scale[row / s.kv_len * places + row % s.kv_len];
    }
    fill_values(s, in.v);
    if (p.lse_more) {
      std::normal_distribution<float> normal;
      for (size_t i = 0; i < q_scale.size(); ++i) lse_more.push_back(normal(random_));
    }
  }

 private:
  float scale() {
    return std::uniform_real_distribution<float>(0.5f, 1.5f)(random_) *
           (format_ == ByteFormat::int8 ? 1.7f / 127 : 1 / 64.0f);
  }
  // Numbers, without their scale; all of one sign, or of either where that is 0.
  void fill_rows(attention_test::Values& x, std::vector<uint8_t>& bytes, int sign) {
    std::normal_distribution<double> normal(0, 64);
    const auto signed_as_told = [&](auto number) {
      return sign == 0 ? number : static_cast<decltype(number)>(sign * std::abs(number));
    };
    for (double& value : x.values) {
      if (format_ == ByteFormat::int8) {
        const auto number =
            static_cast<int8_t>(signed_as_told(static_cast<int>(random_() % 255) - 127));
        value = number;
        bytes.push_back(static_cast<uint8_t>(number));
      } else {
        bytes.push_back(e4m3_bits(signed_as_told(normal(random_))));
        value = e4m3_value(bytes.back());
      }
    }
  }
  void fill_values(const AttentionProblem& s, attention_test::Values& x) {
    const int64_t heads = s.batch * s.kv_heads;
    std::normal_distribution<double> normal(0, 100);
    v.assign(heads * s.dim * places, 0);
    for (int64_t i = 0; i < heads * s.dim; ++i) {
      v_scale.push_back(std::uniform_real_distribution<float>(0.5f, 1.5f)(random_) / 100);
    }
    for (int64_t head = 0; head < heads; ++head) {
      for (int64_t channel = 0; channel < s.dim; ++channel) {
        const int64_t column = head * s.dim + channel;
        for (int64_t place = 0; place < places; ++place) {
          const int64_t key = place / 16 * 16 + key_of_place(static_cast<int>(place % 16));
          if (key >= s.kv_len) continue;
          uint8_t& own = v[column * places + place];
          own = e4m3_bits(normal(random_));
          x.values[(head * s.kv_len + key) * s.dim + channel] = e4m3_value(own) * v_scale[column];
        }
      }
    }
  }

  ByteFormat format_;
  std::mt19937 random_;
};

/// A problem on the device.
class EightBitCase {
 public:
  EightBitCase(const EightBitProblem& p, int seed)
      : EightBitCase(p, attention_test::Inputs(p.shape, kEightBitTile, seed), seed) {}

  CudaAttentionArgs args() const {
    const AttentionProblem& s = p_.shape;
    CudaAttentionArgs args;
    args.batch = s.batch, args.heads = s.heads, args.kv_heads = s.kv_heads;
    args.q_len = s.q_len, args.kv_len = s.kv_len, args.dim = s.dim;
    args.out = {out_.data(), s.dtype, s.heads * s.q_len * s.dim, s.q_len * s.dim, s.dim};
    args.lse = lse_.data();
    args.sm_scale = s.scale();
    if (s.out_order) args.out_order = {order_.data(), s.heads * s.q_len, s.q_len};
    if (s.bias_begin) {
      args.key_bias = {bias_.data(), in_.bias_item, in_.bias_head,
                       static_cast<int32_t>(*s.bias_begin)};
    }
    if (in_.blocks) {
      const attention_test::Blocks& b = *in_.blocks;
      args.tile = b.tile;
      args.lists = {tiles_.data(), counts_.data(), spans_.data(), b.tiles_per_map,
                    b.nq,          b.capacity,     s.heads,       1,
                    nullptr};
      if (s.masks) args.lists.masks = masks_.data();
      args.next_tile = next_tile_.data();
    }
    return args;
  }
  EightBitOperands operands() const {
    return {.format = p_.format,
            .q = q_.data(),
            .q_scale = q_scale_.data(),
            .k = k_.data(),
            .k_scale = k_scale_.data(),
            .scale_by_key = p_.scale_by_key,
            .v = v_.data(),
            .v_scale = v_scale_.data(),
            .lse_more = p_.lse_more ? lse_more_.data() : nullptr};
  }
  std::vector<uint16_t> out() const { return out_.read(); }

  /// Every row against its emulation.
  void check() const {
    const std::vector<uint16_t> out = out_.read();
    const std::vector<float> lse = lse_.read();
    const AttentionProblem& s = p_.shape;
    double error = 0, size = 0, border = 0;
    for (int64_t i = 0; i < s.batch * s.heads * s.q_len; ++i) {
      const attention_test::Row row = {i / s.q_len / s.heads, i / s.q_len % s.heads, i % s.q_len};
      const std::string name = "item " + std::to_string(row.item) + ", head " +
                               std::to_string(row.head) + ", row " + std::to_string(row.index);
      const Emulated want = emulate(row);
      const int64_t place = i - row.index + (s.out_order ? in_.order[i] : row.index);
      const double more = p_.lse_more ? numbers_.lse_more[i] : 0;
      if (std::isinf(want.lse)) {
        ASSERT_EQ(lse[place], want.lse) << name;
      } else {
        const double allowed = logit_error(want.lse) + kSumError + want.border;
        ASSERT_NEAR(lse[place], want.lse + more, allowed) << name;
        border += want.border / static_cast<double>(s.batch * s.heads * s.q_len);
      }
      for (int64_t d = 0; d < s.dim; ++d) {
        const double got = attention_test::value_of(s.dtype, out[place * s.dim + d]);
        // A weight at a border may be rounded the other way.
        ASSERT_LT(std::abs(got - want.out[d]), 0.15)
            << name << ", channel " << d << ", emulated " << want.out[d];
        error += (got - want.out[d]) * (got - want.out[d]), size += want.out[d] * want.out[d];
      }
    }
    // bf16 alone makes 2e-3; sums of products keep 14 bits.
    EXPECT_LT(std::sqrt(error / std::max(size, 1e-300)), 8e-3 + border);
  }

 private:
  EightBitCase(const EightBitProblem& p, attention_test::Inputs in, int seed)
      : EightBitCase(p, in, EightBitNumbers(p, in, seed + 1000)) {}
  // `in` has the values of `numbers` by now.
  EightBitCase(const EightBitProblem& p, const attention_test::Inputs& in, EightBitNumbers numbers)
      : p_(p),
        in_(in),
        numbers_(std::move(numbers)),
        q_(numbers_.q),
        k_(numbers_.k),
        v_(numbers_.v),
        q_scale_(numbers_.q_scale),
        k_scale_(numbers_.k_scale),
        v_scale_(numbers_.v_scale),
        lse_more_(attention_test::or_one(numbers_.lse_more)),
        out_(std::vector<uint16_t>(in_.q.values.size(), 0x7fff)),  // NaN
        lse_(std::vector<float>(p.shape.batch * p.shape.heads * p.shape.q_len, 1e9f)),
        tiles_(in_.blocks ? in_.blocks->tiles : std::vector<QueryTile>(1)),
        counts_(in_.blocks ? in_.blocks->counts : std::vector<int32_t>(1)),
        spans_(in_.blocks ? in_.blocks->spans : std::vector<KeySpan>(1)),
        masks_(in_.blocks ? attention_test::or_one(in_.blocks->masks) : std::vector<uint32_t>(1)),
        bias_(attention_test::or_one(in_.bias)),
        order_(attention_test::or_one(in_.order)) {}

  // Spans of a row's keys, from the last to the first.
  std::vector<KeySpan> spans_of(attention_test::Row row) const {
    const AttentionProblem& s = p_.shape;
    std::vector<KeySpan> out;
    if (!in_.blocks) {
      for (int64_t begin = 0; begin < s.kv_len; begin += 128) {
        out.push_back({static_cast<int32_t>(begin),
                       static_cast<uint32_t>(std::min<int64_t>(128, s.kv_len - begin))});
      }
    } else {
      const attention_test::Blocks& b = *in_.blocks;
      const int64_t map = row.item * s.heads + row.head;
      int64_t block = 0;
      while (row.index >= b.q_offsets[map * (b.nq + 1) + block + 1]) ++block;
      const auto first = b.spans.begin() + (map * b.nq + block) * b.capacity;
      out.assign(first, first + b.counts[map * b.nq + block]);
    }
    std::reverse(out.begin(), out.end());
    return out;
  }

  struct Emulated : attention_test::Exact {
    double border = 0;  // of the sum of weights, relatively: those that may be rounded either way
  };
  // Hopper cuts sums of e4m3 off behind 13 bits of fraction: four times for a logit, and a sum of
  // weights with every 32 keys. Integers are exact but for their scale.
  static constexpr double kSumError = 4e-3;
  double logit_error(double logit) const {
    return (p_.format == ByteFormat::e4m3 ? 4.0 / 8192 : 5e-5) * std::max(1.0, std::abs(logit));
  }

  Emulated emulate(attention_test::Row row) const {
    const AttentionProblem& s = p_.shape;
    const int64_t kv_head = row.head / (s.heads / s.kv_heads);
    std::optional<std::vector<bool>> listed;
    if (in_.blocks) listed = in_.blocks->visible(s, row.item * s.heads + row.head, row.index);
    // -inf where a key is hidden.
    const auto logits_of = [&](const KeySpan& span) {
      std::vector<double> logits;
      for (int64_t key = span.begin; key < span.begin + static_cast<int64_t>(span.len); ++key) {
        const bool is_seen = !listed || (*listed)[key];
        logits.push_back(is_seen ? attention_test::exact_logit(s, in_, row, key)
                                 : -std::numeric_limits<double>::infinity());
      }
      return logits;
    };
    double power = 0, sum = 0;  // weights are 2^power * exp(logit)
    bool is_first = true;
    Emulated out{{std::vector<double>(s.dim, 0)}};
    for (const KeySpan& span : spans_of(row)) {
      const std::vector<double> logits = logits_of(span);
      const double largest = *std::max_element(logits.begin(), logits.end()) / std::log(2.0);
      if (!std::isinf(largest) && (is_first || largest + power > std::log2(448))) {
        const double next = 8 - std::ceil(largest);
        const double keep = is_first ? 0 : std::exp2(next - power);
        is_first = false, power = next, sum *= keep, out.border *= keep;
        for (double& x : out.out) x *= keep;
      }
      for (size_t i = 0; i < logits.size(); ++i) {
        const auto rounded_at = [&](double logit) {
          return e4m3_value(e4m3_bits(std::exp2(logit / std::log(2.0) + power)));
        };
        const double rounded = rounded_at(logits[i]);
        sum += rounded;
        if (std::isinf(logits[i])) continue;
        const double off = logit_error(logits[i]);
        out.border += rounded_at(logits[i] + off) - rounded_at(logits[i] - off);
        if (rounded == 0) continue;
        const double* v = in_.v.row(row.item, kv_head, span.begin + static_cast<int64_t>(i));
        for (int64_t d = 0; d < s.dim; ++d) out.out[d] += rounded * v[d];
      }
    }
    if (sum == 0) return out;
    for (double& x : out.out) x /= sum;
    out.border /= sum;
    out.lse = (std::log2(sum) - power) * std::log(2.0);
    return out;
  }

  EightBitProblem p_;
  attention_test::Inputs in_;
  EightBitNumbers numbers_;
  DeviceArray<uint8_t> q_, k_, v_;
  DeviceArray<float> q_scale_, k_scale_, v_scale_, lse_more_;
  DeviceArray<uint16_t> out_;
  DeviceArray<float> lse_;
  DeviceArray<QueryTile> tiles_;
  DeviceArray<int32_t> counts_;
  DeviceArray<KeySpan> spans_;
  DeviceArray<uint32_t> masks_;
  DeviceArray<float> bias_;
  DeviceArray<int32_t> order_;
  DeviceArray<int32_t> next_tile_{std::vector<int32_t>(1)};
};

}  // namespace fovea::kernels
