#pragma once

#include <cstdint>

#include "core/attention/call.h"
#include "core/attention/plan.h"

namespace fovea {

/// The same plan in other blocks: no pair of a query and a key that is computed, or stood for by a
/// summary, changes. For an executor whose tiles are not those that the plan was made at, and for
/// masks that come from elsewhere.
///
/// Where each new block lies within an old one, blocks are split. Where a new block covers parts of
/// kept and of skipped ones it is kept, and stored bits (`StoredPredicate`, one for each pair of
/// tokens) say which pairs are seen. On the CPU they are left out where no block needs them; on a
/// device, which is not read, they are always there.
///
/// Branches without a class map stay as they are, and so do the blocks of given keys and of pooled
/// values.
///
/// q_blocks, kv_blocks  known to the host, of the call's own tokens, in the plan's orders
/// throws  Error usage: a summary would be cut within a mean, or it or its queries merged with
/// other
///         blocks; scales are per block, and the blocks are others; queries of given keys straddle
///         blocks that differ
AttentionPlan retile(const AttentionPlan& plan, const AttentionCall& call,
                     const BlockAxis& q_blocks, const BlockAxis& kv_blocks);

/// In blocks of these sizes, uniform in each segment.
AttentionPlan retile(const AttentionPlan& plan, const AttentionCall& call, int64_t block_q,
                     int64_t block_kv);

}  // namespace fovea
