// Backward attention on compute capability 9.0 against fp64 on the CPU.
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "kernels/attention/block_sparse_backward_cuda.h"
#include "tests/kernels/attention_problem.h"
#include "tests/kernels/sm90/device_array.h"

namespace fovea::kernels {
namespace {

using attention_test::Blocks;
using attention_test::Exact;
using attention_test::Inputs;
using attention_test::Row;
using attention_test::Values;
using Problem = AttentionProblem;

// A gradient, as it lies in memory, and the squares of what its sums are made of, where those of
// logits count as if nothing cancelled.
struct Gradient {
  std::vector<double> exact, parts;

  explicit Gradient(const Values& like) : exact(like.values.size()), parts(like.values.size()) {}
  void add(int64_t at, double x, double part) { exact[at] += x, parts[at] += part * part; }
};

// Results of the forward pass and what comes in from behind it.
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

// What a row adds; also sets its out and lse.
void differentiate_row(const Problem& p, const Inputs& in, Row row, Outer& outer, Gradients& to) {
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

Gradients differentiate(const Problem& p, const Inputs& in, Outer& outer) {
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

// The lists of a problem from the side of its keys, with masks where a pair is hidden.
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

// A gradient of the device, and what it should be. Says how many numbers are wrong, and where the
// first of them is.
void compare(const Problem& p, const std::string& name, const Values& like,
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

std::vector<float> floats(const std::vector<double>& values) {
  return {values.begin(), values.end()};
}

// A gradient's place, of NaN, one more row at its end than there is.
std::vector<uint16_t> nans(const Values& like) {
  return std::vector<uint16_t>(like.values.size() + like.dim, 0x7fff);
}

// A problem's arrays on the device.
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
            attention_backward_workspace_bytes(args(with_lse, nullptr)) / sizeof(float), NAN)),
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

  void check() const {
    compare(p_, "dQ", in_.q, dq_.read(), want_.q);
    compare(p_, "dK", in_.k, dk_.read(), want_.k);
    compare(p_, "dV", in_.v, dv_.read(), want_.v);
    if (p_.more_keys > 0) {
      compare(p_, "dK of more", in_.more_k, more_dk_.read(), want_.more_k);
      compare(p_, "dV of more", in_.more_v, more_dv_.read(), want_.more_v);
    }
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

void check(const Problem& p, int seed) {
  const BackwardCase one(p, seed % 2 == 0, seed);
  const Status status = block_sparse_backward_sm90(one.args(), {});
  ASSERT_TRUE(status.ok()) << status.message;
  one.check();
}

std::string name_of(const Problem& p) {
  std::string out = "dim " + std::to_string(p.dim) +
                    (p.dtype == DType::bf16 ? " bf16 " : " fp16 ") + std::to_string(p.q_len) +
                    " x " + std::to_string(p.kv_len);
  if (p.density) {
    out += ", density " + std::to_string(*p.density) + ", blocks " + std::to_string(p.block_q) +
           " x " + std::to_string(p.block_kv);
  }
  return out;
}

// ---- Without a GPU ------------------------------------------------------------------------------

double loss(const Problem& p, const Inputs& in, const Outer& outer) {
  double sum = 0;
  for (int64_t head = 0; head < p.heads; ++head) {
    for (int64_t row = 0; row < p.q_len; ++row) {
      const Exact exact = attention_test::exact_row(p, in, {0, head, row});
      if (std::isinf(exact.lse)) continue;
      sum += outer.grad_lse[head * p.q_len + row] * exact.lse;
      const double* grad = outer.grad_out.row(0, head, row);
      for (int64_t d = 0; d < p.dim; ++d) sum += grad[d] * exact.out[d];
    }
  }
  return sum;
}

TEST(Sm90BackwardReference, IsTheSlopeOfTheForward) {
  const Problem p{.heads = 2,
                  .q_len = 20,
                  .kv_len = 30,
                  .dim = 64,
                  .density = 0.6,
                  .block_q = 0,
                  .block_kv = 8,
                  .masks = true};
  Inputs in(p, {64, 64}, 1);
  Outer outer(p, in, true, 1);
  const Gradients want = differentiate(p, in, outer);
  const auto check_slope = [&](Values& x, const Gradient& gradient) {
    for (size_t at = 0; at < x.values.size(); at += 37) {
      constexpr double kStep = 1e-4;
      const double before = x.values[at];
      x.values[at] = before + kStep;
      const double up = loss(p, in, outer);
      x.values[at] = before - kStep;
      const double down = loss(p, in, outer);
      x.values[at] = before;
      EXPECT_NEAR(gradient.exact[at], (up - down) / (2 * kStep), 1e-5) << at;
    }
  };
  check_slope(in.q, want.q), check_slope(in.k, want.k), check_slope(in.v, want.v);
}

TEST(Sm90BackwardReference, ColumnsHaveThePairsOfRows) {
  for (const int64_t block : {64, 128, 30}) {
    const Problem p{.heads = 2,
                    .kv_heads = 2,
                    .q_len = 300,
                    .kv_len = 400,
                    .density = 0.5,
                    .block_q = block == 30 ? 0 : block,
                    .block_kv = block,
                    .more_keys = 120,
                    .more_gap = 8,
                    .masks = true};
    const Inputs in(p, sm90_tile(p.block_q, p.block_kv), 1);
    const Columns columns(p, *in.blocks);
    for (int64_t map = 0; map < 2; ++map) {
      std::vector<std::vector<int>> seen(p.q_len, std::vector<int>(p.positions()));
      for (int64_t t = 0; t < columns.tiles_per_map; ++t) {
        const QueryTile tile = columns.tiles[map * columns.tiles_per_map + t];
        const int64_t row = map * in.blocks->nk + tile.row;
        for (int32_t i = 0; i < columns.counts[row]; ++i) {
          const KeySpan span = columns.spans[row * columns.capacity + i];
          for (int key = 0; key < tile.len; ++key) {
            for (int query = 0; query < static_cast<int>(span.len); ++query) {
              bool is_seen = true;
              if (span.mask != 0) {
                const int64_t mask = span.mask - 1 + tile.part;
                const uint32_t word =
                    columns.masks[(mask * columns.tile.queries + key) * kMaskWords + query % 8 / 2];
                is_seen = word >> (query / 8 * 2 + query % 2) & 1;
              }
              seen[span.begin + query][tile.begin + key] += is_seen;
            }
          }
        }
      }
      for (int64_t query = 0; query < p.q_len; ++query) {
        const std::vector<bool> want = in.blocks->visible(p, map, query);
        ASSERT_TRUE(std::equal(want.begin(), want.end(), seen[query].begin()))
            << "map " << map << ", query " << query;
      }
    }
  }
}

// ---- On the GPU ---------------------------------------------------------------------------------

class Sm90Backward : public Sm90Test {};

TEST_F(Sm90Backward, DenseOfAnyLength) {
  int seed = 0;
  for (const int64_t dim : {64, 128}) {
    for (const DType dtype : {DType::bf16, DType::f16}) {
      for (const auto& [q_len, kv_len] : std::vector<std::pair<int64_t, int64_t>>{{1, 1},
                                                                                  {64, 64},
                                                                                  {128, 128},
                                                                                  {65, 17},
                                                                                  {17, 65},
                                                                                  {192, 80},
                                                                                  {129, 257},
                                                                                  {300, 500},
                                                                                  {5, 1000},
                                                                                  {1000, 5}}) {
        const Problem p{.q_len = q_len, .kv_len = kv_len, .dim = dim, .dtype = dtype};
        SCOPED_TRACE(name_of(p));
        check(p, ++seed);
      }
    }
  }
}

TEST_F(Sm90Backward, HeadsItemsAndLayouts) {
  for (const int64_t dim : {64, 128}) {
    check({.batch = 2, .heads = 3, .kv_heads = 3, .q_len = 200, .kv_len = 150, .dim = dim}, 1);
    check({.batch = 2,
           .heads = 6,
           .kv_heads = 2,
           .q_len = 90,
           .kv_len = 133,
           .dim = dim,
           .rows_first = true},
          2);
  }
}

TEST_F(Sm90Backward, MoreTilesThanBlocks) {
  check({.batch = 3, .heads = 25, .kv_heads = 25, .q_len = 400, .kv_len = 40, .dim = 128}, 3);
  check({.batch = 3, .heads = 25, .kv_heads = 25, .q_len = 40, .kv_len = 400, .dim = 64}, 4);
}

TEST_F(Sm90Backward, BlocksOfManySizes) {
  int seed = 0;
  for (const int64_t dim : {64, 128}) {
    for (const auto& [block_q, block_kv] : std::vector<std::pair<int64_t, int64_t>>{{128, 128},
                                                                                    {64, 64},
                                                                                    {128, 64},
                                                                                    {64, 128},
                                                                                    {384, 384},
                                                                                    {192, 192},
                                                                                    {100, 30},
                                                                                    {0, 0}}) {
      for (const double density : {0.0, 0.3, 1.0}) {
        const Problem p{.heads = 2,
                        .kv_heads = block_kv == 0 ? 2 : 1,
                        .q_len = 410,
                        .kv_len = 520,
                        .dim = dim,
                        .dtype = seed % 3 == 0 ? DType::f16 : DType::bf16,
                        .rows_first = seed % 2 == 0,
                        .density = density,
                        .block_q = block_q,
                        .block_kv = block_kv};
        SCOPED_TRACE(name_of(p));
        check(p, ++seed);
      }
    }
  }
}

TEST_F(Sm90Backward, Masks) {
  int seed = 0;
  for (const int64_t dim : {64, 128}) {
    for (const auto& [block_q, block_kv] :
         std::vector<std::pair<int64_t, int64_t>>{{128, 128}, {128, 64}, {64, 64}, {300, 90}}) {
      const Problem p{.heads = 2,
                      .kv_heads = 1,
                      .q_len = 410,
                      .kv_len = 520,
                      .dim = dim,
                      .density = 0.5,
                      .block_q = block_q,
                      .block_kv = block_kv,
                      .masks = true};
      SCOPED_TRACE(name_of(p));
      check(p, ++seed);
    }
  }
}

TEST_F(Sm90Backward, MoreKeys) {
  int seed = 0;
  for (const int64_t dim : {64, 128}) {
    for (const int64_t block : {128, 64}) {
      for (const int64_t gap : {0, 24}) {
        const Problem p{.batch = 2,
                        .heads = 2,
                        .kv_heads = 1,
                        .q_len = 210,
                        .kv_len = 300,
                        .dim = dim,
                        .density = 0.6,
                        .block_q = block,
                        .block_kv = block,
                        .more_keys = 130,
                        .more_gap = gap};
        SCOPED_TRACE(name_of(p) + ", gap " + std::to_string(gap));
        check(p, ++seed);
      }
    }
  }
}

TEST_F(Sm90Backward, OnlyWhatIsWanted) {
  const Problem p{.q_len = 100, .kv_len = 70};
  const BackwardCase all(p, true, 1), of_q(p, true, 1), of_k(p, true, 1);
  CudaAttentionBackwardArgs without_k = of_q.args(), without_q = of_k.args();
  without_k.grad_k.data = without_k.grad_v.data = nullptr;
  without_q.grad_q.data = nullptr;
  for (const auto& args : {all.args(), without_k, without_q}) {
    ASSERT_TRUE(block_sparse_backward_sm90(args, {}).ok());
  }
  all.check();
  const std::vector<uint16_t> want = all.read(), queries = of_q.read(), keys = of_k.read();
  const int64_t border = 101 * p.dim;
  for (int64_t i = 0; i < static_cast<int64_t>(want.size()); ++i) {
    ASSERT_EQ(queries[i], i < border ? want[i] : 0x7fff) << i;
    ASSERT_EQ(keys[i], i < border ? 0x7fff : want[i]) << i;
  }
}

TEST_F(Sm90Backward, RepeatsBitForBit) {
  for (const bool listed : {false, true}) {
    Problem p{.heads = 4, .kv_heads = 2, .q_len = 500, .kv_len = 700};
    if (listed) p.density = 0.5, p.block_q = p.block_kv = 64;
    const BackwardCase one(p, true, 1);
    std::vector<uint16_t> first;
    for (int run = 0; run < 250; ++run) {
      ASSERT_TRUE(block_sparse_backward_sm90(one.args(), {}).ok());
      const std::vector<uint16_t> now = one.read();
      if (run == 0) first = now;
      ASSERT_EQ(now, first) << "run " << run;
    }
  }
}

TEST_F(Sm90Backward, ColumnsOfTheDeviceAreThoseOfTheHost) {
  for (const int64_t block : {64, 0}) {
    const Problem p{.batch = 2,
                    .heads = 2,
                    .q_len = 3000,
                    .kv_len = 5000,
                    .density = 0.3,
                    .block_q = block,
                    .block_kv = block};
    const Inputs in(p, sm90_tile(block, block), 1);
    const Columns host(p, *in.blocks);
    const DeviceArray<QueryTile> tiles(host.tiles);
    const DeviceArray<int32_t> counts(std::vector<int32_t>(host.counts.size(), -1));
    const DeviceArray<int32_t> fault(std::vector<int32_t>{0});
    const DeviceArray<KeySpan> spans(std::vector<KeySpan>(host.spans.size()));
    const DeviceArray<uint8_t> classes(in.blocks->classes);
    const DeviceArray<int32_t> q_offsets(in.blocks->q_offsets), kv_offsets(in.blocks->kv_offsets);
    TileListsArgs args =
        host.args(p, *in.blocks, tiles.data(), counts.data(), spans.data(), fault.data());
    args.classes = classes.data();
    args.q_offsets = kv_offsets.data(), args.kv_offsets = q_offsets.data();
    ASSERT_TRUE(tile_lists_cuda(args, {}).ok());
    EXPECT_EQ(fault.read()[0], 0);
    EXPECT_EQ(tiles.read(), host.tiles);
    EXPECT_EQ(counts.read(), host.counts);
    EXPECT_EQ(spans.read(), host.spans);
  }
}

TEST(Sm90BackwardRefusals, SayWhy) {
  float number = 0;
  CudaAttentionBackwardArgs args;
  args.forward.batch = args.forward.heads = args.forward.kv_heads = 1;
  args.forward.q_len = args.forward.kv_len = 1, args.forward.dim = 128;
  args.forward.q.dtype = DType::bf16;
  args.forward.out.data = args.forward.lse = args.workspace = &number;
  args.grad_out.data = args.grad_k.data = args.grad_v.data = &number;
  const auto reason = [&](StatusCode code, auto change) {
    CudaAttentionBackwardArgs other = args;
    change(other);
    const Status status = block_sparse_backward_sm90(other, {});
    EXPECT_EQ(status.code, code);
    return std::string(status.message);
  };
  using Args = CudaAttentionBackwardArgs;
  constexpr StatusCode kNot = StatusCode::unsupported, kInvalid = StatusCode::invalid;
  EXPECT_EQ(reason(kNot, [](Args& a) { a.forward.dim = 96; }), "takes 64 or 128 channels a head");
  EXPECT_EQ(reason(kNot, [](Args& a) { a.forward.q.dtype = DType::f32; }), "takes bf16 and fp16");
  EXPECT_EQ(reason(kNot, [](Args& a) { a.forward.sm_scale = 0; }), "takes scales above 0");
  EXPECT_EQ(reason(kNot, [&](Args& a) { a.forward.key_bias.data = &number; }),
            "takes no bias of keys and no order of rows");
  EXPECT_EQ(reason(kNot, [](Args& a) { a.forward.kv_len = 0; }),
            "takes at least one query and one key");
  EXPECT_EQ(reason(kNot, [&](Args& a) { a.forward.more.k.data = &number; }),
            "takes more keys with lists");
  EXPECT_EQ(reason(kInvalid, [](Args& a) { a.forward.lse = nullptr; }),
            "out, lse, grad_out or workspace is missing");
  EXPECT_EQ(reason(kInvalid, [](Args& a) { a.grad_v.data = nullptr; }),
            "grad_k and grad_v come together");
  const QueryTile tile;
  EXPECT_EQ(reason(kInvalid, [&](Args& a) { a.forward.lists.tiles = &tile; }),
            "lists of columns are missing");
}

}  // namespace
}  // namespace fovea::kernels
