#pragma once

#include <cstdint>

#include "kernels/attention/tile_lists.h"
#include "kernels/common/host_device.h"

namespace fovea::kernels {

/// A tile's list of a head of queries.
struct alignas(16) ColumnList {
  uint32_t begin;  ///< number of its first span, of all
  int32_t spans;
  int32_t first;  ///< the one that the tile begins with
  int32_t part;   ///< of the tile
};

/// Which block of a grid takes which tiles of keys, and when each of them adds to the gradients of
/// queries, for lists of columns: additions in global memory have a fixed order with few waits.
///
/// Tiles that have rows are dealt in waves, in their order, one to each block. In the last waves
/// those with most steps go to the blocks that have had the fewest. A tile begins at a place of its
/// own among the steps of a head of queries, and goes round its list from there: at a time blocks
/// are at different steps, that still are in the cache.
///
/// So it is known how many steps a block has behind it when it comes to each of its own: its time,
/// if all steps took the same. To a step of queries tiles add in the order of these times, of equal
/// ones in that of blocks. A block comes to its steps in the order of its times: what is first of
/// all that is left never waits, if the blocks of a grid run at the same time.
struct BackwardSchedule {
  TileLists columns;  ///< spans begin at multiples of `step_queries`, none is longer
  int step_queries = 0;
  int batch = 0, kv_heads = 0, heads_per_kv = 0;
  int steps = 0;                ///< of a head of queries
  int tiles = 0;                ///< of a head of keys, columns.tiles_per_map
  int blocks = 0;               ///< of the grid; at most kMostBlocks
  int waves = 0;                ///< at most: tiles of all over blocks, rounded up
  int apart = 0;                ///< steps from where a tile begins to where the next one does
  int32_t* weights = nullptr;   ///< [all tiles] steps and what a tile costs besides; 0: no rows
  int32_t* order = nullptr;     ///< [waves, blocks] tiles; -1: none, nor in later waves
  uint32_t* times = nullptr;    ///< [all tiles] of the first step, times `blocks`, and the block
  ColumnList* lists = nullptr;  ///< [all tiles, heads_per_kv]
  uint16_t* ranks = nullptr;    ///< [all tiles, heads_per_kv * steps] as the tile goes
  int32_t* adds = nullptr;      ///< [batch, heads of queries, steps] tiles that add
  /// [batch, heads of queries, steps, kMostAdds] memory for the time of making it: of each that
  /// adds the time and the place in `ranks`
  uint32_t (*entries)[2] = nullptr;

  static constexpr int kMostBlocks = 256, kMostAdds = 4096;
  static constexpr int kTileCost = 2;  ///< begin and end of a tile, in steps

  FOVEA_HD int64_t all_tiles() const { return static_cast<int64_t>(batch) * kv_heads * tiles; }
  FOVEA_HD int64_t all_steps() const {
    return static_cast<int64_t>(batch) * kv_heads * ranks_of_tile();
  }
  FOVEA_HD int64_t ranks_of_tile() const { return static_cast<int64_t>(heads_per_kv) * steps; }
  /// Whether numbers are as small as they have to be.
  bool fits() const;
};

/// Fills all arrays. All work is in the stream; nothing is waited for.
Status schedule_backward(const BackwardSchedule& args, CudaTarget target);

}  // namespace fovea::kernels
