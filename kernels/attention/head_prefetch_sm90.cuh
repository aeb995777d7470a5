#pragma once

#include "kernels/common/tma.cuh"

// Tiles of a head read its keys and values from the L2 cache many times. The first reads of a new
// head would all wait for memory: while memory has little else to do, tiles of the head before ask
// for it.

namespace fovea::kernels::sm90 {

/// Starts to bring a share of the next head's keys and values into the L2 cache; one thread.
///
/// tile  the number of the tile at hand, of all heads; those of a head are params.tiles
template <typename Shape, typename Params, typename Maps>
__device__ void prefetch_next_head(const Params& params, const Maps& maps, int tile) {
  const int head = tile / params.tiles + 1, share = tile % params.tiles;
  const int shares = (params.q_len + Shape::kQueries - 1) / Shape::kQueries;  // tiles, or fewer
  if (share >= shares || head >= params.num_tiles / params.tiles) return;
  const int item = head / params.heads, own = head % params.heads;
  if (own % params.heads_per_kv != 0) return;  // the head at hand has the same keys
  const int kv_head = own / params.heads_per_kv;
  constexpr int kRows = Shape::kPacked ? 128 : Shape::kSpan;
  constexpr int kBoxes = Shape::kPacked ? Shape::kPanels : 1;  // of values
  constexpr int kKeyBoxes = Shape::kPieces == 1 ? kBoxes : Shape::kPanels;
  const CUtensorMap &k = maps.k[Shape::kHeights - 1], &v = maps.v[Shape::kHeights - 1];
  const uint64_t policy = tma::evict_last();
  for (int row = share * kRows; row < params.kv_len; row += shares * kRows) {
    for (int box = 0; box < kKeyBoxes; ++box) {
      tma::prefetch(k, {0, row, box, kv_head, item}, policy);
    }
    for (int box = 0; box < kBoxes; ++box) {
      const tma::Corner at = Shape::kIsBytes ? tma::Corner{row, 0, 0, kv_head, item}
                                             : tma::Corner{0, row, box, kv_head, item};
      tma::prefetch(v, at, policy);
    }
  }
}

}  // namespace fovea::kernels::sm90
