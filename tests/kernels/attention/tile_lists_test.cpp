#include "kernels/attention/tile_lists.h"

#include <algorithm>
#include <random>
#include <vector>

#include <gtest/gtest.h>

namespace fovea::kernels {
namespace {

// Lists and what they are made from.
struct Made {
  std::vector<int32_t> q_offsets, kv_offsets;
  std::vector<uint8_t> classes;
  std::vector<QueryTile> tiles;
  std::vector<int32_t> counts;
  std::vector<KeySpan> spans;
  std::vector<PackedSpan> packed;
  bool is_packed = false;
  int32_t fault = 0;
  TileListsArgs args;

  void make() {
    args.q_offsets = q_offsets.data(), args.kv_offsets = kv_offsets.data();
    args.classes = classes.data();
    args.num_q_blocks = static_cast<int64_t>(q_offsets.size()) / args.q_maps - 1;
    args.num_kv_blocks = static_cast<int64_t>(kv_offsets.size()) / args.kv_maps - 1;
    tiles.assign(args.maps * args.tiles_per_map, {-1, -1, -1, -1});
    counts.assign(args.maps * args.num_q_blocks, -1);
    spans.assign(args.maps * args.num_q_blocks * args.capacity, {-1, 255, 1});
    packed.assign(spans.size() + 1, {-1, 255, 255, 1});
    args.tiles = tiles.data(), args.counts = counts.data(), args.spans = spans.data();
    args.packed = is_packed ? packed.data() : nullptr;
    args.fault = &fault;
    tile_lists_cpu(args);
  }
};

TEST(TileLists, CutsBlocksAndLeavesSkippedOnesOut) {
  Made m;
  m.q_offsets = {0, 130, 130, 200};
  m.kv_offsets = {0, 64, 200};
  m.classes = {1, 1, 1, 0, 0, 1};
  m.args.q_len = m.args.kv_len = 200;
  m.args.tile_queries = m.args.span_keys = 64;
  m.args.tiles_per_map = most_tiles(200, 3, 64);
  m.args.capacity = 4;
  m.make();
  EXPECT_EQ(m.fault, 0);
  EXPECT_EQ(
      m.tiles,
      (std::vector<QueryTile>{
          {0, 64, 0, 0}, {64, 64, 0, 1}, {128, 2, 0, 2}, {130, 64, 2, 0}, {194, 6, 2, 1}, {}, {}}));
  EXPECT_EQ(m.counts, (std::vector<int32_t>{4, 1, 3}));
  const std::vector<KeySpan> spans = {{0, 64}, {64, 64}, {128, 64}, {192, 8}};
  EXPECT_TRUE(std::equal(spans.begin(), spans.end(), m.spans.begin()));
  // Of row 2, behind the capacity of two rows.
  EXPECT_TRUE(std::equal(spans.begin() + 1, spans.end(), m.spans.begin() + 8));
}

std::vector<int32_t> random_offsets(int64_t maps, int32_t blocks, int32_t len,
                                    std::mt19937& random) {
  std::vector<int32_t> out;
  for (int64_t map = 0; map < maps; ++map) {
    std::vector<int32_t> own = {0, len};
    for (int32_t i = 1; i < blocks; ++i) own.push_back(static_cast<int32_t>(random() % (len + 1)));
    std::sort(own.begin(), own.end());
    out.insert(out.end(), own.begin(), own.end());
  }
  return out;
}

TEST(TileLists, EveryPairOfRandomMapsOnce) {
  std::mt19937 random(1);
  for (int run = 0; run < 200; ++run) {
    Made m;
    const auto draw = [&](int below) { return static_cast<int32_t>(random() % below); };
    const int32_t q_len = 1 + draw(300), kv_len = 1 + draw(300);
    m.args.q_len = q_len, m.args.kv_len = kv_len;
    m.args.maps = 1 + draw(3);
    m.args.q_maps = draw(2) ? m.args.maps : 1;
    m.args.kv_maps = draw(2) ? m.args.maps : 1;
    const int32_t nq = 1 + draw(8), nk = 1 + draw(8);
    m.q_offsets = random_offsets(m.args.q_maps, nq, q_len, random);
    m.kv_offsets = random_offsets(m.args.kv_maps, nk, kv_len, random);
    m.args.keep = static_cast<uint8_t>(1 + draw(2));
    for (int64_t i = 0; i < m.args.maps * nq * nk; ++i) {
      m.classes.push_back(static_cast<uint8_t>(draw(3)));
    }
    m.args.tile_queries = 1 + draw(70), m.args.span_keys = 1 + draw(70);
    m.args.tiles_per_map = most_tiles(q_len, nq, m.args.tile_queries);
    m.args.capacity = kv_len / m.args.span_keys + nk;
    m.make();
    // There are no summaries: a higher class is a mistake.
    const auto highest = std::max_element(m.classes.begin(), m.classes.end());
    ASSERT_EQ(m.fault, *highest > m.args.keep ? 1 : 0);
    for (int64_t map = 0; map < m.args.maps; ++map) {
      std::vector<int> times(q_len * kv_len, 0);
      for (int64_t t = 0; t < m.args.tiles_per_map; ++t) {
        const QueryTile tile = m.tiles[map * m.args.tiles_per_map + t];
        ASSERT_LE(tile.len, m.args.tile_queries);
        const int64_t row = map * nq + tile.row;
        for (int32_t q = tile.begin; q < tile.begin + tile.len; ++q) {
          for (int32_t i = 0; i < m.counts[row]; ++i) {
            const KeySpan span = m.spans[row * m.args.capacity + i];
            ASSERT_LE(span.len, m.args.span_keys);
            for (int32_t k = span.begin; k < span.begin + static_cast<int32_t>(span.len); ++k)
              ++times[q * kv_len + k];
          }
        }
      }
      const int32_t* q_own = m.q_offsets.data() + (m.args.q_maps == 1 ? 0 : map) * (nq + 1);
      const int32_t* kv_own = m.kv_offsets.data() + (m.args.kv_maps == 1 ? 0 : map) * (nk + 1);
      for (int32_t i = 0; i < nq; ++i) {
        for (int32_t j = 0; j < nk; ++j) {
          const bool listed = m.classes[(map * nq + i) * nk + j] == m.args.keep;
          for (int32_t q = q_own[i]; q < q_own[i + 1]; ++q) {
            for (int32_t k = kv_own[j]; k < kv_own[j + 1]; ++k) {
              ASSERT_EQ(times[q * kv_len + k], listed ? 1 : 0);
            }
          }
        }
      }
    }
  }
}

TEST(TileLists, WithoutClassesAllBlocksAreListed) {
  Made m;
  m.q_offsets = {0, 70}, m.kv_offsets = {0, 40, 40, 50};
  m.args.q_len = 70, m.args.kv_len = 50;
  m.args.tile_queries = m.args.span_keys = 32;
  m.args.tiles_per_map = 3, m.args.capacity = 3;
  m.make();
  EXPECT_EQ(m.fault, 0);
  EXPECT_EQ(m.spans, (std::vector<KeySpan>{{0, 32}, {32, 8}, {40, 10}}));
}

TEST(TileLists, OnlyValidKeysAreListed) {
  Made m;
  m.q_offsets = {0, 8}, m.kv_offsets = {0, 40, 60, 80};
  m.classes = {1, 1, 1, 1, 1, 1};
  const std::vector<int32_t> valid = {33, 0, 100, 40, -3, 5};
  m.args.kv_valid = valid.data();
  m.args.maps = m.args.valid_maps = 2;
  m.args.q_len = 8, m.args.kv_len = 80;
  m.args.tile_queries = m.args.span_keys = 32;
  m.args.tiles_per_map = 1, m.args.capacity = 4;
  m.make();
  EXPECT_EQ(m.fault, 0);
  EXPECT_EQ(m.counts, (std::vector<int32_t>{3, 3}));
  m.spans.erase(m.spans.begin() + 7), m.spans.erase(m.spans.begin() + 3);
  EXPECT_EQ(m.spans, (std::vector<KeySpan>{{0, 32}, {32, 1}, {60, 20}, {0, 32}, {32, 8}, {60, 5}}));
}

TEST(TileLists, SummariesAreListedBehindTheKeys) {
  Made m;
  m.q_offsets = {0, 8}, m.kv_offsets = {0, 10, 20, 23, 23, 50};
  m.classes = {2, 1, 2, 3, 3};
  m.args.num_summaries = 2;
  m.args.summaries[0] = {.begin = 64, .per_block = 7, .pool = 4};
  m.args.summaries[1] = {.begin = 128, .per_block = 1, .pool = 0};
  m.args.q_len = 8, m.args.kv_len = 50;
  m.args.tile_queries = 8, m.args.span_keys = 2;
  m.args.tiles_per_map = 1, m.args.capacity = 9;
  m.make();
  EXPECT_EQ(m.fault, 0);
  // Three means of ten keys, one of three; of no keys none.
  EXPECT_EQ(m.spans,
            (std::vector<KeySpan>{
                {10, 2}, {12, 2}, {14, 2}, {16, 2}, {18, 2}, {64, 2}, {66, 1}, {78, 1}, {132, 1}}));
  m.classes[0] = 4;
  m.make();
  EXPECT_EQ(m.fault, 1);
}

TEST(TileLists, WhatIsNoBlockIsLeftOutAndTold) {
  Made good;
  good.q_offsets = {0, 10, 20}, good.kv_offsets = {0, 10, 20};
  good.classes = {1, 1, 1, 1};
  good.args.q_len = good.args.kv_len = 20;
  good.args.tile_queries = good.args.span_keys = 8;
  good.args.tiles_per_map = 5, good.args.capacity = 4;
  const auto fault_of = [&](auto change) {
    Made m = good;
    change(m);
    m.make();
    for (const QueryTile& tile : m.tiles)
      EXPECT_TRUE(tile.begin >= 0 && tile.begin + tile.len <= 20);
    for (int64_t row = 0; row < 2; ++row) {
      for (int32_t i = 0; i < m.counts[row]; ++i) {
        const KeySpan span = m.spans[row * m.args.capacity + i];
        EXPECT_TRUE(span.len > 0 && span.begin >= 0 && span.begin + span.len <= 20);
      }
    }
    return m.fault;
  };
  EXPECT_EQ(fault_of([](Made&) {}), 0);
  EXPECT_EQ(fault_of([](Made& m) { m.kv_offsets = {0, 10, 21}; }), 1);
  EXPECT_EQ(fault_of([](Made& m) { m.kv_offsets = {0, 30, 20}; }), 1);
  EXPECT_EQ(fault_of([](Made& m) { m.kv_offsets = {-1, 10, 20}; }), 1);
  EXPECT_EQ(fault_of([](Made& m) { m.q_offsets = {0, 10, 1 << 30}; }), 1);
  EXPECT_EQ(fault_of([](Made& m) { m.q_offsets = {5, 2, 20}; }), 1);
  EXPECT_EQ(fault_of([](Made& m) { m.args.capacity = 3; }), 1);
  EXPECT_EQ(fault_of([](Made& m) { m.args.tiles_per_map = 3; }), 1);
}

TEST(TileLists, PackedStepsAreFilled) {
  Made m;
  m.is_packed = true;
  m.q_offsets = {0, 8, 16}, m.kv_offsets = {0, 10, 10, 13, 40, 50};
  m.classes = {1, 1, 1, 0, 1, 0, 0, 0, 1, 0};
  m.args.q_len = 16, m.args.kv_len = 50;
  m.args.tile_queries = 8, m.args.span_keys = 8;
  m.args.tiles_per_map = 2, m.args.capacity = most_packed(50, 5, 8);
  m.make();
  EXPECT_EQ(m.fault, 0);
  EXPECT_EQ(m.counts, (std::vector<int32_t>{3, 4}));
  // 10, 3 and 10 keys; a step of 8, 2 + 3 + 3, 7.
  const std::vector<PackedSpan> first = {
      {0, 8, 0, 1}, {8, 2, 0, 0}, {10, 3, 2, 0}, {40, 3, 5, 1}, {43, 7, 0, 1}};
  EXPECT_TRUE(std::equal(first.begin(), first.end(), m.packed.begin()));
  const std::vector<PackedSpan> second = {
      {13, 8, 0, 1}, {21, 8, 0, 1}, {29, 8, 0, 1}, {37, 3, 0, 1}};
  EXPECT_TRUE(std::equal(second.begin(), second.end(), m.packed.begin() + m.args.capacity));
  m.args.capacity = 4;
  m.make();
  EXPECT_EQ(m.fault, 1);
  EXPECT_EQ(m.counts, (std::vector<int32_t>{0, 4}));
}

// What steps of a row hold, whatever blocks there are.
TEST(TileLists, PackedStepsHaveEveryKeyOnce) {
  std::mt19937 random(3);
  const auto draw = [&](int below) { return static_cast<int32_t>(random() % below); };
  int early = 0;
  for (int run = 0; run < 300; ++run) {
    Made m;
    m.is_packed = true;
    m.args.maps = m.args.kv_maps = m.args.valid_maps = 1 + draw(2);
    const int32_t kv_len = 1 + draw(3000), nq = 1 + draw(3),
                  nk = 1 + draw(run % 3 == 0 ? 1500 : 60);
    m.args.q_len = 100, m.args.kv_len = kv_len;
    m.q_offsets = random_offsets(1, nq, 100, random);
    m.kv_offsets = random_offsets(m.args.maps, nk, kv_len, random);
    const int density = 1 + draw(4);
    for (int64_t i = 0; i < m.args.maps * nq * nk; ++i) m.classes.push_back(draw(4) < density);
    std::vector<int32_t> valid(m.args.maps * nk);
    for (int32_t& keys : valid) keys = draw(100) - 5;
    if (draw(2)) m.args.kv_valid = valid.data();
    m.args.tile_queries = 64, m.args.span_keys = 1 + draw(255);
    m.args.tiles_per_map = most_tiles(100, nq, 64);
    m.args.capacity = most_packed(kv_len, nk, m.args.span_keys);
    m.make();
    ASSERT_EQ(m.fault, 0);
    for (int64_t row = 0; row < m.args.maps * nq; ++row) {
      const int64_t map = row / nq;
      std::vector<int32_t> expected, got;
      for (int64_t block = 0; block < nk; ++block) {
        if (m.classes[row * nk + block] == 0) continue;
        const int32_t* keys = m.kv_offsets.data() + map * (nk + 1) + block;
        const int32_t most = m.args.kv_valid == nullptr ? kv_len : valid[map * nk + block];
        for (int32_t key = keys[0]; key < std::min(keys[1], keys[0] + most); ++key) {
          expected.push_back(key);
        }
      }
      const PackedSpan* span = m.packed.data() + row * m.args.capacity;
      const PackedSpan* const end = span + m.args.capacity;
      for (int32_t step = 0; step < m.counts[row]; ++step) {
        int32_t keys = 0, spans = 0;
        do {
          ASSERT_LT(span, end);
          ASSERT_TRUE(span->len > 0 && static_cast<int32_t>(span->row) == keys);
          for (uint32_t i = 0; i < span->len; ++i) {
            got.push_back(span->begin + static_cast<int32_t>(i));
          }
          keys += static_cast<int32_t>(span->len), ++spans;
        } while ((span++)->ends_step == 0);
        ASSERT_LE(keys, m.args.span_keys);
        ASSERT_LE(spans, kMostPacked);
        // Steps that end early do so because of a group's blocks.
        const bool is_early = keys < m.args.span_keys && step + 1 < m.counts[row];
        early += is_early;
        ASSERT_TRUE(!is_early || m.args.span_keys > kMostPacked);
      }
      ASSERT_EQ(got, expected);
    }
  }
  EXPECT_GT(early, 20);
}

TEST(TileLists, ColumnsAreThoseOfTheTransposedMap) {
  std::mt19937 random(2);
  for (int run = 0; run < 50; ++run) {
    // Blocks of keys are cut into tiles here.
    Made turned;
    const auto draw = [&](int below) { return static_cast<int32_t>(random() % below); };
    const int32_t rows = 1 + draw(6), columns = 1 + draw(6);
    turned.args.maps = turned.args.kv_maps = 1 + draw(3);
    turned.args.q_len = 1 + draw(300), turned.args.kv_len = 1 + draw(300);
    turned.q_offsets = random_offsets(1, columns, turned.args.q_len, random);
    turned.kv_offsets = random_offsets(turned.args.maps, rows, turned.args.kv_len, random);
    for (int64_t i = 0; i < turned.args.maps * rows * columns; ++i) {
      turned.classes.push_back(static_cast<uint8_t>(draw(2)));
    }
    turned.args.tile_queries = 1 + draw(70), turned.args.span_keys = 1 + draw(70);
    turned.args.tiles_per_map = most_tiles(turned.args.q_len, columns, turned.args.tile_queries);
    turned.args.capacity = turned.args.kv_len / turned.args.span_keys + rows;
    Made plain = turned;
    turned.args.transposed = true;
    for (int64_t map = 0; map < turned.args.maps; ++map) {
      for (int32_t i = 0; i < rows; ++i) {
        for (int32_t j = 0; j < columns; ++j) {
          plain.classes[(map * columns + j) * rows + i] =
              turned.classes[(map * rows + i) * columns + j];
        }
      }
    }
    turned.make(), plain.make();
    EXPECT_EQ(turned.fault, 0);
    EXPECT_EQ(turned.tiles, plain.tiles);
    EXPECT_EQ(turned.counts, plain.counts);
    EXPECT_EQ(turned.spans, plain.spans);
  }
}

TEST(TileLists, ColumnsAreOfValidKeysAndOneClass) {
  Made m;
  m.q_offsets = {0, 40, 60, 80}, m.kv_offsets = {0, 8, 20};  // blocks of keys, of queries
  m.classes = {1, 2, 3, 3, 1, 2};                            // [queries, keys]
  const std::vector<int32_t> valid = {33, 0, 100};
  m.args.kv_valid = valid.data();
  m.args.transposed = true, m.args.last_class = 3;
  m.args.q_len = 80, m.args.kv_len = 20;
  m.args.tile_queries = 32, m.args.span_keys = 16;
  m.args.tiles_per_map = 4, m.args.capacity = 2;
  m.make();
  EXPECT_EQ(m.fault, 0);
  EXPECT_EQ(m.tiles, (std::vector<QueryTile>{{0, 32, 0, 0}, {32, 1, 0, 1}, {60, 20, 2, 0}, {}}));
  EXPECT_EQ(m.counts, (std::vector<int32_t>{1, 1, 0}));
  EXPECT_EQ(m.spans[0], (KeySpan{0, 8}));
  EXPECT_EQ(m.spans[2], (KeySpan{8, 12}));
  m.args.keep = 3;
  m.make();
  EXPECT_EQ(m.fault, 0);
  EXPECT_EQ(m.counts, (std::vector<int32_t>{1, 0, 1}));
  EXPECT_EQ(m.spans[0], (KeySpan{8, 12}));
  EXPECT_EQ(m.spans[4], (KeySpan{0, 8}));
  m.args.last_class = 2, m.args.keep = 1;
  m.make();
  EXPECT_EQ(m.fault, 1);
}

}  // namespace
}  // namespace fovea::kernels
