#pragma once

#include <optional>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "core/attention/call.h"
#include "core/attention/plan.h"
#include "kernels/attention/block_sparse_cuda.h"

namespace fovea {

/// Lists of kernels/attention/tile_lists.h as tensors, for maps of items and heads.
struct DeviceLists {
  kernels::AttentionTile tile;
  bool of_columns = false;  ///< tiles are of keys, spans of queries
  bool on_grid = false;     ///< of columns: spans are known to begin at multiples of tile.keys
  at::Tensor tiles;         ///< int32 [maps, tiles, 4] of `QueryTile`
  at::Tensor counts;        ///< int32 [maps, rows]
  /// int32 [maps, rows, capacity, 2] of `KeySpan`, or of `PackedSpan` where the tile is packed
  at::Tensor spans;
  at::Tensor masks;                      ///< int32 [masks, tile.queries, kMaskWords], or undefined
  int64_t map_items = 1, map_heads = 1;  ///< maps: those of the batch or 1, of the heads or 1

  kernels::TileLists view() const;
};

/// What lists are made of; tensors are on the device that makes them.
struct ListsOf {
  const AttentionCall& call;
  const Selection& selection;  ///< its classes, its predicates where `q_rows` are there
  BlockAxis q_blocks, kv_blocks;
  int64_t kv_len = 0;   ///< without pooled keys
  at::Tensor kv_valid;  ///< int32 [batch, 1, kv blocks] keys that count, or undefined
  at::Tensor q_rows;    ///< int32 [batch or 1, heads or 1, len] of positions, and
  at::Tensor kv_rows;   ///< [batch or 1, kv_heads or 1, len]; undefined: the same
};

/// The tile that suits such blocks; `tile` is a backend's (`sm90_tile`, `sm90_column_tile`).
kernels::AttentionTile tile_of(const ListsOf& of, kernels::AttentionTile (*tile)(int64_t, int64_t));

/// Whether blocks of keys are such that their spans would leave much of a tile's steps empty, and
/// blocks of queries large enough for packed lists' tiles of 128. Packed lists are for plans
/// without predicates and summaries, for calls without biases of keys, and not for gradients.
bool are_better_packed(const ListsOf& of, kernels::AttentionTile tile);

/// Lists of blocks as their class map says. Neither waits for a GPU nor copies from or to it, but
/// for what `device_constant` keeps.
///
/// fault  int32 [1]: see `TileListsArgs`
DeviceLists make_lists(const ListsOf& of, kernels::AttentionTile tile, const at::Tensor& fault);

/// The same pairs from the side of the keys, those of summaries behind the others: lists of columns
/// for gradients of keys. Of a selection with predicates as `cut_pairs` does it.
///
/// tile  a backend's column tile
DeviceLists make_columns(const ListsOf& of, kernels::AttentionTile tile, const at::Tensor& fault);

/// Cuts pairs that predicates hide out of lists. Waits for the GPU: the number of masks sizes their
/// memory. Plans with predicates are made of what the host knows, and kept.
///
/// throws  Error resource for more than 2^24 masks
void cut_pairs(const ListsOf& of, DeviceLists& lists);

/// Why predicates are more than `cut_pairs` takes, or nothing.
std::optional<std::string> why_not_cut(const std::vector<Predicate>& predicates);

/// Where pooled keys of summaries are behind so many keys, see `summary_places`.
std::vector<kernels::SummaryKeys> summary_keys(const Selection& selection, int64_t keys);

}  // namespace fovea
