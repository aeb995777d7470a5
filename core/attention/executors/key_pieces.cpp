#include "core/attention/executors/key_pieces.h"

#include <algorithm>

#include <ATen/ATen.h>

#include "core/attention/block_pool.h"

namespace fovea {

KeyPieces pool_keys(const AttentionPlan& plan, const AttentionCall& call, const BlockAxis& axis,
                    int64_t pool) {
  const at::Device device = call.k.device();
  const at::Tensor start = axis.offsets(device);
  // Blocks may be those of heads that share their keys.
  const int64_t heads = std::max(call.k.size(1), start.size(1));
  const at::Tensor rows = per_head(plan.kv_order.rows(call.kv_layout, device), heads);
  const at::Tensor own = per_head(axis.block_of_position(rows.size(2), device), heads);
  const at::Tensor first = per_head(start, heads);
  const auto common = at::infer_size(rows.sizes(), own.sizes());
  const at::Tensor position = positions_of_rows(rows).expand(common);
  const at::Tensor block = own.expand(common).gather(2, position);
  at::Tensor piece = block;
  const int64_t per_block = pieces_per_block(axis, pool);
  if (pool > 0) {
    const at::Tensor begin = first.expand({common[0], common[1], first.size(2)}).gather(2, block);
    piece = block * per_block + (position - begin).floor_divide(pool);
  }
  at::Tensor valid = call.kv_layout.valid_mask();
  if (valid.defined()) valid = valid.squeeze(1).squeeze(1);
  const int64_t pieces = axis.num_blocks() * per_block;
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
  const auto rows =
      q_block.unsqueeze(3).expand({call.q.size(0), heads, q_block.size(2), blocks.size(3)});
  return {blocks.gather(2, rows), {}};
}

}  // namespace fovea
