#include "core/attention/executors/key_pieces.h"

#include <algorithm>

#include <ATen/ATen.h>

#include "core/attention/block_pool.h"

namespace fovea {

KeyPieces pool_keys(const AttentionPlan& plan, const AttentionCall& call, const BlockAxis& axis,
                    int64_t pool) {
  const at::Device device = call.k.device();
  // Blocks may be those of heads that share their keys.
  const int64_t heads = std::max(call.k.size(1), axis.offsets(device).size(1));
  const at::Tensor piece = piece_of_row(axis, pool, plan.kv_order, call.kv_layout, device, heads);
  at::Tensor valid = call.kv_layout.valid_mask();
  if (valid.defined()) valid = valid.squeeze(1).squeeze(1);
  const int64_t pieces = axis.num_blocks() * pieces_per_block(axis, pool);
  const PooledTokens keys = pool_tokens(per_head(call.k, heads), piece, pieces, valid);
  return {keys.mean, pool_tokens(per_head(call.v, heads), piece, pieces, valid).mean, keys.count};
}

Partial run_pooled_values(const AttentionPlan& plan, const PooledValuesBranch& branch,
                          const AttentionCall& call) {
  const KeyPieces pooled = pool_keys(plan, call, branch.kv_blocks, 0);
  const int64_t heads = call.q.size(1);
  const at::Tensor values = per_head(pooled.v, heads);
  const at::Tensor blocks = at::matmul(branch.weights.to(values.scalar_type()), values);
  const at::Tensor q_block =
      block_of_row(branch.q_blocks, plan.q_order, call.q_layout, call.q.device());
  const int64_t batch = call.q.size(0), channels = blocks.size(3);
  const at::Tensor rows = q_block.unsqueeze(3).expand({batch, heads, q_block.size(2), channels});
  return {blocks.expand({batch, heads, blocks.size(2), channels}).gather(2, rows), {}};
}

}  // namespace fovea
