#pragma once

#include "kernels/attention/tile_lists.h"
#include "kernels/common/host_device.h"

// What tile_lists.cpp and tile_lists.cu share.

namespace fovea::kernels {

/// Positions from `begin` up to `end`.
struct Positions {
  int32_t begin = 0, end = 0;

  /// Pieces of at most `most` positions.
  FOVEA_HD int64_t pieces(int32_t most) const {
    return (static_cast<int64_t>(end) - begin + most - 1) / most;
  }
};

/// One of the blocks that `offsets` has, or none, and a fault, where that is no such block.
FOVEA_HD inline Positions block_of(const int32_t* offsets, int64_t block, int32_t len,
                                   int32_t* fault) {
  const Positions out = {offsets[block], offsets[block + 1]};
  if (out.begin >= 0 && out.end >= out.begin && out.end <= len) return out;
  *fault = 1;
  return {};
}

/// What of a block the pooled key `number` of it stands for.
FOVEA_HD inline Positions piece_of(Positions block, const SummaryKeys& summary, int64_t number) {
  if (summary.pool == 0) return block;
  const int64_t begin = block.begin + number * summary.pool, end = begin + summary.pool;
  return {static_cast<int32_t>(begin < block.end ? begin : block.end),
          static_cast<int32_t>(end < block.end ? end : block.end)};
}

/// What counts of a block of keys.
FOVEA_HD inline Positions valid_keys(const TileListsArgs& args, int64_t map, int64_t block,
                                     Positions keys) {
  if (args.kv_valid == nullptr) return keys;
  const int64_t blocks = args.transposed ? args.num_q_blocks : args.num_kv_blocks;
  const int32_t valid = args.kv_valid[(args.valid_maps == 1 ? 0 : map) * blocks + block];
  if (valid < keys.end - keys.begin) keys.end = keys.begin + (valid > 0 ? valid : 0);
  return keys;
}

/// What tiles of a row of blocks are cut of.
FOVEA_HD inline Positions tiled_rows(const TileListsArgs& args, int64_t map, int64_t row) {
  const int32_t* offsets = args.q_offsets + (args.q_maps == 1 ? 0 : map) * (args.num_q_blocks + 1);
  const Positions block = block_of(offsets, row, args.q_len, args.fault);
  return args.transposed ? valid_keys(args, map, row, block) : block;
}

/// The class of a block of keys for a block of queries.
FOVEA_HD inline int class_of(const TileListsArgs& args, int64_t map, int64_t row, int64_t block) {
  if (args.classes == nullptr) return args.keep;
  const int64_t nk = args.num_kv_blocks, nq = args.num_q_blocks;
  return args
      .classes[args.transposed ? (map * nk + block) * nq + row : (map * nq + row) * nk + block];
}

/// What is listed of a block of keys of class `of`.
///
/// level  0: the keys themselves; else a number of summary, from 1 on
FOVEA_HD inline Positions listed_keys(const TileListsArgs& args, int64_t map, int64_t block, int of,
                                      int level) {
  const int own = of - args.keep;
  if (own > args.num_summaries && of > args.last_class) *args.fault = 1;
  if (own != level) return {};
  const int64_t nk = args.num_kv_blocks;
  const int32_t* offsets = args.kv_offsets + (args.kv_maps == 1 ? 0 : map) * (nk + 1);
  Positions keys = block_of(offsets, block, args.kv_len, args.fault);
  if (level == 0) return args.transposed ? keys : valid_keys(args, map, block, keys);
  const SummaryKeys& summary = args.summaries[level - 1];
  const int64_t count = summary.pool == 0 ? keys.end > keys.begin : keys.pieces(summary.pool);
  const auto begin = static_cast<int32_t>(summary.begin + block * summary.per_block);
  const int64_t places = summary.per_block;
  return {begin, static_cast<int32_t>(begin + (count < places ? count : places))};
}

}  // namespace fovea::kernels
