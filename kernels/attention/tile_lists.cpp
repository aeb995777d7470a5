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
      const Positions keys = listed_keys(args, map, block, class_of(args, map, row, block), level);
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

// One row of packed steps.
class PackedRow {
 public:
  PackedRow(const TileListsArgs& args, int64_t of_row)
      : args_(args), out_(args.packed + of_row * args.capacity) {}

  /// Blocks that follow one another, up to `kMostPacked` of them.
  void add(const Positions* blocks, int64_t count) {
    int64_t behind = fill_;
    int spans = spans_;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t len = int64_t{blocks[i].end} - blocks[i].begin;
      spans += len > 0 && behind < args_.span_keys;
      behind += len;
    }
    if (spans > kMostPacked) end_step();
    for (int64_t i = 0; i < count; ++i) add(blocks[i]);
  }

  /// Steps of the row.
  int32_t finish() {
    if (fill_ > 0) end_step();
    if (!is_cut_) return steps_;
    *args_.fault = 1;
    return 0;
  }

 private:
  void add(Positions keys) {
    while (keys.begin < keys.end && !is_cut_) {
      is_cut_ = size_ == args_.capacity;
      if (is_cut_) return;
      const int32_t len = std::min(args_.span_keys - fill_, keys.end - keys.begin);
      out_[size_++] = {keys.begin, static_cast<uint32_t>(len), static_cast<uint32_t>(fill_)};
      keys.begin += len, fill_ += len, ++spans_;
      if (fill_ == args_.span_keys) end_step();
    }
  }
  void end_step() {
    out_[size_ - 1].ends_step = 1;
    ++steps_, fill_ = 0, spans_ = 0;
  }

  const TileListsArgs& args_;
  PackedSpan* out_;
  int64_t size_ = 0;
  int32_t fill_ = 0, spans_ = 0, steps_ = 0;  // keys and spans of the step at hand, steps before
  bool is_cut_ = false;
};

void pack_keys(const TileListsArgs& args, int64_t map, int64_t row) {
  const int64_t of_row = map * args.num_q_blocks + row;
  PackedRow packed(args, of_row);
  for (int level = 0; level <= args.num_summaries; ++level) {
    for (int64_t first = 0; first < args.num_kv_blocks; first += kMostPacked) {
      const int64_t count = std::min<int64_t>(kMostPacked, args.num_kv_blocks - first);
      Positions blocks[kMostPacked];
      for (int64_t i = 0; i < count; ++i) {
        const int of = class_of(args, map, row, first + i);
        blocks[i] = listed_keys(args, map, first + i, of, level);
      }
      packed.add(blocks, count);
    }
  }
  args.counts[of_row] = packed.finish();
}

}  // namespace

void tile_lists_cpu(const TileListsArgs& args) {
  for (int64_t map = 0; map < args.maps; ++map) {
    cut_queries(args, map);
    for (int64_t row = 0; row < args.num_q_blocks; ++row) {
      args.packed != nullptr ? pack_keys(args, map, row) : list_keys(args, map, row);
    }
  }
}

}  // namespace fovea::kernels
