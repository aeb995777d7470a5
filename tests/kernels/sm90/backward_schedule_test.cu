// The order in which tiles of keys add to the gradients of queries, of lists.
#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

#include "kernels/attention/backward_schedule.h"
#include "tests/kernels/attention_backward_problem.h"
#include "tests/kernels/gpu_test.h"

namespace fovea::kernels {
namespace {

using namespace attention_test;

constexpr int kQueries = 64;  // of a step

AttentionProblem problem(double density) {
  return {.batch = 2,
          .heads = 4,
          .kv_heads = 2,
          .q_len = 650,
          .kv_len = 1500,
          .dim = 64,
          .density = density};
}

/// A schedule as the device makes it, and what it is to be like.
class Scheduled {
 public:
  Scheduled(const AttentionProblem& p, int blocks, int apart)
      : in_(p, sm90_tile(p.block_q, p.block_kv), 1),
        columns_(p, *in_.blocks),
        tiles_(columns_.tiles),
        counts_(columns_.counts),
        spans_(columns_.spans),
        args_(numbers(p, blocks, apart)),
        weights_(args_.all_tiles(), -7),
        order_(int64_t{args_.waves} * blocks, -7),
        adds_(args_.all_steps(), -7),
        times_(args_.all_tiles(), 7),
        lists_(args_.all_tiles() * args_.heads_per_kv, ColumnList{}),
        ranks_(args_.all_tiles() * args_.ranks_of_tile(), 0xffff),
        entries_(args_.all_steps() * BackwardSchedule::kMostAdds * 2, 7) {
    args_.columns.tiles = tiles_.data(), args_.columns.counts = counts_.data();
    args_.columns.spans = spans_.data();
    args_.weights = weights_.device.data(), args_.order = order_.device.data();
    args_.adds = adds_.device.data(), args_.times = times_.device.data();
    args_.lists = lists_.device.data(), args_.ranks = ranks_.device.data();
    args_.entries = reinterpret_cast<uint32_t(*)[2]>(entries_.device.data());
    EXPECT_TRUE(args_.fits());
    EXPECT_TRUE(schedule_backward(args_, {}).ok());
    weights_.host = weights_.device.read(), order_.host = order_.device.read();
    adds_.host = adds_.device.read(), lists_.host = lists_.device.read();
    ranks_.host = ranks_.device.read(), times_.host = times_.device.read();
    for (int block = 0; block < blocks; ++block) blocks_.push_back(steps_of(block));
  }

  /// When a tile adds to a step, as its block has it.
  struct Add {
    int64_t step;
    int rank, time, block;
  };

  // Every tile that has rows is dealt once, with all its steps, from the one on where it begins.
  void check_tiles() const {
    std::vector<int> dealt(args_.all_tiles());
    for (const int tile : order_.host) {
      if (tile >= 0) ++dealt[tile];
    }
    for (int64_t tile = 0; tile < args_.all_tiles(); ++tile) {
      const QueryTile own = tile_at(tile);
      ASSERT_EQ(dealt[tile], own.len > 0) << tile;
      for (int i = 0; own.len > 0 && i < args_.heads_per_kv; ++i) {
        const int64_t row = map_of(tile, i) * args_.columns.rows + own.row;
        const ColumnList list = lists_.host[tile * args_.heads_per_kv + i];
        ASSERT_EQ(list.begin, row * columns_.capacity);
        ASSERT_EQ(list.spans, columns_.counts[row]);
        ASSERT_EQ(list.part, own.part);
        const int64_t begin = tile % args_.tiles * args_.apart % args_.steps * kQueries;
        const KeySpan* const spans = columns_.spans.data() + list.begin;
        const auto first = std::find_if(spans, spans + list.spans,
                                        [&](const KeySpan& x) { return x.begin >= begin; });
        ASSERT_EQ(list.first, first == spans + list.spans ? 0 : first - spans);
      }
    }
  }

