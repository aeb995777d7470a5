#pragma once

#include <cstdint>
#include <vector>

#include <ATen/core/Tensor.h>

// What planners look at, in one pass over the tokens on the CPU. Without gradients.

namespace fovea::ops {

/// Whether the functions below take x: fp32, fp16 or bf16 on the CPU, and no gradient is wanted.
bool has_block_scores(const at::Tensor& x);

/// One side of an attention cut into blocks of consecutive positions, for all heads alike.
struct BlockPositions {
  const std::vector<int64_t>& offsets;  ///< [blocks + 1]
  at::Tensor rows;                      ///< int64 [seq_len], undefined: positions are rows
};

/// Sums of rows minus a centre: of the rows, or of the rows divided by their lengths.
struct BlockSums {
  at::Tensor rows;        ///< fp32 [batch, heads, blocks, dim]
  at::Tensor directions;  ///< the same
};
enum class SumsOf { rows, directions, both };

/// x       [batch, heads, seq_len, dim], any strides
/// centre  [batch, heads, 1, dim], or undefined: 0
BlockSums block_sums(const at::Tensor& x, const BlockPositions& positions, const at::Tensor& centre,
                     SumsOf wanted);

/// Sums of the rows of pieces, which may be those of one item and head.
///
/// x        [batch, heads, len, dim] fp32, fp16 or bf16, any strides
/// rows     int32 [batch or 1, heads or 1, len] the row of each position, or undefined
/// offsets  int32 [batch or 1, heads or 1, pieces + 1] positions; a piece may end before
///          it begins, and is empty then
/// valid    bool [batch or 1, len]: the rows that count, or undefined
/// returns  fp32 [batch, heads, pieces, dim]
at::Tensor piece_sums(const at::Tensor& x, const at::Tensor& rows, const at::Tensor& offsets,
                      const at::Tensor& valid);

/// Tokens of one side in groups of `phases` each, and groups in blocks.
struct TokenGroups {
  at::Tensor rows;               ///< int64 [phases, groups]
  std::vector<int64_t> offsets;  ///< [blocks + 1] first groups
  /// [groups]: of queries what a group's shares count, of keys a factor of its exponential;
  /// undefined: 1
  at::Tensor weight;
};

enum class Shares { sum, largest };
constexpr int64_t kMaxScoreChannels = 256;

/// Softmax between groups: the logit of two groups is scale · Σ over phases of q · k. Per pair of
/// blocks the sum of all shares of its groups, or the largest of them.
///
/// q, k     [heads, q_len, dim] and [kv_heads, kv_len, dim] of one type, dim up to
/// `kMaxScoreChannels` returns  fp32 [heads, q blocks, kv blocks]
at::Tensor block_shares(const at::Tensor& q, const TokenGroups& q_groups, const at::Tensor& k,
                        const TokenGroups& kv_groups, double scale, Shares of_blocks);

}  // namespace fovea::ops
