#pragma once

#include <cstdint>

#include "kernels/common/status.h"
#include "kernels/common/tensor_view.h"

namespace fovea::kernels {

/// Consecutive rows of k and v.
struct KeySpan {
  int32_t begin = 0;
  uint32_t len : 8 = 0;
  /// 0 where all its pairs count; else 1 + the number of the pair mask of the first tile of the
  /// block of queries, behind which are those of the block's other tiles.
  uint32_t mask : 24 = 0;
  bool operator==(const KeySpan&) const = default;
};

/// Consecutive rows of k and v in a packed list. It lists the keys of a row of blocks as they are
/// copied: step by step, wherever a block ends, so that all but a row's last step are full.
struct alignas(8) PackedSpan {
  int32_t begin = 0;
  uint32_t len : 8 = 0;
  uint32_t row : 8 = 0;        ///< of its first key within the step
  uint32_t ends_step : 1 = 0;  ///< the next span begins another step
  bool operator==(const PackedSpan&) const = default;
};
/// Spans of a step, at most: one for each thread of the warp that copies them. Blocks are packed in
/// groups of as many; before a group with which a step would have more spans the step ends early.
constexpr int kMostPacked = 32;

/// Consecutive rows of q that see the same keys; none where `len` is 0.
struct QueryTile {
  int32_t begin = 0;
  int32_t len = 0;
  int32_t row = 0;   ///< of blocks, whose spans these are
  int32_t part = 0;  ///< number of this tile within its block
  bool operator==(const QueryTile&) const = default;
};

/// Which keys of a span each query of a tile sees, as threads of matrix instructions hold logits:
/// bit i of word [row][t] is key 8 (i / 2) + 2 t + i % 2 of the span.
constexpr int kMaskWords = 4;  // of a row of queries: 128 keys

/// Which keys tiles of queries see.
struct TileLists {
  const QueryTile* tiles = nullptr;  ///< [maps, tiles_per_map]; null means: all see all
  const int32_t* counts = nullptr;   ///< [maps, rows] spans of each row, of packed ones steps
  const KeySpan* spans = nullptr;    ///< [maps, rows, capacity], ascending
  int64_t tiles_per_map = 0, rows = 0, capacity = 0;
  /// The map of (batch, head) is batch * batch_stride + head * head_stride.
  int64_t batch_stride = 0, head_stride = 0;
  const uint32_t* masks = nullptr;     ///< [masks, queries of a tile, kMaskWords]; null: none
  const PackedSpan* packed = nullptr;  ///< [maps, rows, capacity], instead of `spans`; no masks
};

/// Pooled keys that stand for blocks of one class; those of block j are at begin + j * per_block.
struct SummaryKeys {
  int32_t begin = 0;
  int32_t per_block = 0;
  int32_t pool = 0;  ///< keys of a block that each stands for; 0: all of them
};
constexpr int kMaxSummaries = 8;

/// Makes lists from a map of blocks. Blocks of queries are cut into tiles, blocks of keys into
/// spans; neither crosses the border of a block. Lists of columns, that say which queries see a
/// tile of keys, come from the same map: `transposed`, with keys in the place of queries and
/// queries in that of keys.
struct TileListsArgs {
  const uint8_t* classes = nullptr;  ///< [maps, num_q_blocks, num_kv_blocks]; null: all are listed
  uint8_t keep = 1;                  ///< the class of blocks that are listed with their own keys
  uint8_t last_class = 0;            ///< that there is, where it is above those that are listed
  int num_summaries = 0;             ///< of classes keep + 1, keep + 2, ...
  SummaryKeys summaries[kMaxSummaries];
  const int32_t* q_offsets = nullptr;   ///< [q_maps, num_q_blocks + 1], ascending
  const int32_t* kv_offsets = nullptr;  ///< [kv_maps, num_kv_blocks + 1], ascending
  /// [valid_maps, blocks of keys] keys at the begin of each block that count, in lists of columns
  /// those that tiles are cut of; null: all of them
  const int32_t* kv_valid = nullptr;
  /// The latter are `maps` or 1.
  int64_t maps = 1, q_maps = 1, kv_maps = 1, valid_maps = 1;
  int64_t num_q_blocks = 0, num_kv_blocks = 0;
  int32_t q_len = 0, kv_len = 0;
  int32_t tile_queries = 0;  ///< most rows of a tile
  int32_t span_keys = 0;     ///< most rows of a span, of a packed step; of the latter up to 255
  QueryTile* tiles = nullptr;
  int32_t* counts = nullptr;
  KeySpan* spans = nullptr;
  PackedSpan* packed = nullptr;  ///< instead of `spans`
  int64_t tiles_per_map = 0;     ///< at least `most_tiles`
  int64_t capacity = 0;          ///< spans of a row; of packed ones `most_packed` are enough
  /// classes is [maps, num_kv_blocks, num_q_blocks]: for lists of columns
  bool transposed = false;
  /// [1] becomes 1 where a list was cut at its capacity (a packed one is empty then), or a block
  /// that descends or lies outside of the sequence, or is of an unknown class, was left out; else
  /// it stays as it was.
  int32_t* fault = nullptr;
};

/// Tiles of a map with any offsets of so many blocks.
constexpr int64_t most_tiles(int64_t q_len, int64_t num_q_blocks, int64_t tile_queries) {
  return (q_len + tile_queries - 1) / tile_queries + num_q_blocks;
}

/// Spans of a packed row over any blocks of so many keys: besides blocks, full steps cut.
constexpr int64_t most_packed(int64_t kv_len, int64_t num_kv_blocks, int64_t step_keys) {
  return kv_len / step_keys + num_kv_blocks;
}

/// The same lists on both; arrays are on the side that computes.
void tile_lists_cpu(const TileListsArgs& args);
Status tile_lists_cuda(const TileListsArgs& args, CudaTarget target);

}  // namespace fovea::kernels
