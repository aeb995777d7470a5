#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "kernels/attention/block_sparse_backward_cuda.h"
#include "tests/kernels/attention_problem.h"

// Gradients of the problems of attention_problem.h, and lists from the side of the keys.

namespace fovea::kernels::attention_test {

using Problem = AttentionProblem;

/// A gradient, as it lies in memory, and the squares of what its sums are made of, where those of
/// logits count as if nothing cancelled.
struct Gradient {
  std::vector<double> exact, parts;

  explicit Gradient(const Values& like) : exact(like.values.size()), parts(like.values.size()) {}
  void add(int64_t at, double x, double part) { exact[at] += x, parts[at] += part * part; }
};

/// Results of the forward pass and what comes in from behind it.
struct Outer {
  Values grad_out;
  std::vector<double> grad_lse;  // [batch, heads, q_len], or of zeros
  std::vector<uint16_t> out;     // as q lies in memory
  std::vector<float> lse;

  Outer(const Problem& p, const Inputs& in, bool with_lse, int seed)
      : Outer(p, in, with_lse, std::mt19937(1000 + seed)) {}

 private:
  Outer(const Problem& p, const Inputs& in, bool with_lse, std::mt19937 random)
      : grad_out(p, p.heads, p.q_len, random),
        grad_lse(p.batch * p.heads * p.q_len),
        out(in.q.values.size()),
        lse(grad_lse.size()) {
    std::normal_distribution<float> normal;
    if (with_lse) {
      for (double& x : grad_lse) x = normal(random);
    }
  }
};

struct Gradients {
  Gradient q, k, v, more_k, more_v;

  explicit Gradients(const Inputs& in)
      : q(in.q), k(in.k), v(in.v), more_k(in.more_k), more_v(in.more_v) {}
};

/// What a row adds; also sets its out and lse.
inline void differentiate_row(const Problem& p, const Inputs& in, Row row, Outer& outer,
                              Gradients& to) {
  const Exact exact = attention_test::exact_row(p, in, row);
  const int64_t index = (row.item * p.heads + row.head) * p.q_len + row.index;
  const int64_t at_q = in.q.at(row.item, row.head, row.index);
  const double* grad = outer.grad_out.row(row.item, row.head, row.index);
  const double* q = in.q.row(row.item, row.head, row.index);
  outer.lse[index] = static_cast<float>(exact.lse);
  double delta = -outer.grad_lse[index];
  for (int64_t d = 0; d < p.dim; ++d) {
    outer.out[at_q + d] = attention_test::bits_of(p.dtype, exact.out[d]);
    delta += grad[d] * exact.out[d];
  }
  if (std::isinf(exact.lse)) return;
  std::optional<std::vector<bool>> listed;
  if (in.blocks) listed = in.blocks->visible(p, row.item * p.heads + row.head, row.index);
  for (int64_t key = 0; key < p.positions(); ++key) {
    if (!in.sees(p, listed ? &*listed : nullptr, key)) continue;
    const bool is_more = key >= p.kv_len;
    const int64_t kv_head = row.head / (p.heads / p.kv_heads);
    const Values& keys = is_more ? in.more_k : in.k;
    const Values& values = is_more ? in.more_v : in.v;
    const int64_t at = keys.at(row.item, kv_head, is_more ? key - p.more_begin() : key);
    const double weight = std::exp(attention_test::exact_logit(p, in, row, key) - exact.lse);
    double dp = 0;
    for (int64_t d = 0; d < p.dim; ++d) dp += grad[d] * values.values[at + d];
    const double ds = weight * (dp - delta) * p.scale();
    const double part = weight * (std::abs(dp) + std::abs(delta) + 3) * p.scale();
    Gradient& dk = is_more ? to.more_k : to.k;
    Gradient& dv = is_more ? to.more_v : to.v;
    for (int64_t d = 0; d < p.dim; ++d) {
      to.q.add(at_q + d, ds * keys.values[at + d], part * keys.values[at + d]);
      dk.add(at + d, ds * q[d], part * q[d]);
      dv.add(at + d, weight * grad[d], weight * grad[d]);
    }
  }
}

inline Gradients differentiate(const Problem& p, const Inputs& in, Outer& outer) {
  Gradients out(in);
  for (int64_t item = 0; item < p.batch; ++item) {
    for (int64_t head = 0; head < p.heads; ++head) {
      for (int64_t row = 0; row < p.q_len; ++row) {
        differentiate_row(p, in, {item, head, row}, outer, out);
      }
    }
  }
  return out;
}

/// The lists of a problem from the side of its keys, with masks where a pair is hidden.
struct Columns {
  AttentionTile tile;
  std::vector<QueryTile> tiles;
  std::vector<int32_t> counts;
  std::vector<KeySpan> spans;
  std::vector<uint32_t> masks;
  int64_t tiles_per_map, capacity;

