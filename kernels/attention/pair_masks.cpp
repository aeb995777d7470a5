#include "kernels/attention/pair_masks.h"

#include <algorithm>

#include "kernels/attention/pair_seen.h"

namespace fovea::kernels {
namespace {

uint8_t seen_of(const PairMasksArgs& args, int64_t map, RowBlock block, KeySpan span) {
  if (is_pooled(args, span)) return kSeesAll;
  int64_t count = 0;
  for (int32_t query = block.begin; query < block.end; ++query) {
    for (uint32_t key = 0; key < span.len; ++key) count += sees(args, map, query, span.begin + key);
  }
  if (count == 0) return kSeesNone;
  return count == (int64_t{block.end} - block.begin) * span.len ? kSeesAll : kSeesSome;
}

void set(uint32_t* words, uint32_t key) {
  const uint32_t inside = key % 8;
  words[inside / 2] |= 1u << (key / 8 * 2 + inside % 2);
}

}  // namespace

void find_pairs_cpu(const PairMasksArgs& args) {
  for (int64_t of_row = 0; of_row < args.maps * args.rows; ++of_row) {
    const int64_t map = of_row / args.rows;
    const RowBlock block(args, map, of_row % args.rows);
    KeySpan* spans = args.spans + of_row * args.capacity;
    int32_t kept = 0;
    uint32_t partial = 0;
    for (int32_t i = 0; i < args.counts[of_row]; ++i) {
      const uint8_t seen = seen_of(args, map, block, spans[i]);
      args.seen[of_row * args.capacity + i] = seen;
      if (seen == kSeesNone) continue;
      KeySpan span = spans[i];
      if (seen == kSeesSome) span.mask = ++partial;
      spans[kept++] = span;
    }
    args.counts[of_row] = kept;
    args.needed[of_row] = partial * block.tiles(args.tile_queries);
  }
}

void fill_masks_cpu(const PairMasksArgs& args) {
  for (int64_t of_row = 0; of_row < args.maps * args.rows; ++of_row) {
    const int64_t map = of_row / args.rows;
    const RowBlock block(args, map, of_row % args.rows);
    const int64_t tiles = block.tiles(args.tile_queries);
    for (int32_t i = 0; i < args.counts[of_row]; ++i) {
      KeySpan& span = args.spans[of_row * args.capacity + i];
      if (span.mask == 0) continue;
      const int64_t number = args.first[of_row] + (span.mask - 1) * tiles;
      uint32_t* words = args.masks + number * args.tile_queries * kMaskWords;
      std::fill_n(words, tiles * args.tile_queries * kMaskWords, 0);
      for (int32_t query = block.begin; query < block.end; ++query, words += kMaskWords) {
        for (uint32_t key = 0; key < span.len; ++key) {
          if (sees(args, map, query, span.begin + key)) set(words, key);
        }
      }
      span.mask = static_cast<uint32_t>(1 + number);
    }
  }
}

}  // namespace fovea::kernels
