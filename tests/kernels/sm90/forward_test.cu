// Forward attention on compute capability 9.0 against fp64 on the CPU.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <optional>
#include <random>
#include <vector>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/attention/block_sparse_cuda.h"
#include "tests/kernels/sm90/device_array.h"

namespace fovea::kernels {
namespace {

// What a problem is; rows are laid out as [batch, rows, heads, dim] where `rows_first`.
struct Problem {
  int64_t batch = 1, heads = 1, kv_heads = 1, q_len = 1, kv_len = 1, dim = 128;
  DType dtype = DType::bf16;
  bool rows_first = false;
  std::optional<double> density = std::nullopt;  // random blocks; else all keys
  int64_t block_q = 128, block_kv = 128;         // 0: of any size
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

// A random map of blocks, per batch item and head, as it is and as lists.
struct Blocks {
  AttentionTile tile;
  int64_t maps;
  std::vector<int32_t> q_offsets, kv_offsets;  // [maps, blocks + 1]
  int64_t nq, nk;
  std::vector<uint8_t> classes;  // [maps, nq, nk]
  std::vector<QueryTile> tiles;
  std::vector<int32_t> counts;
  std::vector<KeySpan> spans;
  int64_t tiles_per_map = 0, capacity = 0;

  Blocks(const Problem& p, std::mt19937& random)
      : tile(sm90_tile(p.block_q, p.block_kv)), maps(p.batch * p.heads) {
    // Blocks of 0 are of any size, some of them empty.
    nq = p.block_q == 0 ? 7 : (p.q_len + p.block_q - 1) / p.block_q;
    nk = p.block_kv == 0 ? 9 : (p.kv_len + p.block_kv - 1) / p.block_kv;
    for (int64_t map = 0; map < maps; ++map) {
      append(q_offsets, nq, p.block_q, p.q_len, random);
      append(kv_offsets, nk, p.block_kv, p.kv_len, random);
    }
    std::uniform_real_distribution<double> uniform;
    classes.resize(maps * nq * nk);
    for (size_t i = 0; i < classes.size(); ++i) {
      const bool row_is_empty = static_cast<int64_t>(i) / nk % nq == 1;
      classes[i] = !row_is_empty && uniform(random) < *p.density;
    }
    tiles_per_map = most_tiles(p.q_len, nq, tile.queries);
    capacity = p.kv_len / tile.keys + nk + 1;
    tiles.resize(maps * tiles_per_map);
    counts.resize(maps * nq);
    spans.resize(maps * nq * capacity);
    int32_t fault = 0;
    tile_lists_cpu(args(p, tiles.data(), counts.data(), spans.data(), &fault));
    EXPECT_EQ(fault, 0);
  }

  static void append(std::vector<int32_t>& out, int64_t blocks, int64_t size, int64_t len,
                     std::mt19937& random) {
    std::vector<int32_t> cuts;
    for (int64_t i = 1; i < blocks; ++i) {
      const int64_t at = size > 0 ? i * size : static_cast<int64_t>(random() % (len + 1));
      cuts.push_back(static_cast<int32_t>(at));
    }
    std::sort(cuts.begin(), cuts.end());
    out.push_back(0);
    out.insert(out.end(), cuts.begin(), cuts.end());
    out.push_back(static_cast<int32_t>(len));
  }

  TileListsArgs args(const Problem& p, QueryTile* tiles, int32_t* counts, KeySpan* spans,
                     int32_t* fault) const {
    TileListsArgs out;
    out.classes = classes.data();
    out.q_offsets = q_offsets.data(), out.kv_offsets = kv_offsets.data();
    out.maps = out.q_maps = out.kv_maps = maps;
    out.num_q_blocks = nq, out.num_kv_blocks = nk;
    out.q_len = static_cast<int32_t>(p.q_len), out.kv_len = static_cast<int32_t>(p.kv_len);
    out.tile_queries = tile.queries, out.span_keys = tile.keys;
    out.tiles = tiles, out.counts = counts, out.spans = spans, out.fault = fault;
    out.tiles_per_map = tiles_per_map, out.capacity = capacity;
    return out;
  }

