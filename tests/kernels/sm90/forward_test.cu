// Forward attention on compute capability 9.0 against fp64 on the CPU.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <random>
#include <vector>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/attention/block_sparse_sm90.h"
#include "tests/kernels/sm90/device_array.h"

namespace fovea::kernels {
namespace {

// What a problem is; rows are laid out as [batch, rows, heads, dim] where `rows_first`.
struct Problem {
  int64_t batch = 1, heads = 1, kv_heads = 1, q_len = 1, kv_len = 1, dim = 128;
  DType dtype = DType::bf16;
  bool rows_first = false;
  std::optional<double> density;  // random lists; else all keys
  bool short_spans = false;       // of any length and place, not whole blocks
};

double round_to(DType dtype, double x) {
  const auto narrow = static_cast<float>(x);
  return dtype == DType::bf16 ? __bfloat162float(__float2bfloat16(narrow))
                              : __half2float(__float2half(narrow));
}

uint16_t bits_of(DType dtype, double x) {
  const auto narrow = static_cast<float>(x);
  if (dtype == DType::bf16) return __bfloat16_as_ushort(__float2bfloat16(narrow));
  return __half_as_ushort(__float2half(narrow));
}

double value_of(DType dtype, uint16_t bits) {
  return dtype == DType::bf16 ? __bfloat162float(__ushort_as_bfloat16(bits))
                              : __half2float(__ushort_as_half(bits));
}

// [batch, heads, rows, dim] of random normal numbers of the type, on both sides.
struct Values {
  int64_t heads, rows, dim;
  bool rows_first;
  DType dtype;
  std::vector<double> values;  // as they lie in memory

