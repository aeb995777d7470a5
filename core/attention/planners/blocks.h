#pragma once

#include <array>
#include <cstdint>
#include <optional>

#include <ATen/core/Tensor.h>

#include "core/attention/block_pool.h"
#include "core/attention/call.h"
#include "core/attention/plan.h"
#include "core/config.h"

// What planners that choose blocks by scores share.

namespace fovea {

/// How both sides of an attention are cut into blocks.
struct BlockSizes {
  int64_t q = 128;   ///< positions of a block of queries
  int64_t kv = 128;  ///< positions of a block of keys
  /// Blocks are these tiles of the grid instead, in tile order.
  std::optional<std::array<int64_t, 3>> tile;

  /// Options block_q, block_kv and tile, see `TopKPlanner`; the defaults are this struct's.
  static BlockSizes read(Config& options, int64_t q, int64_t kv);
  /// Sets the orders of a plan whose first branch is a softmax, and the blocks of its selection.
  Selection& cut(AttentionPlan& plan, const AttentionCall& call) const;
};

/// What `AttentionCall::sm_scale` stands for.
double sm_scale_of(const AttentionCall& call);

/// Products of the means of blocks, scaled, keys centred (SageAttention, Zhang et al., 2025,
/// section 3.2: the softmax is the same, the means of blocks tell more): [batch, heads, q blocks,
/// kv blocks]. Blocks of nothing but padding get -inf.
at::Tensor mean_scores(const AttentionCall& call, const AttentionPlan& plan,
                       const Selection& selection);
/// The same of means that are there already; of keys those of kv heads, not centred.
at::Tensor mean_scores(const AttentionCall& call, const PooledTokens& q, const PooledTokens& k);

/// keep_top_k(mean_scores(...), kept_blocks(density, kv blocks)), on a GPU in two launches.
at::Tensor keep_highest_means(const AttentionCall& call, const AttentionPlan& plan,
                              const Selection& selection, double density);

/// [batch, kv_heads, 1, dim]: the mean of all tokens that are in the means of blocks.
at::Tensor mean_of_all(const PooledTokens& blocks);

/// softmax over the last axis, of 0 for a row of nothing but -inf.
at::Tensor shares_of(const at::Tensor& scores);

}  // namespace fovea
