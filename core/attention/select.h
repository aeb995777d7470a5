#pragma once

#include <ATen/core/Tensor.h>

#include "core/attention/call.h"
#include "core/attention/plan.h"

namespace fovea {

/// How many of `blocks` a share keeps: max(1, floor(density · blocks + 1/2)).
int64_t kept_blocks(double density, int64_t blocks);

/// bool as scores [.., blocks]: the `count` highest of each row, of equal ones the lower index;
/// entries of -inf are never kept.
at::Tensor keep_top_k(const at::Tensor& scores, int64_t count);

/// What becomes of the block with which the sum of kept probabilities passes p.
enum class Crossing { kept, excluded };

/// bool as probabilities [.., blocks], rows with sum 1: the highest ones until their sum reaches p,
/// at least `min_count` of each row; of equal ones the lower index. All where p is 1 or above.
at::Tensor keep_top_p(const at::Tensor& probabilities, double p, Crossing crossing,
                      int64_t min_count);

/// Sets the classes of a selection whose blocks the host knows, made for the grid: pairs of blocks
/// of which one lies outside of it become exact, as text sees and is seen by all. The segments of
/// the layouts keep their places in the plan's orders.
///
/// classes  uint8 [batch or 1, heads or 1, q blocks, kv blocks], any device; changed in place
void set_classes(Selection& selection, at::Tensor classes, const AttentionCall& call);

}  // namespace fovea
