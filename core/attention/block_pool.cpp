#include "core/attention/block_pool.h"

#include <algorithm>
#include <vector>

#include <ATen/ATen.h>

#include "core/attention/device_constants.h"
#include "core/ops/widened.h"

namespace fovea {
namespace {

// Consecutive blocks of one size, which are added up without scattering.
struct Run {
  int64_t first, blocks, size;  // position of its first token
};

constexpr size_t kMaxRuns = 64;  // beyond, scattering is as fast

// Empty where the host does not know the blocks, or one of them is empty.
std::vector<Run> runs_of(const BlockAxis& axis) {
  const std::vector<int64_t>& offsets = axis.host_offsets();
  std::vector<Run> out;
  for (size_t i = 0; i + 1 < offsets.size(); ++i) {
    const int64_t size = offsets[i + 1] - offsets[i];
    if (size == 0) return {};
    if (out.empty() || out.back().size != size) out.push_back({offsets[i], 0, size});
    ++out.back().blocks;
  }
  return out;
}

bool is_of_all_heads(const TokenOrder& order) {
  return order.kind() != TokenOrder::Kind::index && order.kind() != TokenOrder::Kind::axes;
}

// fp32 [blocks] of tokens in each, as much as 1 at least where it is to divide.
at::Tensor sizes_of(const BlockAxis& axis, at::Device device, bool divides) {
  const std::vector<int64_t>& offsets = axis.host_offsets();
  return device_constant((divides ? "divisors of " : "sizes of ") + key_of(offsets), device, [&] {
    const at::Tensor sizes = at::tensor(offsets, at::kLong).diff().to(at::kFloat);
    return divides ? sizes.clamp_min(1) : sizes;
  });
}

PooledTokens with_counts(const at::Tensor& mean, const BlockAxis& axis) {
  const at::Device device = mean.device();
  const std::vector<int64_t>& offsets = axis.host_offsets();
  PooledTokens out;
  out.mean = mean;
  out.count = sizes_of(axis, device, false).expand({mean.size(0), mean.size(1), mean.size(2)});
  bool is_full = true;
  for (size_t i = 1; i < offsets.size(); ++i) is_full = is_full && offsets[i] > offsets[i - 1];
  if (!is_full) return out;
  out.share = device_constant("shares of " + key_of(offsets), device, [&] {
    const at::Tensor sizes = at::tensor(offsets, at::kLong).diff().to(at::kFloat);
    return (sizes / sizes.sum()).unsqueeze(1);
  });
  return out;
}

}  // namespace

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

at::Tensor int_offsets(const BlockAxis& axis, at::Device device) {
  if (axis.device_offsets().defined()) return axis.device_offsets().to(device, at::kInt);
  const std::vector<int64_t>& offsets = axis.host_offsets();
  return device_constant("int " + key_of(offsets), device, [&] {
    return at::tensor(offsets, at::kInt).view({1, 1, -1});
  });
}

bool has_sums_of_blocks(const at::Tensor& x, const BlockAxis& axis, const TokenOrder& order,
                        const TokenLayout& layout) {
  return is_of_all_heads(order) && !axis.host_offsets().empty() && !layout.valid_mask().defined() &&
         ops::has_block_sums(x);
}

ops::BlockPositions positions_of_blocks(const BlockAxis& axis, const TokenOrder& order,
                                        const TokenLayout& layout, at::Device device) {
  ops::BlockPositions out{int_offsets(axis, device), {}, {}};
  if (!order.is_identity()) out.rows = order.rows(layout, device).to(at::kInt);
  return out;
}

ops::SharedBlocks shared_blocks(const at::Tensor& x, const BlockAxis& axis, const TokenOrder& order,
                                const TokenLayout& layout) {
  const ops::BlockPositions positions = positions_of_blocks(axis, order, layout, x.device());
  return {x, positions.offsets, positions.rows};
}

PooledTokens pooled_sums(const at::Tensor& sums, const BlockAxis& axis) {
  return with_counts(sums / sizes_of(axis, sums.device(), true).unsqueeze(1), axis);
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

at::Tensor at_blocks(const at::Tensor& map, const at::Tensor& q_block, const at::Tensor& kv_block) {
  const auto lead = [](const at::Tensor& x) { return x.sizes().slice(0, 2); };
  const auto common = at::infer_size(at::infer_size(lead(map), lead(q_block)), lead(kv_block));
  const int64_t nq = q_block.size(2), nk = kv_block.size(2), columns = map.size(3);
  const at::Tensor whole = map.expand({common[0], common[1], map.size(2), columns});
  const at::Tensor rows = q_block.unsqueeze(3).expand({common[0], common[1], nq, columns});
  const at::Tensor keys = kv_block.unsqueeze(2).expand({common[0], common[1], nq, nk});
  return whole.gather(2, rows).gather(3, keys);
}

int64_t pieces_per_block(const BlockAxis& axis, int64_t pool) {
  return pool == 0 ? 1 : std::max<int64_t>(1, (axis.max_size() + pool - 1) / pool);
}

at::Tensor piece_offsets(const BlockAxis& axis, int64_t pool, at::Device device) {
  const at::Tensor blocks = axis.offsets(device);
  if (pool == 0) return blocks.to(at::kInt).contiguous();
  const at::Tensor inside = at::arange(pieces_per_block(axis, pool), blocks.options()) * pool;
  const at::Tensor begins = blocks.slice(2, 0, -1).unsqueeze(3) + inside;
  const at::Tensor all = at::minimum(begins, blocks.slice(2, 1).unsqueeze(3));
  return at::cat({all.flatten(2), blocks.slice(2, -1)}, 2).to(at::kInt).contiguous();
}

at::Tensor piece_of_row(const BlockAxis& axis, int64_t pool, const TokenOrder& order,
                        const TokenLayout& layout, at::Device device, int64_t heads) {
  const at::Tensor rows = per_head(order.rows(layout, device), heads);
  const at::Tensor own = per_head(axis.block_of_position(rows.size(2), device), heads);
  const auto common = at::infer_size(rows.sizes(), own.sizes());
  const at::Tensor position = positions_of_rows(rows).expand(common);
  const at::Tensor block = own.expand(common).gather(2, position);
  if (pool == 0) return block;
  const at::Tensor first = per_head(axis.offsets(device), heads);
  const at::Tensor begin = first.expand({common[0], common[1], first.size(2)}).gather(2, block);
  return block * pieces_per_block(axis, pool) + (position - begin).floor_divide(pool);
}

PooledTokens pool_blocks(const at::Tensor& x, const BlockAxis& axis, const TokenOrder& order,
                         const TokenLayout& layout) {
  at::Tensor valid = layout.valid_mask();
  if (valid.defined()) valid = valid.squeeze(1).squeeze(1);
  if (has_sums_of_blocks(x, axis, order, layout)) {
    if (x.is_cuda()) {
      return with_counts(ops::block_means({shared_blocks(x, axis, order, layout)})[0], axis);
    }
    const ops::BlockPositions positions = positions_of_blocks(axis, order, layout, x.device());
    return pooled_sums(ops::block_sums(x, positions).rows, axis);
  }
  const std::vector<Run> runs = runs_of(axis);
  if (runs.empty() || runs.size() > kMaxRuns || !is_of_all_heads(order)) {
    return pool_tokens(x, block_of_row(axis, order, layout, x.device()), axis.num_blocks(), valid);
  }
  at::Tensor sorted = x;
  if (!order.is_identity()) {
    const at::Tensor rows = order.rows(layout, x.device())[0][0];
    sorted = x.index_select(2, rows);
    if (valid.defined()) valid = valid.index_select(1, rows);
  }
  std::vector<at::Tensor> sums, counts;
  for (const Run& run : runs) {
    const int64_t end = run.first + run.blocks * run.size;
    at::Tensor part = ops::widened(sorted.slice(2, run.first, end));
    at::Tensor count = at::full({1, 1, run.blocks}, run.size, part.options());
    if (valid.defined()) {
      const at::Tensor seen = valid.slice(1, run.first, end);
      // Padding may hold anything, also NaN.
      part = part.masked_fill(seen.logical_not().unsqueeze(1).unsqueeze(3), 0);
      count = seen.unflatten(1, {run.blocks, run.size}).sum(2).unsqueeze(1).to(part.scalar_type());
    }
    sums.push_back(part.unflatten(2, {run.blocks, run.size}).sum(3));
    counts.push_back(count.expand({x.size(0), x.size(1), run.blocks}));
  }
  PooledTokens out;
  out.count = at::cat(counts, 2);
  out.mean = at::cat(sums, 2) / out.count.clamp_min(1).unsqueeze(3);
  return out;
}

}  // namespace fovea
