#pragma once

#include <cstdint>

#include "kernels/attention/tile_lists.h"

namespace fovea::kernels {

constexpr int kMaxPairRules = 8;
constexpr int kMaxStoredPairs = 4;

/// Which pairs of a query and a key a rule leaves: of an interval those with
/// q[0] <= kv[0] < q[1], of a disc those with (q[0] - kv[0])² + (q[1] - kv[1])² < limit.
struct PairRule {
  int64_t disc_limit = -1;  ///< of a disc; below 0: an interval
};

/// Bytes that are not 0 where the query in a row sees the key in a row: [batch, heads, q_len,
/// kv_len] with strides, 0 where all share one. Null data means absent.
struct StoredPairs {
  const uint8_t* visible = nullptr;
  int64_t batch_stride = 0, head_stride = 0, q_stride = 0, kv_stride = 0;
};

/// What rules and stored bits leave of lists of whole spans: spans of which nothing is left are
/// taken out, those of which a part is left get masks. Rules speak of tokens of grids only: a pair
/// with another token they leave. Of lists of columns (`TileListsArgs::transposed`) rows are of
/// blocks of keys and spans of queries.
///
/// The values of one side are int32 [maps or 1, 2 * num_rules + 2, len] by position: two for each
/// rule (`PairRule`), then whether it is outside of grids, then its row.
struct PairMasksArgs {
  int64_t maps = 1, map_heads = 1;  ///< map m is of item m / map_heads and head m % map_heads
  int64_t rows = 0, capacity = 0;   ///< see `TileLists`
  int32_t* counts = nullptr;        ///< [maps, rows]
  KeySpan* spans = nullptr;         ///< [maps, rows, capacity]
  bool transposed = false;
  const int32_t* q_offsets = nullptr;  ///< [q_maps, rows + 1], of blocks of keys if transposed
  int64_t q_maps = 1;                  ///< `maps` or 1
  int64_t q_len = 0, kv_len = 0;       ///< spans of keys from kv_len on are seen
  int32_t tile_queries = 0;            ///< rows of a tile
  int num_rules = 0, num_stored = 0;
  PairRule rules[kMaxPairRules];
  StoredPairs stored[kMaxStoredPairs];
  const int32_t* q_values = nullptr;
  const int32_t* kv_values = nullptr;
  int64_t q_value_maps = 1, kv_value_maps = 1;  ///< `maps` or 1
  uint8_t* seen = nullptr;         ///< [maps, rows, capacity]; what is in between the two steps
  int64_t* needed = nullptr;       ///< [maps, rows] masks of each row of blocks
  const int64_t* first = nullptr;  ///< [maps, rows] the number of each row's first one
  uint32_t* masks = nullptr;       ///< [masks, tile_queries, kMaskWords]
};

/// First step: takes spans out, and says how many masks each row `needed`s. No span has a mask yet.
void find_pairs_cpu(const PairMasksArgs& args);
Status find_pairs_cuda(const PairMasksArgs& args, CudaTarget target);

/// Second step, with the sums of `needed` before each row in `first`: fills masks, and gives spans
/// their numbers.
void fill_masks_cpu(const PairMasksArgs& args);
Status fill_masks_cuda(const PairMasksArgs& args, CudaTarget target);

}  // namespace fovea::kernels
