#pragma once

#include <vector>

#include <ATen/core/Tensor.h>

#include "core/attention/block_mask.h"
#include "core/attention/executors/key_pieces.h"

// Means of pieces of blocks on the CPU, whose bits do not depend on the number of threads.

namespace fovea {

/// Consecutive positions of an order: which rows of a tensor each piece has.
struct PieceRows {
  at::Tensor rows;  ///< int32 [batch or 1, heads or 1, len] the row of each position, or undefined
  at::Tensor offsets;  ///< int32 [batch or 1, heads or 1, pieces + 1] the first position of each
  at::Tensor valid;    ///< bool [batch, len]: rows that are not padding, or undefined: all
  /// int64 [batch or 1, heads or 1, len] the piece of each row: one for each level of pieces
  std::vector<at::Tensor> piece;
};

/// One side's pieces of `pool` positions, or its blocks where that is 0: see `piece_of_row`.
PieceRows piece_rows(const BlockAxis& axis, int64_t pool, const TokenOrder& order,
                     const TokenLayout& layout, int64_t heads);

/// The sum of the valid rows of each piece; they may be of any type, padding may be anything.
/// Differentiable.
///
/// x        [batch, heads, len, channels] fp32, fp16 or bf16
/// returns  fp32 [batch, heads, pieces, channels]
at::Tensor sum_of_pieces(const at::Tensor& x, const PieceRows& pieces);

/// Of each row what its pieces have, those of all levels added; padding gets 0. Differentiable.
///
/// x        fp32 [batch, heads, pieces, channels]
/// returns  fp32 [batch, heads, len, channels]
at::Tensor rows_of_pieces(const at::Tensor& x, const PieceRows& pieces);

/// `pool_keys` on the CPU for all summaries of a selection, each where `summary_places` says, less
/// the first place. In between and where a block is shorter are means of nothing, which are 0.
KeyPieces pool_levels(const AttentionPlan& plan, const AttentionCall& call,
                      const Selection& selection);

/// `run_pooled_values` on the CPU.
Partial run_pooled_values_on_cpu(const AttentionPlan& plan, const PooledValuesBranch& branch,
                                 const AttentionCall& call);

}  // namespace fovea
