#pragma once

#include <ATen/core/Tensor.h>

#include "core/attention/executors/partial.h"

namespace fovea {

/// One pooled key and value for each piece of every block of keys.
struct KeyPieces {
  at::Tensor k;      ///< [batch, kv_heads, pieces, head_dim], fp32 at least
  at::Tensor v;      ///< [batch, kv_heads, pieces, value_dim]
  at::Tensor count;  ///< [batch, kv_heads, pieces]: keys in each mean; 0 where the block is shorter
};

/// Means of the call's valid keys and values over `pool` consecutive positions of the plan's order
/// within each block, or over the whole block where `pool` is 0. Differentiable.
KeyPieces pool_keys(const AttentionPlan& plan, const AttentionCall& call, const BlockAxis& axis,
                    int64_t pool);

Partial run_pooled_values(const AttentionPlan& plan, const PooledValuesBranch& branch,
                          const AttentionCall& call);

}  // namespace fovea