  Columns(const Problem& p, const Blocks& b) : tile(sm90_column_tile(p.block_q, p.block_kv)) {
    tiles_per_map = most_tiles(p.positions(), b.nk, tile.queries);
    capacity = p.q_len / tile.keys + b.nq + 1;
    tiles.resize(b.maps * tiles_per_map);
    counts.resize(b.maps * b.nk);
    spans.resize(b.maps * b.nk * capacity);
    int32_t fault = 0;
    tile_lists_cpu(args(p, b, tiles.data(), counts.data(), spans.data(), &fault));
    EXPECT_EQ(fault, 0);
    if (p.masks) {
      for (int64_t map = 0; map < b.maps; ++map) add_masks(p, b, map);
    }
  }

  TileListsArgs args(const Problem& p, const Blocks& b, QueryTile* tiles, int32_t* counts,
                     KeySpan* spans, int32_t* fault) const {
    TileListsArgs out;
    out.classes = b.classes.data(), out.transposed = true;
    out.q_offsets = b.kv_offsets.data(), out.kv_offsets = b.q_offsets.data();
    out.maps = out.q_maps = out.kv_maps = b.maps;
    out.num_q_blocks = b.nk, out.num_kv_blocks = b.nq;
    out.q_len = static_cast<int32_t>(p.positions()), out.kv_len = static_cast<int32_t>(p.q_len);
    out.tile_queries = tile.queries, out.span_keys = tile.keys;
    out.tiles = tiles, out.counts = counts, out.spans = spans, out.fault = fault;
    out.tiles_per_map = tiles_per_map, out.capacity = capacity;
    return out;
  }

