#pragma once

#include <array>
#include <cstdint>
#include <optional>

#include <ATen/core/Tensor.h>

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

/// k minus its mean over all valid tokens of a head: the softmax is the same, the means of blocks
/// tell more (SageAttention, Zhang et al., 2025, section 3.2). In fp32 at least.
at::Tensor centred_keys(const AttentionCall& call);

/// Products of the means of blocks, scaled, keys centred: [batch, heads, q blocks, kv blocks].
/// Blocks of nothing but padding get -inf.
at::Tensor mean_scores(const AttentionCall& call, const AttentionPlan& plan,
                       const Selection& selection);

/// softmax over the last axis, of 0 for a row of nothing but -inf.
at::Tensor shares_of(const at::Tensor& scores);

}  // namespace fovea
