#pragma once

#include "kernels/attention/block_scores.h"
#include "kernels/attention/work_layout.h"

namespace fovea::kernels {

constexpr int64_t kShareKeys = 256;  ///< groups of keys at a time: logits of a tile stay in the L2

/// Where things are in the workspace of block_shares_cpu. One head of keys is packed at a time.
struct SharesLayout {
  int64_t kv_units = 0;
  int64_t chunks = 0;       ///< of kShareKeys groups of keys
  int64_t part_stride = 0;  ///< floats between a row's parts: a part is a block within a chunk
  int64_t task_blocks = 0;  ///< blocks of queries of a task
  int64_t q_floats = 0, parts_floats = 0, reference_floats = 0, worker_bytes = 0;
  int64_t packed_at = 0, parts_at = 0, workers_at = 0, bytes = 0;
};

/// A block of groups of keys, as far as it lies in one chunk.
struct SharePart {
  int32_t block, first, last;  ///< groups
};

/// What can be said without a look at numbers behind pointers.
inline Status check_sizes(const BlockSharesArgs& args) {
  const bool sized = args.heads >= 1 && args.kv_heads >= 1 && args.heads % args.kv_heads == 0 &&
                     args.dim >= 1 && args.phases >= 1 && args.q_groups >= 0 &&
                     args.kv_groups >= 0 && args.q_blocks >= 0 && args.kv_blocks >= 0;
  if (!sized) return {StatusCode::invalid, "sizes contradict each other"};
  if (args.dim > kMaxDim) return {StatusCode::unsupported, "more than 256 channels"};
  if (args.q.dtype != args.k.dtype) return {StatusCode::invalid, "q and k differ in type"};
  return {};
}

SharesLayout shares_layout(const BlockSharesArgs& args, int threads);

}  // namespace fovea::kernels
