#pragma once

#include <ATen/core/Tensor.h>

#include "core/attention/block_mask.h"
#include "core/attention/token_order.h"
#include "core/ops/block_means.h"
#include "core/ops/block_scores.h"
#include "core/token_layout.h"

namespace fovea {

/// Means of groups of tokens; padding is in none of them.
struct PooledTokens {
  at::Tensor mean;   ///< [batch, heads, groups, dim], fp32 at least; 0 for an empty group
  at::Tensor count;  ///< [batch, heads, groups]: tokens in each, of mean's type
  /// [.., groups, 1]: the share of all tokens that is in each, where it is known without counting;
  /// then none is empty.
  at::Tensor share;
};

/// x       [batch, heads, seq_len, dim]
/// group   int64, broadcasts to [batch, heads, seq_len]: the group of each row, below num_groups
/// valid   bool [batch, seq_len], or undefined: all count
PooledTokens pool_tokens(const at::Tensor& x, const at::Tensor& group, int64_t num_groups,
                         const at::Tensor& valid);

/// A tensor per kv head [.., kv_heads, ...] as one per head; one for all heads stays.
at::Tensor per_head(const at::Tensor& x, int64_t heads);

/// The inverse of an order's rows: int64, the position of each row.
at::Tensor positions_of_rows(const at::Tensor& rows);

/// `BlockAxis::offsets` in int32.
at::Tensor int_offsets(const BlockAxis& axis, at::Device device);

/// Whether `block_sums` can add up x block by block: all heads and items have the same blocks, and
/// the host knows them.
bool has_sums_of_blocks(const at::Tensor& x, const BlockAxis& axis, const TokenOrder& order,
                        const TokenLayout& layout);
/// What it is given then.
ops::BlockPositions positions_of_blocks(const BlockAxis& axis, const TokenOrder& order,
                                        const TokenLayout& layout, at::Device device);
/// Means and counts of what it gives.
PooledTokens pooled_sums(const at::Tensor& sums, const BlockAxis& axis);
/// What `ops::block_means` is given then.
ops::SharedBlocks shared_blocks(const at::Tensor& x, const BlockAxis& axis, const TokenOrder& order,
                                const TokenLayout& layout);

/// int64 [batch or 1, heads or 1, seq_len]: the block of each row, by the positions of the order.
at::Tensor block_of_row(const BlockAxis& axis, const TokenOrder& order, const TokenLayout& layout,
                        at::Device device);

/// A map of blocks at the blocks of each row and column: [.., q_len, kv_len].
///
/// map                [batch or 1, heads or 1, q blocks, kv blocks]
/// q_block, kv_block  int64 [batch or 1, heads or 1, tokens]: the block of each token
at::Tensor at_blocks(const at::Tensor& map, const at::Tensor& q_block, const at::Tensor& kv_block);

/// Pieces that the largest block of an axis has, and so every block: of `pool` tokens each, or one
/// where that is 0.
int64_t pieces_per_block(const BlockAxis& axis, int64_t pool);

/// int32 [batch or 1, heads or 1, pieces + 1]: the first position of each piece, and the number of
/// positions; of a shorter block the last pieces are empty.
at::Tensor piece_offsets(const BlockAxis& axis, int64_t pool, at::Device device = at::kCPU);

/// int64 [batch or 1, heads or 1, seq_len]: the piece of each row: pieces are `pool` consecutive
/// positions of a block, or all of it where pool is 0, and `pieces_per_block` of them are counted
/// for each block, also where it is shorter.
///
/// heads  that both blocks and order are for, or are spread to where they have fewer
at::Tensor piece_of_row(const BlockAxis& axis, int64_t pool, const TokenOrder& order,
                        const TokenLayout& layout, at::Device device, int64_t heads);

/// x's tokens block by block.
PooledTokens pool_blocks(const at::Tensor& x, const BlockAxis& axis, const TokenOrder& order,
                         const TokenLayout& layout);

}  // namespace fovea
