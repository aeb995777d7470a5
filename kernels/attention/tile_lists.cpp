#include "kernels/attention/tile_lists.h"

#include <algorithm>

namespace fovea::kernels {
namespace {

// Pieces of at most `most` rows of a block from `begin` to `end`; none of what is no such block.
int64_t pieces(const TileListsArgs& args, int32_t begin, int32_t end, int32_t len, int32_t most) {
  if (begin < 0 || end < begin || end > len) {
    *args.fault = 1;
    return 0;
  }
  return (static_cast<int64_t>(end) - begin + most - 1) / most;
}

void cut_queries(const TileListsArgs& args, int64_t map) {
  const int32_t* offsets = args.q_offsets + (args.q_maps == 1 ? 0 : map) * (args.num_q_blocks + 1);
  QueryTile* tiles = args.tiles + map * args.tiles_per_map;
  int64_t done = 0;
  for (int32_t row = 0; row < args.num_q_blocks; ++row) {
    const int32_t begin = offsets[row], end = offsets[row + 1];
    const int64_t count = pieces(args, begin, end, args.q_len, args.tile_queries);
    for (int32_t i = 0; i < count; ++i) {
      if (done == args.tiles_per_map) {
        *args.fault = 1;
        break;
      }
      const int32_t at = begin + i * args.tile_queries;
      tiles[done++] = {at, std::min(args.tile_queries, end - at), row, i};
    }
  }
  std::fill(tiles + done, tiles + args.tiles_per_map, QueryTile{});
}

void list_keys(const TileListsArgs& args, int64_t map, int64_t row) {
  const int32_t* offsets =
      args.kv_offsets + (args.kv_maps == 1 ? 0 : map) * (args.num_kv_blocks + 1);
  const int64_t of_row = map * args.num_q_blocks + row;
  const int64_t first = args.transposed ? map * args.num_q_blocks * args.num_kv_blocks + row
                                        : of_row * args.num_kv_blocks;
  const int64_t stride = args.transposed ? args.num_q_blocks : 1;
  KeySpan* spans = args.spans + of_row * args.capacity;
  int64_t done = 0;
  for (int64_t block = 0; block < args.num_kv_blocks; ++block) {
    if (args.classes[first + block * stride] != args.keep) continue;
    const int32_t begin = offsets[block], end = offsets[block + 1];
    const int64_t count = pieces(args, begin, end, args.kv_len, args.span_keys);
    for (int32_t i = 0; i < count; ++i) {
      if (done == args.capacity) {
        *args.fault = 1;
        break;
      }
      const int32_t at = begin + i * args.span_keys;
      spans[done++] = {at, static_cast<uint32_t>(std::min(args.span_keys, end - at))};
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
