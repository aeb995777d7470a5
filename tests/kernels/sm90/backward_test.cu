// Backward attention on compute capability 9.0 against fp64 on the CPU.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "kernels/attention/backward_order.h"
#include "kernels/attention/block_sparse_backward_cuda.h"
#include "tests/kernels/attention_backward_cases.h"

namespace fovea::kernels {
namespace {

using namespace attention_test;

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

TEST(Sm90BackwardOrder, EachStepGetsEveryTileOnceInAnOrderThatCanBe) {
  for (const int heads : {1, 2, 5}) {
    for (const int tiles : {1, 2, 3, 7, 36}) {
      for (const int steps : {1, 2, 3, 5, 12, 100}) {
        for (const int all : {1, 2, 5, 8, 132}) {
          const int apart = 1 + (tiles + steps + all) % 4;
          const int blocks = std::min(all, heads * tiles);
          // When a tile adds to a step: its wave, how many steps it has behind it, its number.
          using When = std::array<int, 3>;
          std::vector<std::vector<When>> adds(heads * steps, std::vector<When>(tiles));
          for (int tile = 0; tile < heads * tiles; ++tile) {
            const AddOrder order = AddOrder::of(tile, tiles, blocks, steps, apart);
            ASSERT_LT(order.first_step(), steps);
            for (int i = 0; i < steps; ++i) {
              const int step = (order.first_step() + i) % steps, rank = order.rank(step);
              ASSERT_TRUE(0 <= rank && rank < tiles) << rank;
              When& when = adds[tile / tiles * steps + step][rank];
              ASSERT_EQ(when, When{}) << "two tiles of one rank";
              when = {1 + tile / blocks, i, tile};
            }
          }
          for (const auto& of_step : adds) {
            ASSERT_TRUE(std::is_sorted(of_step.begin(), of_step.end()))
                << heads << " heads, " << tiles << " tiles, " << steps << " steps, " << blocks;
          }
        }
      }
    }
  }
}

// ---- On the GPU ---------------------------------------------------------------------------------

class Sm90Backward : public Sm90Test {};

TEST_F(Sm90Backward, DenseOfAnyLength) { gradients_of_any_length(block_sparse_backward_sm90); }
TEST_F(Sm90Backward, HeadsItemsAndLayouts) {
  gradients_of_heads_and_layouts(block_sparse_backward_sm90);
}
TEST_F(Sm90Backward, MoreTilesThanBlocks) {
  gradients_of_more_tiles_than_blocks(block_sparse_backward_sm90);
}
TEST_F(Sm90Backward, BlocksOfManySizes) {
  gradients_of_blocks_of_many_sizes(block_sparse_backward_sm90);
}
TEST_F(Sm90Backward, MasksAndMoreKeys) {
  gradients_of_masks_and_more_keys(block_sparse_backward_sm90);
}
TEST_F(Sm90Backward, BiasesOfKeys) { gradients_with_biases_of_keys(block_sparse_backward_sm90); }
TEST_F(Sm90Backward, OnlyWhatIsWanted) {
  only_gradients_that_are_wanted(block_sparse_backward_sm90, true);
}
TEST_F(Sm90Backward, RepeatsBitForBit) { gradients_repeat_bit_for_bit(block_sparse_backward_sm90); }

// Lengths about those of a step and of a tile.
TEST_F(Sm90Backward, JointOfAnyLength) {
  int seed = 0;
  for (const DType dtype : {DType::bf16, DType::f16}) {
    for (const auto& [q_len, kv_len] : Sizes{{1, 1}, {80, 128}, {81, 127}, {300, 500}, {5, 1000}}) {
      const AttentionProblem p{.q_len = q_len, .kv_len = kv_len, .dtype = dtype};
      check_named(p, block_sparse_backward_sm90, ++seed);
    }
  }
}

// Tiles in several waves, of several heads a wave, and more of them than there are steps.
TEST_F(Sm90Backward, JointInManyWaves) {
  for (const auto& [processors, q_len] : {std::pair{3, 150}, std::pair{5, 60}}) {
    const Processors some(processors);
    AttentionProblem p{.batch = on_gpu(9, 1), .heads = 6, .kv_heads = 3, .q_len = q_len};
    p.kv_len = on_gpu(1000, 300);
    check_named(p, block_sparse_backward_sm90, processors);
  }
}

TEST_F(Sm90Backward, JointRepeatsBitForBitInManyWaves) {
  const Processors some(5);
  const AttentionProblem p{
      .batch = on_gpu(4, 1), .heads = 4, .kv_heads = 2, .q_len = 500, .kv_len = on_gpu(5000, 700)};
  const BackwardCase one(p, true, 1);
  expect_same_every_time([&] {
    EXPECT_TRUE(block_sparse_backward_sm90(one.args(), {}).ok());
    return one.read();
  });
}

// Lists of blocks whose gradients come of one kernel: ends of steps, tiles and blocks within one
// another, tiles that end before the sequence does, heads that share keys, rows and columns that
// nothing lists.
const Sizes kJointBlocks = {{128, 128}, {64, 128}, {384, 384}, {256, 128}, {128, 0}};

AttentionProblem joint_lists(std::pair<int64_t, int64_t> blocks, int seed) {
  AttentionProblem p{.batch = 1 + seed % 2, .heads = 4, .kv_heads = seed % 3 == 0 ? 4 : 2};
  p.q_len = 200 + 61 * (seed % 4), p.kv_len = 300 + 77 * (seed % 3);
  p.density = 0.2 + 0.2 * (seed % 4), p.masks = seed % 2 == 1;
  p.block_q = blocks.first, p.block_kv = blocks.second;
  if (p.block_kv == 0) p.kv_heads = p.heads;
  p.rows_first = seed % 5 < 2, p.dtype = seed % 4 == 2 ? DType::f16 : DType::bf16;
  return p;
}

TEST_F(Sm90Backward, JointOfLists) {
  int seed = 0;
  for (const auto& blocks : kJointBlocks) {
    for (int i = 0; i < 4; ++i) {
      ++seed;
      check_named(joint_lists(blocks, seed), block_sparse_backward_sm90, seed);
    }
  }
}

TEST_F(Sm90Backward, JointOfListsInManyWaves) {
  for (const int processors : {1, 3, 5}) {
    const Processors some(processors);
    AttentionProblem p = joint_lists({128, 128}, processors);
    p.batch = on_gpu(9, 2), p.kv_len = on_gpu(3000, 500);
    check_named(p, block_sparse_backward_sm90, processors);
  }
}

TEST_F(Sm90Backward, JointOfListsRepeatsBitForBit) {
  for (const bool masks : {false, true}) {
    const Processors some(5);
    AttentionProblem p{.batch = on_gpu(4, 1), .heads = 4, .kv_heads = 2, .q_len = 700};
    p.kv_len = on_gpu(5000, 900), p.density = 0.4, p.masks = masks;
    const BackwardCase one(p, true, 1);
    expect_same_every_time([&] {
      EXPECT_TRUE(block_sparse_backward_sm90(one.args(), {}).ok());
      return one.read();
    });
  }
}

// Of the same lists the two kernels' gradients, where nobody knows that spans begin where steps do.
TEST_F(Sm90Backward, ListsOffTheGrid) {
  const BackwardCase one(joint_lists({128, 128}, 3), true, 3);
  CudaAttentionBackwardArgs args = one.args();
  args.columns_on_grid = false;
  ASSERT_LT(sm90_backward_workspace_bytes(args), sm90_backward_workspace_bytes(one.args()));
  ASSERT_TRUE(block_sparse_backward_sm90(args, {}).ok());
  one.check();
}

TEST_F(Sm90Backward, WhatTheJointKernelTakes) {
  const auto is_joint = [](const AttentionProblem& p) {
    CudaAttentionBackwardArgs args = BackwardCase(p, false, 1).args();
    const int64_t bytes = sm90_backward_workspace_bytes(args);
    args.grad_q.data = nullptr;  // never joint then
    return bytes > sm90_backward_workspace_bytes(args);
  };
  AttentionProblem p{.q_len = 100, .kv_len = 150, .density = 0.5};
  for (const auto& [block_q, block_kv] : kJointBlocks) {
    p.block_q = block_q, p.block_kv = block_kv;
    EXPECT_TRUE(is_joint(p)) << name_of(p);
  }
  for (const auto& [block_q, block_kv] : Sizes{{64, 64}, {128, 64}, {100, 128}, {0, 0}}) {
    p.block_q = block_q, p.block_kv = block_kv;
    EXPECT_FALSE(is_joint(p)) << name_of(p);
  }
  p.block_q = p.block_kv = 128;
  p.masks = true, p.kv_heads = 2, p.heads = 4;
  EXPECT_TRUE(is_joint(p)) << "masks, heads that share keys";
  p.masks = false, p.bias_begin = 0;
  EXPECT_FALSE(is_joint(p)) << "biases of keys";
  p.bias_begin = std::nullopt, p.more_keys = 50;
  EXPECT_FALSE(is_joint(p)) << "more keys";
  p.more_keys = 0, p.dim = 64;
  EXPECT_FALSE(is_joint(p)) << "64 channels";
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
  const int32_t row = 0;
  EXPECT_EQ(reason(kNot, [&](Args& a) { a.forward.out_order.rows = &row; }),
            "takes no order of rows");
  EXPECT_EQ(reason(kNot, [&](Args& a) { a.forward.key_bias.data = &number; }),
            "takes more keys and a bias of keys with lists");
  EXPECT_EQ(reason(kNot, [](Args& a) { a.forward.kv_len = 0; }),
            "takes at least one query and one key");
  EXPECT_EQ(reason(kNot, [&](Args& a) { a.forward.more.k.data = &number; }),
            "takes more keys and a bias of keys with lists");
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
