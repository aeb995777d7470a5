#pragma once

#include <ATen/core/Tensor.h>

#include "core/attention/block_mask.h"
#include "core/token_layout.h"

namespace fovea {

/// How many of `blocks` a share keeps: max(1, floor(density · blocks + 1/2)).
int64_t kept_blocks(double density, int64_t blocks);

/// bool as scores [.., blocks]: the `count` highest of each row, of equal ones the lower index;
/// entries of -inf are never kept.
at::Tensor keep_top_k(const at::Tensor& scores, int64_t count);

/// What becomes of the block with which the sum of kept probabilities passes p.
enum class Crossing { kept, excluded };

/// bool as probabilities [.., blocks], rows with sum 1: the highest ones until their sum reaches p,
/// at least `min_count` of each row; of equal ones the lower index.
at::Tensor keep_top_p(const at::Tensor& probabilities, double p, Crossing crossing,
                      int64_t min_count);

/// Makes exact all pairs of blocks of which one is not of a grid, in place: text sees and is seen
/// by all. The blocks are those of a layout whose segments keep their places.
///
/// classes  uint8 [.., q blocks, kv blocks]
void keep_other_segments(at::Tensor& classes, const BlockAxis& q_blocks,
                         const TokenLayout& q_layout, const BlockAxis& kv_blocks,
                         const TokenLayout& kv_layout);

}  // namespace fovea
