#include "core/attention/block_pool.h"

#include <algorithm>

#include <ATen/ATen.h>

#include "core/ops/widened.h"

namespace fovea {

PooledTokens pool_tokens(const at::Tensor& x, const at::Tensor& group, int64_t num_groups,
                         const at::Tensor& valid) {
  const at::Tensor wide = ops::widened(x);
  const int64_t batch = x.size(0), heads = x.size(1), tokens = x.size(2), dim = x.size(3);
  const at::Tensor where = group.expand({batch, heads, tokens});
  at::Tensor share = at::ones({1, 1, tokens}, wide.options());
  if (valid.defined()) share = valid.unsqueeze(1).to(wide.scalar_type());
  PooledTokens out;
  out.count = at::zeros({batch, heads, num_groups}, wide.options())
                  .scatter_add(2, where, share.expand({batch, heads, tokens}));
  // Padding may hold anything, also NaN.
  const at::Tensor counted =
      valid.defined() ? wide.masked_fill(valid.logical_not().unsqueeze(1).unsqueeze(3), 0) : wide;
  const at::Tensor sum =
      at::zeros({batch, heads, num_groups, dim}, wide.options())
          .scatter_add(2, where.unsqueeze(3).expand({batch, heads, tokens, dim}), counted);
  out.mean = sum / out.count.clamp_min(1).unsqueeze(3);
  return out;
}

at::Tensor per_head(const at::Tensor& x, int64_t heads) {
  const int64_t own = x.size(1);
  return own == 1 || own == heads ? x : x.repeat_interleave(heads / own, 1);
}

at::Tensor positions_of_rows(const at::Tensor& rows) {
  const at::Tensor position = at::arange(rows.size(2), rows.options()).expand_as(rows);
  return at::empty_like(rows).scatter_(2, rows, position);
}

at::Tensor block_of_row(const BlockAxis& axis, const TokenOrder& order, const TokenLayout& layout,
                        at::Device device) {
  const at::Tensor block = axis.block_of_position(layout.seq_len(), device);
  if (order.is_identity()) return block;
  const at::Tensor position = positions_of_rows(order.rows(layout, device));
  const auto common = at::infer_size(block.sizes(), position.sizes());
  return block.expand(common).gather(2, position.expand(common));
}

int64_t pieces_per_block(const BlockAxis& axis, int64_t pool) {
  return pool == 0 ? 1 : std::max<int64_t>(1, (axis.max_size() + pool - 1) / pool);
}

PooledTokens pool_blocks(const at::Tensor& x, const BlockAxis& axis, const TokenOrder& order,
                         const TokenLayout& layout) {
  const at::Tensor valid = layout.valid_mask();
  return pool_tokens(x, block_of_row(axis, order, layout, x.device()), axis.num_blocks(),
                     valid.defined() ? valid.squeeze(1).squeeze(1) : valid);
}

}  // namespace fovea