  void add_masks(const Problem& p, const Blocks& b, int64_t map) {
    std::vector<std::vector<bool>> sees;
    for (int64_t query = 0; query < p.q_len; ++query) sees.push_back(b.visible(p, map, query));
    const auto words = static_cast<size_t>(tile.queries) * kMaskWords;
    for (int64_t block = 0; block < b.nk; ++block) {
      const int32_t* keys = b.kv_offsets.data() + map * (b.nk + 1) + block;
      for (int32_t i = 0; i < counts[map * b.nk + block]; ++i) {
        KeySpan& span = spans[(map * b.nk + block) * capacity + i];
        const int64_t parts = (keys[1] - keys[0] + tile.queries - 1) / tile.queries;
        std::vector<uint32_t> own(parts * words, 0xdeadbeef);
        bool is_full = true;
        for (int32_t key = keys[0]; key < keys[1]; ++key) {
          uint32_t* row = own.data() + (key - keys[0]) * kMaskWords;
          for (int query = 0; query < static_cast<int>(span.len); ++query) {
            const uint32_t bit = uint32_t{1} << (query / 8 * 2 + query % 2);
            const bool is_seen = sees[span.begin + query][key];
            is_full = is_full && is_seen;
            row[query % 8 / 2] = is_seen ? row[query % 8 / 2] | bit : row[query % 8 / 2] & ~bit;
          }
        }
        if (is_full) continue;
        span.mask = static_cast<uint32_t>(1 + masks.size() / words);
        masks.insert(masks.end(), own.begin(), own.end());
      }
    }
  }
};

/// A gradient of the device, and what it should be. Says how many numbers are wrong, and where the
/// first of them is.
inline void compare(const Problem& p, const std::string& name, const Values& like,
                    const std::vector<uint16_t>& got, const Gradient& want) {
  const bool is_bf16 = p.dtype == DType::bf16;
  const double tolerance = is_bf16 ? 0.02 : 0.003;
  int64_t wrong = 0;
  double error = 0, size = 0;
  std::string first;
  for (int64_t item = 0; item < p.batch; ++item) {
    for (int64_t head = 0; head < like.heads; ++head) {
      for (int64_t row = 0; row < like.rows; ++row) {
        for (int64_t d = 0; d < p.dim; ++d) {
          const int64_t at = like.at(item, head, row) + d;
          const double x = attention_test::value_of(p.dtype, got[at]), exact = want.exact[at];
          const double apart = std::abs(x - exact), parts = std::sqrt(want.parts[at]);
          error += apart * apart, size += want.parts[at] + exact * exact;
          // fp16 below 6e-5 has fewer bits.
          const double smallest = parts == 0 ? 0 : 1e-6;
          if (apart <= tolerance * (parts + std::abs(exact) / 4) + smallest) continue;
          if (wrong++ > 0) continue;
          first = "item " + std::to_string(item) + ", head " + std::to_string(head) + ", row " +
                  std::to_string(row) + ", channel " + std::to_string(d) + ": " +
                  std::to_string(x) + ", not " + std::to_string(exact);
        }
      }
    }
  }
  EXPECT_EQ(wrong, 0) << name << " of " << want.exact.size() << ", first " << first;
  EXPECT_LT(std::sqrt(error / std::max(size, 1e-300)), is_bf16 ? 2.5e-3 : 3.5e-4) << name;
}

inline std::vector<float> floats(const std::vector<double>& values) {
  return {values.begin(), values.end()};
}

/// A gradient's place, of NaN, one more row at its end than there is.
inline std::vector<uint16_t> nans(const Values& like) {
  return std::vector<uint16_t>(like.values.size() + like.dim, 0x7fff);
}

/// A problem's arrays on the device.
class BackwardCase {
 public:
  BackwardCase(const Problem& p, bool with_lse, int seed)
      : p_(p),
        in_(p, sm90_tile(p.block_q, p.block_kv), seed),
        forward_(p, sm90_tile(p.block_q, p.block_kv), seed),
        outer_(p, in_, with_lse, seed),
        want_(differentiate(p, in_, outer_)),
        columns_(in_.blocks ? std::optional<Columns>(std::in_place, p, *in_.blocks) : std::nullopt),
        out_(outer_.out),
        grad_out_(outer_.grad_out.bits()),
        lse_(outer_.lse),
        grad_lse_(floats(outer_.grad_lse)),
        dq_(nans(in_.q)),
        dk_(nans(in_.k)),
        dv_(nans(in_.v)),
        more_dk_(nans(in_.more_k)),
        more_dv_(nans(in_.more_v)),
        tiles_(columns_ ? columns_->tiles : std::vector<QueryTile>(1)),
        counts_(columns_ ? columns_->counts : std::vector<int32_t>(1)),
        spans_(columns_ ? columns_->spans : std::vector<KeySpan>(1)),
        masks_(columns_ ? attention_test::or_one(columns_->masks) : std::vector<uint32_t>(1)),
        workspace_(std::vector<float>(
            sm90_backward_workspace_bytes(args(with_lse, nullptr)) / sizeof(float), NAN)),  // most
        args_(args(with_lse, workspace_.data())) {}

