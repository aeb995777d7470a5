#include "kernels/attention/tile_lists.h"

#include <algorithm>

#include "kernels/attention/listed_keys.h"

namespace fovea::kernels {
namespace {

void cut_queries(const TileListsArgs& args, int64_t map) {
  QueryTile* tiles = args.tiles + map * args.tiles_per_map;
  int64_t done = 0;
  for (int32_t row = 0; row < args.num_q_blocks; ++row) {
    const Positions block = tiled_rows(args, map, row);
    for (int32_t i = 0; i < block.pieces(args.tile_queries); ++i) {
      if (done == args.tiles_per_map) {
        *args.fault = 1;
        break;
      }
      const int32_t at = block.begin + i * args.tile_queries;
      tiles[done++] = {at, std::min(args.tile_queries, block.end - at), row, i};
    }
  }
  std::fill(tiles + done, tiles + args.tiles_per_map, QueryTile{});
}

void list_keys(const TileListsArgs& args, int64_t map, int64_t row) {
  const int64_t of_row = map * args.num_q_blocks + row;
  KeySpan* spans = args.spans + of_row * args.capacity;
  int64_t done = 0;
  for (int level = 0; level <= args.num_summaries; ++level) {
    for (int64_t block = 0; block < args.num_kv_blocks; ++block) {
      const Positions keys = listed_keys(args, map, row, block, level);
      for (int32_t i = 0; i < keys.pieces(args.span_keys); ++i) {
        if (done == args.capacity) {
          *args.fault = 1;
          break;
        }
        const int32_t at = keys.begin + i * args.span_keys;
        spans[done++] = {at, static_cast<uint32_t>(std::min(args.span_keys, keys.end - at))};
      }
    }
  }
  args.counts[of_row] = static_cast<int32_t>(done);
}

}  // namespace

void tile_lists_cpu(const TileListsArgs& args) {
  for (int64_t map = 0; map < args.maps; ++map) {
    cut_queries(args, map);
    for (int64_t row = 0; row < args.num_q_blocks; ++row) list_keys(args, map, row);
  }
}

}  // namespace fovea::kernels
