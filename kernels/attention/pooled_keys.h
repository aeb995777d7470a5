#pragma once

#include <cstdint>

#include "kernels/attention/block_sparse.h"
#include "kernels/attention/tile_lists.h"

namespace fovea::kernels {

/// Means of consecutive positions of blocks: pooled keys and values, which `TileListsArgs` lists
/// for the same `summaries`. Places that no block has are left as they are.
struct PooledKeysArgs {
  int64_t batch = 0, heads = 0;
  int64_t in_heads = 0;  ///< of the tensors; divides `heads`, of which consecutive ones read one
  int64_t dim = 0;
  int count = 0;                  ///< of tensors
  HeadRows in[2];                 ///< [batch, in_heads, len, dim], a half type or fp32
  float* mean[2] = {};            ///< [batch, heads, places, dim]; 0 of no rows
  float* rows_in_mean = nullptr;  ///< [batch, heads, places]: rows in each mean
  int64_t len = 0, places = 0;    ///< positions; pooled keys, those in between included
  RowOrder order;                 ///< of heads: rows of positions; -1: none. Null: the same
  RowOrder offsets;               ///< of heads: [num_blocks + 1] first positions of blocks
  int64_t num_blocks = 0;
  int num_summaries = 0;
  SummaryKeys summaries[kMaxSummaries];  ///< their `begin` counts from the first place
  int32_t* fault = nullptr;              ///< see `TileListsArgs`
};

/// The same on both but for the last bits; arrays are on the side that computes.
void pooled_keys_cpu(const PooledKeysArgs& args);
Status pooled_keys_cuda(const PooledKeysArgs& args, CudaTarget target);

}  // namespace fovea::kernels