  const CudaAttentionBackwardArgs& args() const { return args_; }

  // All gradients, one behind the other.
  std::vector<uint16_t> read() const {
    std::vector<uint16_t> out;
    for (const auto* x : {&dq_, &dk_, &dv_, &more_dk_, &more_dv_}) {
      const std::vector<uint16_t> own = x->read();
      out.insert(out.end(), own.begin(), own.end());
    }
    return out;
  }

  void check_queries() const { compare(p_, "dQ", in_.q, dq_.read(), want_.q); }
  void check_keys() const {
    compare(p_, "dK", in_.k, dk_.read(), want_.k);
    compare(p_, "dV", in_.v, dv_.read(), want_.v);
    if (p_.more_keys > 0) {
      compare(p_, "dK of more", in_.more_k, more_dk_.read(), want_.more_k);
      compare(p_, "dV of more", in_.more_v, more_dv_.read(), want_.more_v);
    }
  }
  void check() const {
    check_queries();
    check_keys();
    for (const auto* x : {&dq_, &dk_, &dv_, &more_dk_, &more_dv_}) {
      const std::vector<uint16_t> all = x->read();
      for (auto i = all.end() - p_.dim; i != all.end(); ++i) {
        ASSERT_EQ(*i, 0x7fff) << "written behind the end";
      }
    }
  }

 private:
  CudaAttentionBackwardArgs args(bool with_lse, float* workspace) const {
    CudaAttentionBackwardArgs args;
    args.forward = forward_.args();
    args.forward.out.data = out_.data(), args.forward.lse = lse_.data();
    args.grad_out = outer_.grad_out.view(grad_out_.data());
    if (with_lse) args.grad_lse = grad_lse_.data();
    const auto place = [&](const Values& like, const DeviceArray<uint16_t>& data) {
      const HeadRows x = like.view(nullptr);
      return MutableHeadRows{data.data(), x.dtype, x.batch_stride, x.head_stride, x.row_stride};
    };
    args.grad_q = place(in_.q, dq_), args.grad_k = place(in_.k, dk_);
    args.grad_v = place(in_.v, dv_);
    args.grad_more_k = place(in_.more_k, more_dk_), args.grad_more_v = place(in_.more_v, more_dv_);
    if (columns_) {
      args.column_tile = columns_->tile;
      args.columns_on_grid = p_.block_q > 0 && p_.block_q % columns_->tile.keys == 0;
      args.columns = {tiles_.data(),
                      counts_.data(),
                      spans_.data(),
                      columns_->tiles_per_map,
                      in_.blocks->nk,
                      columns_->capacity,
                      p_.heads,
                      1,
                      p_.masks ? masks_.data() : nullptr};
    }
    args.workspace = workspace;
    return args;
  }

  Problem p_;
  Inputs in_;
  AttentionCase forward_;
  Outer outer_;
  Gradients want_;
  std::optional<Columns> columns_;
  DeviceArray<uint16_t> out_, grad_out_;
  DeviceArray<float> lse_, grad_lse_;
  DeviceArray<uint16_t> dq_, dk_, dv_, more_dk_, more_dv_;
  DeviceArray<QueryTile> tiles_;
  DeviceArray<int32_t> counts_;
  DeviceArray<KeySpan> spans_;
  DeviceArray<uint32_t> masks_;
  DeviceArray<float> workspace_;
  CudaAttentionBackwardArgs args_;
};

/// Runs the kernel on a random problem and checks every gradient.
inline void check_backward(const Problem& p,
                           Status (*run)(const CudaAttentionBackwardArgs& args, CudaTarget target),
                           int seed) {
  const BackwardCase one(p, seed % 2 == 0, seed);
  const Status status = run(one.args(), {});
  ASSERT_TRUE(status.ok()) << status.message;
  one.check();
}

}  // namespace fovea::kernels::attention_test