  Values(const Problem& p, int64_t heads, int64_t rows, std::mt19937& random)
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
  std::vector<uint16_t> bits() const {
    std::vector<uint16_t> out;
    for (const double x : values) out.push_back(bits_of(dtype, x));
    return out;
  }
};

struct Lists {
  std::vector<int32_t> ptr;  // [batch * heads, tiles + 1]
  std::vector<KeySpan> spans;
};

Lists random_lists(const Problem& p, AttentionTile tile, std::mt19937& random) {
  Lists out;
  const int64_t tiles = (p.q_len + tile.queries - 1) / tile.queries;
  std::uniform_real_distribution<double> uniform;
  for (int64_t map = 0; map < p.batch * p.heads; ++map) {
    for (int64_t t = 0; t <= tiles; ++t) {
      out.ptr.push_back(static_cast<int32_t>(out.spans.size()));
      if (t == tiles || (t == 1 && tiles > 2)) continue;  // one tile sees nothing
      int64_t begin = 0;
      while (begin < p.kv_len) {
        int64_t len = std::min<int64_t>(tile.keys, p.kv_len - begin);
        if (p.short_spans)
          len = std::min<int64_t>(len, 1 + static_cast<int64_t>(random() % tile.keys));
        if (uniform(random) < *p.density) {
          out.spans.push_back({static_cast<int32_t>(begin), static_cast<int32_t>(len)});
        }
        begin += len;
      }
    }
  }
  out.spans.push_back({});  // never empty
  return out;
}

// Whether each key of a row counts, from the lists.
std::vector<bool> visible(const Problem& p, const std::optional<Lists>& lists, AttentionTile tile,
                          int64_t map, int64_t row) {
  std::vector<bool> out(p.kv_len, !lists);
  if (!lists) return out;
  const int64_t tiles = (p.q_len + tile.queries - 1) / tile.queries;
  const int32_t* ptr = lists->ptr.data() + map * (tiles + 1) + row / tile.queries;
  for (int32_t i = ptr[0]; i < ptr[1]; ++i) {
    const KeySpan span = lists->spans[i];
    std::fill_n(out.begin() + span.begin, span.len, true);
  }
  return out;
}

struct Exact {
  std::vector<double> out;
  double lse = -std::numeric_limits<double>::infinity();
};

struct Inputs {
  Values q, k, v;
};

struct Row {
  int64_t item, head, index;
};

Exact exact_row(const Problem& p, const Inputs& inputs, Row row, const std::vector<bool>& sees) {
  const auto& [q, k, v] = inputs;
  const auto [item, head, index] = row;
  const int64_t kv_head = head / (p.heads / p.kv_heads);
  std::vector<double> logits(p.kv_len, -std::numeric_limits<double>::infinity());
  const double* q_row = q.values.data() + q.at(item, head, index);
  double largest = -std::numeric_limits<double>::infinity();
  for (int64_t key = 0; key < p.kv_len; ++key) {
    if (!sees[key]) continue;
    const double* k_row = k.values.data() + k.at(item, kv_head, key);
    double sum = 0;
    for (int64_t d = 0; d < p.dim; ++d) sum += q_row[d] * k_row[d];
    logits[key] = sum / std::sqrt(static_cast<double>(p.dim));
    largest = std::max(largest, logits[key]);
  }
  Exact exact{std::vector<double>(p.dim, 0)};
  double total = 0;
  for (int64_t key = 0; key < p.kv_len; ++key) {
    if (!sees[key]) continue;
    const double weight = std::exp(logits[key] - largest);
    total += weight;
    const double* v_row = v.values.data() + v.at(item, kv_head, key);
    for (int64_t d = 0; d < p.dim; ++d) exact.out[d] += weight * v_row[d];
  }
  if (total == 0) return exact;
  for (double& x : exact.out) x /= total;
  exact.lse = largest + std::log(total);
  return exact;
}

// Relative L2 error of all rows, and the largest error of an lse.
void check(const Problem& p, int seed) {
  std::mt19937 random(seed);
  const Inputs inputs{Values(p, p.heads, p.q_len, random), Values(p, p.kv_heads, p.kv_len, random),
                      Values(p, p.kv_heads, p.kv_len, random)};
  const auto& [q, k, v] = inputs;
  const AttentionTile tile = sm90_tile(p.dim, !p.density);
  std::optional<Lists> lists;
  if (p.density) lists = random_lists(p, tile, random);
  const DeviceArray<uint16_t> g_q(q.bits()), g_k(k.bits()), g_v(v.bits());
  const DeviceArray<uint16_t> g_out(std::vector<uint16_t>(q.values.size(), 0x7fff));
  const DeviceArray<float> g_lse(std::vector<float>(p.batch * p.heads * p.q_len, 1e9f));
  const DeviceArray<int32_t> g_ptr(lists ? lists->ptr : std::vector<int32_t>{0});
  const DeviceArray<KeySpan> g_spans(lists ? lists->spans : std::vector<KeySpan>{{}});
  Sm90Args args;
  args.batch = p.batch, args.heads = p.heads, args.kv_heads = p.kv_heads;
  args.q_len = p.q_len, args.kv_len = p.kv_len, args.dim = p.dim;
  args.q = q.view(g_q.data()), args.k = k.view(g_k.data()), args.v = v.view(g_v.data());
  const HeadRows out = q.view(nullptr);
  args.out = {g_out.data(), p.dtype, out.batch_stride, out.head_stride, out.row_stride};
  args.lse = g_lse.data();
  args.sm_scale = 1 / std::sqrt(static_cast<double>(p.dim));
  if (lists) args.lists = {g_ptr.data(), g_spans.data(), p.heads, 1};
  const Status status = block_sparse_sm90(args, {});
  ASSERT_TRUE(status.ok()) << status.message;
  const std::vector<uint16_t> result = g_out.read();
  const std::vector<float> lse = g_lse.read();
  double error = 0, size = 0;
  for (int64_t item = 0; item < p.batch; ++item) {
    for (int64_t head = 0; head < p.heads; ++head) {
      for (int64_t row = 0; row < p.q_len; ++row) {
        const int64_t map = item * p.heads + head;
        const Exact exact =
            exact_row(p, inputs, {item, head, row}, visible(p, lists, tile, map, row));
        const float got = lse[map * p.q_len + row];
        if (std::isinf(exact.lse)) {
          ASSERT_EQ(got, exact.lse) << "row " << row;
        } else {
          ASSERT_NEAR(got, exact.lse, 2e-5 * std::max(1.0, std::abs(exact.lse))) << "row " << row;
        }
        for (int64_t d = 0; d < p.dim; ++d) {
          const double x = value_of(p.dtype, result[q.at(item, head, row) + d]);
          const double apart = x - exact.out[d];
          ASSERT_LT(std::abs(apart), 0.05) << "row " << row << ", channel " << d;
          error += apart * apart, size += exact.out[d] * exact.out[d];
        }
      }
    }
  }
  // Weights and results are rounded to 8 bits of fraction, or to 11.
  EXPECT_LT(std::sqrt(error / std::max(size, 1e-300)), p.dtype == DType::bf16 ? 4e-3 : 5e-4);
}

class Sm90Forward : public Sm90Test {};

TEST_F(Sm90Forward, DenseOfAnyLength) {
  int seed = 0;
  for (const int64_t dim : {64, 128}) {
    for (const DType dtype : {DType::bf16, DType::f16}) {
      for (const auto& [q_len, kv_len] : std::vector<std::pair<int64_t, int64_t>>{
               {1, 1}, {64, 64}, {65, 17}, {192, 80}, {193, 81}, {300, 500}, {5, 2000}}) {
        SCOPED_TRACE(testing::Message() << "dim " << dim << ", " << q_len << " x " << kv_len
                                        << (dtype == DType::bf16 ? ", bf16" : ", fp16"));
        check({.q_len = q_len, .kv_len = kv_len, .dim = dim, .dtype = dtype}, ++seed);
      }
    }
  }
}

TEST_F(Sm90Forward, HeadsItemsAndLayouts) {
  for (const int64_t dim : {64, 128}) {
    check({.batch = 2, .heads = 3, .kv_heads = 3, .q_len = 200, .kv_len = 150, .dim = dim}, 1);
    check({.batch = 2,
           .heads = 4,
           .kv_heads = 2,
           .q_len = 90,
           .kv_len = 333,
           .dim = dim,
           .rows_first = true},
          2);
  }
}

TEST_F(Sm90Forward, MoreTilesThanBlocks) {
  check({.batch = 3, .heads = 25, .kv_heads = 25, .q_len = 700, .kv_len = 90, .dim = 128}, 3);
  check({.batch = 3, .heads = 25, .kv_heads = 25, .q_len = 700, .kv_len = 90, .dim = 64}, 4);
}

TEST_F(Sm90Forward, Lists) {
  for (const int64_t dim : {64, 128}) {
    for (const double density : {0.0, 0.2, 0.6, 1.0}) {
      for (const bool short_spans : {false, true}) {
        SCOPED_TRACE(testing::Message() << "dim " << dim << ", density " << density);
        check({.batch = 2,
               .heads = 2,
               .kv_heads = 1,
               .q_len = 500,
               .kv_len = 1000,
               .dim = dim,
               .density = density,
               .short_spans = short_spans},
              5);
      }
    }
  }
}

TEST_F(Sm90Forward, RepeatsBitForBit) {
  Problem p{.heads = 4, .kv_heads = 4, .q_len = 1500, .kv_len = 1500, .dim = 128};
  std::mt19937 random(1);
  const Values q(p, 4, 1500, random), k(p, 4, 1500, random), v(p, 4, 1500, random);
  const DeviceArray<uint16_t> g_q(q.bits()), g_k(k.bits()), g_v(v.bits());
  const DeviceArray<uint16_t> g_out(std::vector<uint16_t>(q.values.size()));
  Sm90Args args{.batch = 1, .heads = 4, .kv_heads = 4, .q_len = 1500, .kv_len = 1500, .dim = 128};
  args.q = q.view(g_q.data()), args.k = k.view(g_k.data()), args.v = v.view(g_v.data());
  args.out = {g_out.data(), p.dtype, args.q.batch_stride, args.q.head_stride, args.q.row_stride};
  args.sm_scale = 0.1;
  std::vector<uint16_t> first;
  for (int run = 0; run < 250; ++run) {
    ASSERT_TRUE(block_sparse_sm90(args, {}).ok());
    const std::vector<uint16_t> now = g_out.read();
    if (run == 0) first = now;
    ASSERT_EQ(now, first) << "run " << run;
  }
}

TEST(Sm90Refusals, SayWhy) {
  Sm90Args args{.batch = 1, .heads = 1, .kv_heads = 1, .q_len = 1, .kv_len = 1, .dim = 128};
  args.q.dtype = DType::bf16;
  const auto reason = [&](auto change) {
    Sm90Args other = args;
    change(other);
    const Status status = block_sparse_sm90(other, {});
    EXPECT_EQ(status.code, StatusCode::unsupported);
    return std::string(status.message);
  };
  EXPECT_EQ(reason([](Sm90Args& a) { a.dim = 96; }), "takes 64 or 128 channels a head");
  EXPECT_EQ(reason([](Sm90Args& a) { a.q.dtype = DType::f32; }), "takes bf16 and fp16");
  EXPECT_EQ(reason([](Sm90Args& a) { a.sm_scale = 0; }), "takes scales above 0");
  EXPECT_EQ(reason([](Sm90Args& a) { a.sm_scale = NAN; }), "takes scales above 0");
  EXPECT_EQ(reason([](Sm90Args& a) { a.kv_len = 0; }), "takes at least one key");
  EXPECT_EQ(reason([](Sm90Args& a) { a.kv_len = int64_t{1} << 32; }), "takes up to 2^30 tokens");
}

}  // namespace
}  // namespace fovea::kernels
