// Forward attention on compute capability 9.0 against fp64 on the CPU.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "kernels/attention/block_sparse_cuda.h"
#include "tests/kernels/attention_cases.h"

namespace fovea::kernels {
namespace {

using namespace attention_test;
using Problem = AttentionProblem;

const std::vector<int64_t> kDims = {64, 128};

// Tiles handed out in turns, and to whoever is ready.
void check_tile(const Problem& p, AttentionTile tile, int seed) {
  SCOPED_TRACE(testing::Message() << name_of(p) << (tile.is_packed ? ", packed by " : ", spans of ")
                                  << tile.keys);
  const AttentionCase one(p, tile, seed);
  CudaAttentionArgs args = one.args();
  const Status status = block_sparse_sm90(args, {});
  ASSERT_TRUE(status.ok()) << status.message;
  one.check();
  if (!p.density) return;
  const std::vector<uint16_t> first = one.out();
  args.next_tile = one.next_tile();
  for (int run = 0; run < 2; ++run) {
    ASSERT_TRUE(block_sparse_sm90(args, {}).ok());
    EXPECT_EQ(one.out(), first);
    EXPECT_EQ(one.tiles_counted(), 0);
  }
}

void check_packed(const Problem& p, int seed) { check_tile(p, sm90_packed_tile(), seed); }

// The same lists as spans and, where that can be, packed.
void check(const Problem& p, int seed) {
  check_tile(p, sm90_tile(p.block_q, p.block_kv), seed);
  if (!p.density || p.masks || p.bias_begin) return;
  check_packed(p, seed);
}

class Sm90Forward : public Sm90Test {};

TEST_F(Sm90Forward, DenseOfAnyLength) {
  dense_of_lengths(kDims, {{1, 1}, {64, 64}, {65, 17}, {192, 80}, {193, 81}, {300, 500}, {5, 2000}},
                   check);
}
TEST_F(Sm90Forward, HeadsItemsAndLayouts) { heads_items_and_layouts(kDims, check); }
TEST_F(Sm90Forward, MoreTilesThanBlocks) { more_tiles_than_blocks(check); }
TEST_F(Sm90Forward, BlocksOfManySizes) { blocks_of_many_sizes(kDims, check); }

// Some rows of a warp have a larger logit than before, others none; with large scales each has few
// weights above 0.
TEST_F(Sm90Forward, LargestLogitsThatStay) {
  int seed = 0;
  for (const DType dtype : {DType::bf16, DType::f16}) {
    for (const double scale : {0.0, 1.0, 4.0, 20.0}) {
      Problem dense{.heads = 2, .kv_heads = 2, .q_len = 130, .kv_len = on_gpu(2000, 500)};
      dense.dtype = dtype, dense.sm_scale = scale;
      check(dense, ++seed);
      Problem lists = dense;
      lists.density = 0.5, lists.masks = seed % 4 < 2;
      for (const int64_t block : {64, 128}) {
        lists.block_q = lists.block_kv = block;
        check(lists, ++seed);
      }
      // Of one row, whose logits may all be far below 0: steps of a key or two.
      lists.heads = lists.kv_heads = 40, lists.q_len = 1;
      lists.kv_len = 12, lists.block_kv = 1, lists.masks = false;
      check_tile(lists, sm90_tile(128, 128), ++seed);
    }
  }
}

// The same rows at other places, beside others in their warps, have the same bits.
TEST_F(Sm90Forward, RowsGoByThemselves) {
  for (const double scale : {1.0, 4.0, 20.0}) {
    const Problem p{.q_len = 200, .kv_len = 500, .sm_scale = scale};
    const AttentionCase one(p, sm90_tile(128, 128), 1);
    CudaAttentionArgs args = one.args();
    ASSERT_TRUE(block_sparse_sm90(args, {}).ok());
    const std::vector<uint16_t> all = one.out();
    for (const int64_t moved : {1, 7, 70}) {
      args.q.data = static_cast<const uint16_t*>(one.args().q.data) + moved * p.dim;
      args.q_len = p.q_len - moved, args.lse = nullptr;
      ASSERT_TRUE(block_sparse_sm90(args, {}).ok());
      const std::vector<uint16_t> rest = one.out();
      EXPECT_TRUE(std::equal(all.begin() + moved * p.dim, all.end(), rest.begin()));
    }
  }
}

TEST_F(Sm90Forward, MasksMoreKeysBiasesAndOrders) {
  int seed = 0;
  for (const int64_t dim : {64, 128}) {
    for (const int64_t block : {64, 128, 192, 0}) {
      Problem p{.batch = 2,
                .heads = on_gpu(4, 2),
                .kv_heads = on_gpu(2, 1),
                .q_len = on_gpu(400, 200),
                .kv_len = on_gpu(500, 300),
                .dim = dim,
                .density = 0.5,
                .block_q = block,
                .block_kv = block};
      SCOPED_TRACE(testing::Message() << "dim " << dim << ", blocks of " << block);
      Problem masked = p, more = p, biased = p, ordered = p, all = p;
      masked.masks = true;
      more.more_keys = 150, more.more_gap = 12;
      biased.bias_begin = 100;
      ordered.out_order = true;
      all.masks = all.out_order = true, all.more_keys = 250, all.bias_begin = 0;
      all.dtype = DType::f16;
      for (const Problem& one : {masked, more, biased, ordered, all}) check(one, ++seed);
    }
  }
}

// Blocks that end anywhere in a step, steps that end early, tiles without queries for a warpgroup.
TEST_F(Sm90Forward, PackedBlocksOfManySizes) {
  int seed = 0;
  for (const int64_t dim : kDims) {
    for (const int64_t block : {1, 3, 17, 30, 33, 64, 100, 128, 150, 384}) {
      Problem p{.batch = 2, .q_len = 300, .kv_len = 901, .dim = dim};
      p.heads = on_gpu(4, 2), p.kv_heads = on_gpu(2, 1);
      p.block_q = std::vector<int64_t>{128, 40, 0, 300}[++seed % 4], p.block_kv = block;
      p.density = std::vector<double>{0.4, 1, 0.1}[seed % 3];
      p.out_order = seed % 5 == 0, p.rows_first = seed % 2 == 0;
      p.dtype = seed % 3 == 0 ? DType::f16 : DType::bf16;
      if (seed % 4 == 0) p.more_keys = 150, p.more_gap = 12;
      check_packed(p, seed);
    }
  }
}

TEST_F(Sm90Forward, ManyTilesOfLists) {
  for (const int64_t block : {64, 128}) {
    check({.batch = 3,
           .heads = on_gpu(25, 5),
           .kv_heads = on_gpu(5, 1),
           .q_len = 700,
           .kv_len = 300,
           .dim = 64,
           .density = 0.3,
           .block_q = block,
           .block_kv = block},
          1);
  }
}

void expect_lists_of_host(const Problem& p, AttentionTile tile) {
  SCOPED_TRACE(testing::Message() << name_of(p) << (tile.is_packed ? ", packed" : ""));
  std::mt19937 random(1);
  attention_test::Blocks host(p, tile, random);
  const auto fill = [](auto values) {  // with what no list holds
    if (values.empty()) values.resize(1);
    std::memset(values.data(), 0x7f, values.size() * sizeof(values[0]));
    return values;
  };
  const DeviceArray<QueryTile> tiles(fill(host.tiles));
  const DeviceArray<int32_t> counts(fill(host.counts)), fault(std::vector<int32_t>{0});
  const DeviceArray<KeySpan> spans(fill(host.spans));
  const DeviceArray<PackedSpan> packed(fill(host.packed));
  const DeviceArray<uint8_t> classes(host.classes);
  const DeviceArray<int32_t> q_offsets(host.q_offsets), kv_offsets(host.kv_offsets);
  TileListsArgs args =
      host.args(p, {tiles.data(), counts.data(), spans.data(), packed.data()}, fault.data());
  args.classes = classes.data(), args.q_offsets = q_offsets.data();
  args.kv_offsets = kv_offsets.data();
  ASSERT_TRUE(tile_lists_cuda(args, {}).ok());
  EXPECT_EQ(counts.read(), host.counts);
  EXPECT_EQ(fault.read()[0], 0);
  EXPECT_EQ(tiles.read(), host.tiles);
  const std::vector<KeySpan> own_spans = spans.read();
  const std::vector<PackedSpan> own_packed = packed.read();
  for (size_t row = 0; row < host.counts.size(); ++row) {
    size_t at = row * host.capacity;
    for (int32_t left = host.counts[row]; left > 0; ++at) {
      if (tile.is_packed) {
        ASSERT_EQ(own_packed[at], host.packed[at]) << "row " << row << ", entry " << at;
        left -= host.packed[at].ends_step;
      } else {
        ASSERT_EQ(own_spans[at], host.spans[at]) << "row " << row << ", entry " << at;
        --left;
      }
    }
  }
}

TEST_F(Sm90Forward, ListsOfTheDeviceAreThoseOfTheHost) {
  for (const int64_t block : {2, 5, 30, 64, 128, 0}) {
    for (const double density : {0.3, 1.0}) {
      Problem p{.batch = 3, .heads = 2, .kv_len = 5000, .density = density};
      p.q_len = on_gpu(3000, 500);
      p.block_q = std::max<int64_t>(block, 64), p.block_kv = block;
      if (block == 0) p.block_q = 0;
      expect_lists_of_host(p, sm90_tile(p.block_q, block));
      for (const int keys : {128, 160, 176}) expect_lists_of_host(p, {128, keys, true});
    }
  }
}

TEST_F(Sm90Forward, RepeatsBitForBit) {
  const int64_t len = on_gpu(1500, 500);
  const Problem dense{.heads = 4, .kv_heads = 4, .q_len = len, .kv_len = len};
  Problem listed = dense;
  listed.density = 0.5, listed.block_q = 100, listed.block_kv = 33;
  for (const AttentionTile tile :
       {AttentionTile{}, AttentionTile{64, 64}, AttentionTile{128, 160, true}}) {
    const AttentionCase one(tile == AttentionTile{} ? dense : listed, tile, 1);
    expect_same_every_time([&] {
      EXPECT_TRUE(block_sparse_sm90(one.args(), {}).ok());
      return one.out();
    });
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
  const float bias = 0;
  EXPECT_EQ(reason([&](CudaAttentionArgs& a) { a.key_bias.data = &bias, a.tile.is_packed = true; }),
            "takes no bias of keys for packed lists");
}

}  // namespace
}  // namespace fovea::kernels
