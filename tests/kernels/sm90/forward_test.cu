// Forward attention on compute capability 9.0 against fp64 on the CPU.
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
void check(const Problem& p, int seed) {
  SCOPED_TRACE(name_of(p));
  const AttentionCase one(p, sm90_tile(p.block_q, p.block_kv), seed);
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

class Sm90Forward : public Sm90Test {};

TEST_F(Sm90Forward, DenseOfAnyLength) {
  dense_of_lengths(kDims, {{1, 1}, {64, 64}, {65, 17}, {192, 80}, {193, 81}, {300, 500}, {5, 2000}},
                   check);
}
TEST_F(Sm90Forward, HeadsItemsAndLayouts) { heads_items_and_layouts(kDims, check); }
TEST_F(Sm90Forward, MoreTilesThanBlocks) { more_tiles_than_blocks(check); }
TEST_F(Sm90Forward, BlocksOfManySizes) { blocks_of_many_sizes(kDims, check); }

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
    attention_test::Blocks host(p, sm90_tile(block, block), random);
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
  const int64_t len = on_gpu(1500, 500);
  const AttentionCase one({.heads = 4, .kv_heads = 4, .q_len = len, .kv_len = len}, {}, 1);
  std::vector<uint16_t> first;
  for (int run = 0; run < on_gpu(250, 4); ++run) {
    ASSERT_TRUE(block_sparse_sm90(one.args(), {}).ok());
    const std::vector<uint16_t> now = one.out();
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