  // Each step has every rank once, in the order of times.
  void check_ranks() const {
    std::vector<std::vector<Add>> of_steps(args_.all_steps());
    for (const auto& block : blocks_) {
      for (const Add& add : block) of_steps[add.step].push_back(add);
    }
    for (size_t step = 0; step < of_steps.size(); ++step) {
      auto& adds = of_steps[step];
      ASSERT_EQ(adds_.host[step], static_cast<int>(adds.size()));
      std::sort(adds.begin(), adds.end(), [](const Add& a, const Add& b) {
        return a.time != b.time ? a.time < b.time : a.block < b.block;
      });
      for (size_t i = 0; i < adds.size(); ++i) ASSERT_EQ(adds[i].rank, static_cast<int>(i));
    }
  }

  // Blocks that each wait for their turns come to their ends.
  void check_turns() const {
    std::vector<int> turns(args_.all_steps());
    std::vector<size_t> done(blocks_.size());
    for (bool goes_on = true; goes_on;) {
      goes_on = false;
      for (size_t block = 0; block < blocks_.size(); ++block) {
        if (done[block] == blocks_[block].size()) continue;
        const Add& next = blocks_[block][done[block]];
        if (turns[next.step] != next.rank) continue;
        ++turns[next.step], ++done[block], goes_on = true;
      }
    }
    for (size_t block = 0; block < blocks_.size(); ++block) {
      ASSERT_EQ(done[block], blocks_[block].size()) << "block " << block << " waits for ever";
    }
  }

  // Of so few waves all are dealt by load: no block has more than the heaviest tile more than
  // another one.
  void check_loads() const {
    std::vector<int> loads(args_.blocks);
    for (size_t i = 0; i < order_.host.size(); ++i) {
      if (order_.host[i] >= 0) loads[i % args_.blocks] += weights_.host[order_.host[i]];
    }
    const auto [least, most] = std::minmax_element(loads.begin(), loads.end());
    EXPECT_LE(*most - *least, *std::max_element(weights_.host.begin(), weights_.host.end()));
  }

 private:
  BackwardSchedule numbers(const AttentionProblem& p, int blocks, int apart) const {
    BackwardSchedule out;
    out.columns.tiles_per_map = columns_.tiles_per_map;
    out.columns.rows = in_.blocks->nk, out.columns.capacity = columns_.capacity;
    out.columns.batch_stride = p.heads, out.columns.head_stride = 1;
    out.step_queries = kQueries;
    out.batch = static_cast<int>(p.batch), out.kv_heads = static_cast<int>(p.kv_heads);
    out.heads_per_kv = static_cast<int>(p.heads / p.kv_heads);
    out.steps = static_cast<int>((p.q_len + kQueries - 1) / kQueries);
    out.tiles = static_cast<int>(columns_.tiles_per_map);
    out.blocks = blocks, out.apart = apart;
    out.waves = static_cast<int>((out.all_tiles() + blocks - 1) / blocks);
    return out;
  }

  /// Number of heads of queries of all items before the i-th one of a tile; that is its map.
  int64_t map_of(int64_t tile, int i) const { return tile / args_.tiles * args_.heads_per_kv + i; }
  QueryTile tile_at(int64_t tile) const {
    return columns_.tiles[map_of(tile, 0) * columns_.tiles_per_map + tile % args_.tiles];
  }

  std::vector<Add> steps_of(int block) const {
    std::vector<Add> out;
    int time = 0;
    for (int wave = 0; wave < args_.waves; ++wave) {
      const int tile = order_.host[wave * args_.blocks + block];
      if (tile < 0) break;
      size_t place = tile * args_.ranks_of_tile();
      EXPECT_EQ(times_.host[tile], static_cast<uint32_t>(time * args_.blocks + block));
      int own = time;
      for (int i = 0; i < args_.heads_per_kv; ++i) {
        const ColumnList list = lists_.host[tile * args_.heads_per_kv + i];
        for (int nth = 0; nth < list.spans; ++nth) {
          const KeySpan span = columns_.spans[list.begin + (list.first + nth) % list.spans];
          const int64_t step = map_of(tile, i) * args_.steps + span.begin / kQueries;
          out.push_back({step, ranks_.host[place++], own++, block});
        }
      }
      EXPECT_EQ(weights_.host[tile], own - time + BackwardSchedule::kTileCost);
      time += weights_.host[tile];
    }
    return out;
  }

