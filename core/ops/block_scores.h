#pragma once

#include <cstdint>

#include <ATen/core/Tensor.h>

// What planners look at, in one pass over the tokens. Without gradients.

namespace fovea::ops {

/// Whether `block_sums` takes x [batch, heads, len, dim]: fp32, fp16 or bf16, on GPUs with up to
/// 256 channels, a multiple of 8; and no gradient is wanted.
bool has_block_sums(const at::Tensor& x);
/// Whether `block_shares` takes x: the same, everywhere with up to 256 channels, on GPUs not fp32.
bool has_block_shares(const at::Tensor& x);

/// One side of an attention cut into blocks of consecutive positions; on x's device.
struct BlockPositions {
  /// int32 [batch or 1, heads or 1, blocks + 1] positions; a block may end before it begins, and is
  /// empty then
  at::Tensor offsets;
  at::Tensor rows;   ///< int32 [batch or 1, heads or 1, len] of each position, or undefined
  at::Tensor valid;  ///< bool [batch or 1, len]: rows that count, or undefined
};

/// Sums of rows minus a centre: of the rows, or of the rows divided by their lengths.
struct BlockSums {
  at::Tensor rows;        ///< fp32 [batch, heads, blocks, dim]
  at::Tensor directions;  ///< the same
};
enum class SumsOf { rows, directions, both };

/// x       [batch, heads, len, dim], any strides
/// centre  [batch, heads, 1, dim], or undefined: 0
BlockSums block_sums(const at::Tensor& x, const BlockPositions& positions,
                     const at::Tensor& centre = {}, SumsOf wanted = SumsOf::rows);

/// a · b in fp32 at least, of [batch, heads, ..] each; half types are multiplied as they are on
/// GPUs, where that is many times as fast, and their sums are fp32 too.
at::Tensor wide_product(const at::Tensor& a, const at::Tensor& b);

/// Tokens of one side in groups of `phases` each, and groups in blocks.
struct TokenGroups {
  at::Tensor rows;     ///< int64 [phases, groups]
  at::Tensor offsets;  ///< int64 [blocks + 1] first groups, ascending
  /// [groups]: of queries what a group's shares count, of keys a factor of its exponential;
  /// undefined: 1
  at::Tensor weight;
};

enum class Shares { sum, largest };

/// Softmax between groups: the logit of two groups is scale · Σ over phases of q · k. Per pair of
/// blocks the sum of all shares of its groups, or the largest of them.
///
/// On a GPU nothing waits for the host, and rows that are not there count as zeros.
///
/// q, k     [heads, q_len, dim] and [kv_heads, kv_len, dim] of one type that `has_block_shares`
/// returns  fp32 [heads, q blocks, kv blocks]
/// throws   Error device where the driver refuses, or there are 2^29 groups or 2^23 blocks
at::Tensor block_shares(const at::Tensor& q, const TokenGroups& q_groups, const at::Tensor& k,
                        const TokenGroups& kv_groups, double scale, Shares of_blocks);

}  // namespace fovea::ops
