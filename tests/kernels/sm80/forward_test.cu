// Forward attention on compute capability 8.0 and newer against fp64 on the CPU.
#include <cmath>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "kernels/attention/block_sparse_cuda.h"
#include "tests/kernels/attention_cases.h"

namespace fovea::kernels {
namespace {

using namespace attention_test;
using Problem = AttentionProblem;

void check(const Problem& p, int seed) {
  SCOPED_TRACE(name_of(p));
  check_attention(p, {block_sparse_sm80, sm80_tile}, seed);
}

const std::vector<int64_t> kDims = {32, 64, 96, 128, 256};

class Sm80Forward : public Sm80Test {};

TEST_F(Sm80Forward, DenseOfAnyLength) {
  dense_of_lengths(kDims, {{1, 1}, {64, 64}, {65, 17}, {128, 80}, {193, 81}, {300, 500}, {5, 2000}},
                   check);
}
TEST_F(Sm80Forward, HeadsItemsAndLayouts) { heads_items_and_layouts(kDims, check); }
TEST_F(Sm80Forward, MoreTilesThanBlocks) { more_tiles_than_blocks(check); }
TEST_F(Sm80Forward, BlocksOfManySizes) { blocks_of_many_sizes(kDims, check); }

TEST_F(Sm80Forward, NoKeys) { check({.heads = 2, .q_len = 200, .kv_len = 0, .dim = 64}, 1); }

// What lists may have besides: each alone, then all together.
Problem listed(int64_t dim, std::pair<int64_t, int64_t> blocks) {
  return {.batch = 2,
          .heads = 2,
          .kv_heads = 1,
          .q_len = 400,
          .kv_len = 500,
          .dim = dim,
          .density = 0.5,
          .block_q = blocks.first,
          .block_kv = blocks.second};
}

const Sizes kBlocks = {{128, 128}, {128, 64}, {64, 64}, {384, 192}, {0, 0}};

TEST_F(Sm80Forward, PairMasks) {
  int seed = 0;
  for (const int64_t dim : kDims) {
    for (const auto& blocks : kBlocks) {
      Problem p = listed(dim, blocks);
      p.masks = true;
      check(p, ++seed);
    }
  }
}

TEST_F(Sm80Forward, MoreKeys) {
  int seed = 0;
  for (const int64_t dim : kDims) {
    for (const auto& blocks : kBlocks) {
      Problem p = listed(dim, blocks);
      p.more_keys = 170, p.more_gap = seed % 2 * 12;
      check(p, ++seed);
    }
    check({.heads = 2, .q_len = 150, .kv_len = 130, .dim = dim, .more_keys = 99, .more_gap = 14},
          ++seed);
  }
}

TEST_F(Sm80Forward, KeyBias) {
  int seed = 0;
  for (const int64_t dim : kDims) {
    for (const auto& blocks : kBlocks) {
      Problem p = listed(dim, blocks);
      p.bias_begin = seed % 3 * 77;
      check(p, ++seed);
    }
    check({.heads = 2, .q_len = 150, .kv_len = 130, .dim = dim, .bias_begin = 31}, ++seed);
  }
}

TEST_F(Sm80Forward, OrderOfResults) {
  int seed = 0;
  for (const int64_t dim : kDims) {
    for (const auto& blocks : kBlocks) {
      Problem p = listed(dim, blocks);
      p.out_order = true;
      p.rows_first = seed % 2 == 0;
      check(p, ++seed);
    }
    check({.batch = 2, .heads = 2, .q_len = 150, .kv_len = 130, .dim = dim, .out_order = true},
          ++seed);
  }
}

TEST_F(Sm80Forward, EverythingTogether) {
  int seed = 0;
  for (const int64_t dim : kDims) {
    for (const DType dtype : {DType::bf16, DType::f16}) {
      for (const auto& blocks : kBlocks) {
        Problem p = listed(dim, blocks);
        p.dtype = dtype;
        p.masks = p.out_order = true;
        p.more_keys = 130, p.more_gap = 12;
        p.bias_begin = 450;
        p.sm_scale = 0.3 / std::sqrt(static_cast<double>(dim));
        check(p, ++seed);
      }
    }
  }
}

TEST_F(Sm80Forward, IntegerQueriesAndKeys) {
  int seed = 0;
  for (const int64_t dim : {64, 128}) {
    for (const auto& [q_len, kv_len] : Sizes{{1, 1}, {65, 17}, {193, 81}, {300, 500}}) {
      check({.q_len = q_len, .kv_len = kv_len, .dim = dim, .integers = true}, ++seed);
    }
    check({.batch = 2,
           .heads = 4,
           .kv_heads = 2,
           .q_len = 90,
           .kv_len = 333,
           .dim = dim,
           .rows_first = true,
           .integers = true},
          ++seed);
    for (const DType dtype : {DType::bf16, DType::f16}) {
      for (const auto& blocks : kBlocks) {
        Problem p = listed(dim, blocks);
        p.dtype = dtype;
        p.masks = p.out_order = p.integers = true;
        p.bias_begin = 450;
        check(p, ++seed);
      }
    }
  }
}

TEST_F(Sm80Forward, RepeatsBitForBit) {
  for (const int64_t dim : kDims) {
    const int64_t len = on_gpu(1500, 300);
    const AttentionCase one({.heads = 4, .kv_heads = 4, .q_len = len, .kv_len = len, .dim = dim},
                            {}, 1);
    SCOPED_TRACE(testing::Message() << "dim " << dim);
    expect_same_every_time([&] {
      EXPECT_TRUE(block_sparse_sm80(one.args(), {}).ok());
      return one.out();
    });
  }
}

TEST(Sm80Tile, DividesBlocksWhereItCan) {
  EXPECT_EQ(sm80_tile(128, 128), (AttentionTile{128, 128}));
  EXPECT_EQ(sm80_tile(384, 192), (AttentionTile{128, 64}));
  EXPECT_EQ(sm80_tile(192, 128), (AttentionTile{64, 64}));
  for (const auto& [q, kv] : kBlocks) EXPECT_EQ(sm80_tile(q, kv), sm90_tile(q, kv));
}

TEST(Sm80Refusals, SayWhy) {
  CudaAttentionArgs args{
      .batch = 1, .heads = 1, .kv_heads = 1, .q_len = 1, .kv_len = 1, .dim = 128};
  args.q.dtype = args.k.dtype = args.v.dtype = DType::bf16;
  const auto reason = [&](auto change, StatusCode code = StatusCode::unsupported) {
    CudaAttentionArgs other = args;
    change(other);
    const Status status = block_sparse_sm80(other, {});
    EXPECT_EQ(status.code, code);
    return std::string(status.message);
  };
  EXPECT_EQ(reason([](CudaAttentionArgs& a) { a.dim = 80; }),
            "takes 32, 64, 96, 128 or 256 channels a head");
  EXPECT_EQ(reason([](CudaAttentionArgs& a) { a.v.dtype = DType::f32; }), "takes bf16 and fp16");
  EXPECT_EQ(reason([](CudaAttentionArgs& a) { a.sm_scale = 0; }), "takes scales above 0");
  EXPECT_EQ(reason([](CudaAttentionArgs& a) { a.sm_scale = NAN; }), "takes scales above 0");
  EXPECT_EQ(reason([](CudaAttentionArgs& a) { a.kv_len = int64_t{1} << 32; }),
            "takes up to 2^30 tokens");
  static const int8_t number = 0;
  EXPECT_EQ(reason([](CudaAttentionArgs& a) { a.q_int8.data = &number, a.dim = 96; }),
            "takes 64 or 128 channels a head of integers");
  EXPECT_EQ(reason([](CudaAttentionArgs& a) { a.q_int8.data = &number, a.more.k.data = &number; }),
            "takes no more keys beside integers");
  EXPECT_EQ(reason(
                [](CudaAttentionArgs& a) {
                  static const QueryTile tile{};
                  a.lists.tiles = &tile;
                  a.tile = {192, 64};
                },
                StatusCode::invalid),
            "lists of another tile");
}

}  // namespace
}  // namespace fovea::kernels
