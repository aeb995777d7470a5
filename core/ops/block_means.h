#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include <ATen/core/Tensor.h>

// Means of blocks and their products by kernels/attention/mean_scores.h, where the tensors are.
// Without gradients; nothing waits for a GPU.

namespace fovea::ops {

/// One side of an attention in blocks that all heads and items share; on x's device.
struct SharedBlocks {
  at::Tensor x;        ///< [batch, heads, len, dim] that `has_block_sums`
  at::Tensor offsets;  ///< int32 [.., blocks + 1] positions, ascending
  at::Tensor rows;     ///< int32 [.., len] of each position, or undefined: as they are
};

/// Of one or two sides of one type, batch and number of channels: fp32 [batch, heads, blocks, dim],
/// 0 for an empty block. One launch.
std::vector<at::Tensor> block_means(const std::vector<SharedBlocks>& sides);

/// Means of blocks, fp32 [batch, heads, q blocks, dim] and [batch, kv_heads, kv blocks, dim].
struct MeansOfBlocks {
  at::Tensor q, k;
  at::Tensor kv_offsets;  ///< as `SharedBlocks::offsets`
};

/// scale * q . (k - the mean of all keys), -inf for an empty block: fp32 [batch, heads, q blocks,
/// kv blocks]; or bool, the `least` highest of each row, of equal ones the first, -inf never.
/// Nothing where a GPU's shared memory is too small for so many blocks. One launch.
std::optional<at::Tensor> mean_scores(const MeansOfBlocks& means, double scale);
std::optional<at::Tensor> highest_mean_scores(const MeansOfBlocks& means, double scale,
                                              int64_t least);

}  // namespace fovea::ops
