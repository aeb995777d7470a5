// Backward attention on compute capability 9.0 against fp64 on the CPU.
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "kernels/attention/block_sparse_backward_cuda.h"
#include "tests/kernels/attention_backward_problem.h"
#include "tests/kernels/gpu_test.h"

namespace fovea::kernels {
namespace {

using namespace attention_test;

void check(const Problem& p, int seed) { check_backward(p, block_sparse_backward_sm90, seed); }

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
  const int64_t heads = on_gpu(25, 2);
  check({.batch = 3, .heads = heads, .kv_heads = heads, .q_len = 400, .kv_len = 40, .dim = 128}, 3);
  check({.batch = 3, .heads = heads, .kv_heads = heads, .q_len = 40, .kv_len = 400, .dim = 64}, 4);
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
    for (int run = 0; run < on_gpu(250, 4); ++run) {
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