  // Whether each key of a row counts, from the map itself.
  std::vector<bool> visible(const Problem& p, int64_t map, int64_t row) const {
    std::vector<bool> out(p.kv_len, false);
    const int32_t* q = q_offsets.data() + map * (nq + 1);
    const int32_t* kv = kv_offsets.data() + map * (nk + 1);
    int64_t block = 0;
    while (row >= q[block + 1]) ++block;
    for (int64_t j = 0; j < nk; ++j) {
      if (classes[(map * nq + block) * nk + j] == 0) continue;
      std::fill(out.begin() + kv[j], out.begin() + kv[j + 1], true);
    }
    return out;
  }
};

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
  std::optional<Blocks> blocks;
  if (p.density) blocks.emplace(p, random);
  const DeviceArray<uint16_t> g_q(q.bits()), g_k(k.bits()), g_v(v.bits());
  const DeviceArray<uint16_t> g_out(std::vector<uint16_t>(q.values.size(), 0x7fff));
  const DeviceArray<float> g_lse(std::vector<float>(p.batch * p.heads * p.q_len, 1e9f));
  const DeviceArray<QueryTile> g_tiles(blocks ? blocks->tiles : std::vector<QueryTile>{{}});
  const DeviceArray<int32_t> g_counts(blocks ? blocks->counts : std::vector<int32_t>{0});
  const DeviceArray<KeySpan> g_spans(blocks ? blocks->spans : std::vector<KeySpan>{{}});
  CudaAttentionArgs args;
  args.batch = p.batch, args.heads = p.heads, args.kv_heads = p.kv_heads;
  args.q_len = p.q_len, args.kv_len = p.kv_len, args.dim = p.dim;
  args.q = q.view(g_q.data()), args.k = k.view(g_k.data()), args.v = v.view(g_v.data());
  const HeadRows out = q.view(nullptr);
  args.out = {g_out.data(), p.dtype, out.batch_stride, out.head_stride, out.row_stride};
  args.lse = g_lse.data();
  args.sm_scale = 1 / std::sqrt(static_cast<double>(p.dim));
  if (blocks) {
    args.tile = blocks->tile;
    args.lists = {g_tiles.data(), g_counts.data(),  g_spans.data(), blocks->tiles_per_map,
                  blocks->nq,     blocks->capacity, p.heads,        1};
  }
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
            exact_row(p, inputs, {item, head, row},
                      blocks ? blocks->visible(p, map, row) : std::vector<bool>(p.kv_len, true));
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

TEST_F(Sm90Forward, BlocksOfManySizes) {
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
      for (const double density : {0.0, 0.2, 0.6, 1.0}) {
        SCOPED_TRACE(testing::Message() << "dim " << dim << ", density " << density << ", blocks "
                                        << block_q << " x " << block_kv);
        check({.batch = 2,
               .heads = 2,
               .kv_heads = 1,
               .q_len = 700,
               .kv_len = 1000,
               .dim = dim,
               .density = density,
               .block_q = block_q,
               .block_kv = block_kv},
              ++seed);
      }
    }
  }
}

TEST_F(Sm90Forward, ListsOfTheDeviceAreThoseOfTheHost) {
  for (const int64_t block : {64, 128, 0}) {
    const Problem p{.batch = 3,
                    .heads = 2,
                    .q_len = 3000,
                    .kv_len = 5000,
                    .density = 0.3,
                    .block_q = block,
                    .block_kv = block};
    std::mt19937 random(1);
    Blocks host(p, random);
    const auto fill = [](auto values) {  // with what no list holds
      std::memset(values.data(), 0x7f, values.size() * sizeof(values[0]));
      return values;
    };
    const DeviceArray<QueryTile> tiles(fill(host.tiles));
    const DeviceArray<int32_t> counts(fill(host.counts)), fault(std::vector<int32_t>{0});
    const DeviceArray<KeySpan> spans(fill(host.spans));
    const DeviceArray<uint8_t> classes(host.classes);
    const DeviceArray<int32_t> q_offsets(host.q_offsets), kv_offsets(host.kv_offsets);
    TileListsArgs args = host.args(p, tiles.data(), counts.data(), spans.data(), fault.data());
    args.classes = classes.data(), args.q_offsets = q_offsets.data();
    args.kv_offsets = kv_offsets.data();
    ASSERT_TRUE(tile_lists_cuda(args, {}).ok());
    EXPECT_EQ(counts.read(), host.counts);
    EXPECT_EQ(fault.read()[0], 0);
    EXPECT_EQ(tiles.read(), host.tiles);
    const std::vector<KeySpan> own_spans = spans.read();
    for (size_t row = 0; row < host.counts.size(); ++row) {
      for (int32_t i = 0; i < host.counts[row]; ++i) {
        const size_t at = row * host.capacity + i;
        ASSERT_EQ(own_spans[at], host.spans[at]) << "row " << row << ", span " << i;
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
  CudaAttentionArgs args{
      .batch = 1, .heads = 4, .kv_heads = 4, .q_len = 1500, .kv_len = 1500, .dim = 128};
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
  CudaAttentionArgs args{
      .batch = 1, .heads = 1, .kv_heads = 1, .q_len = 1, .kv_len = 1, .dim = 128};
  args.q.dtype = DType::bf16;
  const auto reason = [&](auto change) {
    CudaAttentionArgs other = args;
    change(other);
    const Status status = block_sparse_sm90(other, {});
    EXPECT_EQ(status.code, StatusCode::unsupported);
    return std::string(status.message);
  };
  EXPECT_EQ(reason([](CudaAttentionArgs& a) { a.dim = 96; }), "takes 64 or 128 channels a head");
  EXPECT_EQ(reason([](CudaAttentionArgs& a) { a.q.dtype = DType::f32; }), "takes bf16 and fp16");
  EXPECT_EQ(reason([](CudaAttentionArgs& a) { a.sm_scale = 0; }), "takes scales above 0");
  EXPECT_EQ(reason([](CudaAttentionArgs& a) { a.sm_scale = NAN; }), "takes scales above 0");
  EXPECT_EQ(reason([](CudaAttentionArgs& a) { a.kv_len = 0; }), "takes at least one key");
  EXPECT_EQ(reason([](CudaAttentionArgs& a) { a.kv_len = int64_t{1} << 32; }),
            "takes up to 2^30 tokens");
}

}  // namespace
}  // namespace fovea::kernels