  Inputs in_;
  Columns columns_;
  DeviceArray<QueryTile> tiles_;
  DeviceArray<int32_t> counts_;
  DeviceArray<KeySpan> spans_;
  BackwardSchedule args_;
  Both<int32_t> weights_, order_, adds_;
  Both<uint32_t> times_;
  Both<ColumnList> lists_;
  Both<uint16_t> ranks_;
  Both<uint32_t> entries_;
  std::vector<std::vector<Add>> blocks_;
};

class Sm90BackwardSchedule : public Sm90Test {};

TEST_F(Sm90BackwardSchedule, HasAnOrderInWhichNothingWaitsForItself) {
  for (const int blocks : {1, 3, 7, 32, 132}) {
    for (const double density : {0.0, 0.1, 0.5, 1.0}) {
      for (const int64_t block_kv : {128, 384}) {
        SCOPED_TRACE(testing::Message()
                     << blocks << " blocks, density " << density << ", " << block_kv << " keys");
        AttentionProblem p = problem(density);
        p.block_kv = block_kv;
        const Scheduled schedule(p, blocks, 1 + blocks % 5);
        schedule.check_tiles();
        schedule.check_ranks();
        schedule.check_turns();
        if (blocks >= 7) schedule.check_loads();
      }
    }
  }
}

// Several rounds of the threads that deal.
TEST_F(Sm90BackwardSchedule, OfManyTiles) {
  AttentionProblem p = problem(0.3);
  p.batch = 3, p.heads = p.kv_heads = 5, p.q_len = 128 * 3, p.kv_len = 128 * 90 - 5;
  for (const int blocks : {3, 132, 256}) {
    SCOPED_TRACE(testing::Message() << blocks << " blocks");
    const Scheduled schedule(p, blocks, 2);
    schedule.check_tiles();
    schedule.check_ranks();
    schedule.check_turns();
  }
}

// More tiles add to a step than are compared at a time.
TEST_F(Sm90BackwardSchedule, OfManyTilesAStep) {
  AttentionProblem p = problem(0.95);
  p.batch = 1, p.heads = p.kv_heads = 1, p.q_len = 128, p.kv_len = 128 * 400, p.dim = 64;
  const Scheduled schedule(p, 132, 1);
  schedule.check_tiles();
  schedule.check_ranks();
  schedule.check_turns();
}

TEST_F(Sm90BackwardSchedule, NumbersThatAreTooLargeDoNotFit) {
  BackwardSchedule args;
  args.batch = args.kv_heads = args.heads_per_kv = 1;
  args.columns.rows = args.columns.capacity = 1;
  args.steps = args.tiles = args.blocks = args.waves = 1;
  EXPECT_TRUE(args.fits());
  const auto fits = [&](auto change) {
    BackwardSchedule other = args;
    change(other);
    return other.fits();
  };
  EXPECT_FALSE(fits([](BackwardSchedule& x) { x.blocks = 257; }));
  EXPECT_FALSE(fits([](BackwardSchedule& x) { x.tiles = 4097; }));
  EXPECT_FALSE(fits([](BackwardSchedule& x) { x.steps = 1 << 20, x.tiles = 4096; }));
  EXPECT_FALSE(fits([](BackwardSchedule& x) { x.steps = 1 << 20, x.waves = 16; }));
  EXPECT_FALSE(fits([](BackwardSchedule& x) { x.steps = 1 << 20, x.kv_heads = 1 << 11; }));
  EXPECT_FALSE(fits([](BackwardSchedule& x) { x.columns.capacity = int64_t{1} << 32; }));
}

}  // namespace
}  // namespace fovea::kernels
