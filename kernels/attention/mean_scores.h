#pragma once

#include <cstdint>

#include "kernels/attention/block_sparse.h"

// Means of blocks, their products, and the blocks with the highest ones: the choice of
// Sparse-Linear Attention (Zhang et al., 2025, section 4.1) in two launches.

namespace fovea::kernels {

/// Means of blocks of rows that all heads and items share; one launch for both sides of an
/// attention.
struct BlockMeansArgs {
  struct Side {
    int64_t heads = 0, rows = 0;
    HeadRows x;                        ///< [batch, heads, rows, dim]
    const int32_t* order = nullptr;    ///< [rows] row of each position, or null: as they are
    const int32_t* offsets = nullptr;  ///< [blocks + 1] positions, ascending
    int64_t blocks = 0;
    float* means = nullptr;  ///< [batch, heads, blocks, dim]; of no rows 0
  };
  int64_t batch = 0, dim = 0;
  int num_sides = 1;
  Side sides[2];
};

/// Of block i of queries and j of keys scale * q[i] . (k[j] - the mean of all keys), and the
/// highest of them in each row.
struct MeanScoresArgs {
  int64_t batch = 0, heads = 0, kv_heads = 0;  ///< heads is a multiple of kv_heads
  int64_t dim = 0, q_blocks = 0, kv_blocks = 0;
  const float* q = nullptr;             ///< [batch, heads, q_blocks, dim] means
  const float* k = nullptr;             ///< [batch, kv_heads, kv_blocks, dim]
  const int32_t* kv_offsets = nullptr;  ///< [kv_blocks + 1]: an empty block has -inf
  float scale = 1;
  float* scores = nullptr;  ///< [batch, heads, q_blocks, kv_blocks], or null: not wanted
  int32_t least = 0;        ///< of each row that are chosen, of equal ones the first; -inf never is
  bool* chosen = nullptr;   ///< as scores, or null
};

/// The same on both but for the last bits, of means and scores and so of the choice where two are
/// as good as equal; the same bits in every run. Arrays are on the side that computes.
void block_means_cpu(const BlockMeansArgs& args);
void mean_scores_cpu(const MeanScoresArgs& args);
/// Unsupported where rows are no 16-byte packs of 8 channels.
Status block_means_cuda(const BlockMeansArgs& args, CudaTarget target);
/// Unsupported for more than 256 channels, for what is no multiple of 8, and where scores of 16
/// rows do not fit into shared memory.
Status mean_scores_cuda(const MeanScoresArgs& args, CudaTarget target);

}  // namespace fovea::kernels
