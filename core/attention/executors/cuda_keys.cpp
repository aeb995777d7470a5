#include "core/attention/executors/cuda_keys.h"

#include <algorithm>
#include <limits>

#include <ATen/ATen.h>

#include "core/attention/block_pool.h"
#include "core/attention/device_constants.h"
#include "core/ops/device_kernel.h"
#include "kernels/attention/pooled_keys.h"

namespace fovea {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

kernels::RowOrder order_of(const at::Tensor& rows) {
  if (!rows.defined()) return {};
  const auto stride = [&](int64_t axis) { return rows.size(axis) == 1 ? 0 : rows.stride(axis); };
  return {rows.const_data_ptr<int32_t>(), stride(0), stride(1)};
}

// The segment that each block begins in, and where that one begins: int64 [2, blocks].
at::Tensor segments_of(const BlockAxis& blocks, const TokenLayout& layout) {
  const std::vector<int64_t>& offsets = blocks.host_offsets();
  std::vector<int64_t> numbers, begins;
  int64_t begin = 0, number = 0;
  const auto& segments = layout.segments();
  for (size_t i = 0; i + 1 < offsets.size(); ++i) {
    while (number + 1 < static_cast<int64_t>(segments.size()) &&
           offsets[i] >= begin + segments[static_cast<size_t>(number)].capacity) {
      begin += segments[static_cast<size_t>(number++)].capacity;
    }
    numbers.push_back(number);
    begins.push_back(begin);
  }
  return at::stack({at::tensor(numbers, at::kLong), at::tensor(begins, at::kLong)});
}

}  // namespace

bool has_padding(const TokenLayout& layout) {
  const auto& lengths = layout.valid_len();
  return std::any_of(lengths.begin(), lengths.end(),
                     [](const at::Tensor& length) { return length.defined(); });
}

bool keeps_padding_last(const TokenOrder& order, const BlockAxis& blocks,
                        const TokenLayout& layout) {
  if (order.kind() == TokenOrder::Kind::index) return false;
  const std::vector<int64_t>& offsets = blocks.host_offsets();
  int64_t end = 0;
  for (size_t i = 0; i < layout.segments().size(); ++i) {
    const bool is_grid = layout.segments()[i].kind == Segment::Kind::grid;
    const bool is_sorted = is_grid && !order.is_identity();
    if (is_sorted && layout.valid_len()[i].defined()) return false;
    end += layout.segments()[i].capacity;
    if (!std::binary_search(offsets.begin(), offsets.end(), end)) return false;
  }
  return true;
}

at::Tensor valid_of_blocks(const BlockAxis& blocks, const TokenLayout& layout, at::Device device) {
  const at::Tensor offsets = blocks.offsets(device)[0][0];
  const at::Tensor size = offsets.diff();
  if (layout.segments().empty()) return size.to(at::kInt).view({1, 1, -1});
  at::Tensor any;
  for (const at::Tensor& length : layout.valid_len()) {
    if (length.defined()) any = length;
  }
  std::vector<at::Tensor> lengths;
  for (size_t i = 0; i < layout.segments().size(); ++i) {
    const at::Tensor& own = layout.valid_len()[i];
    lengths.push_back(own.defined() ? own : at::full_like(any, layout.segments()[i].capacity));
  }
  const std::string key = "segments of " + layout.describe() + " " + key_of(blocks.host_offsets());
  const at::Tensor segment =
      device_constant(key, device, [&] { return segments_of(blocks, layout); });
  const at::Tensor length = at::stack(lengths, 1).index_select(1, segment[0]);  // [batch, blocks]
  const at::Tensor left = length + segment[1] - offsets.slice(0, 0, -1);
  return at::minimum(left.clamp_min(0), size).to(at::kInt).unsqueeze(1);
}

at::Tensor rows_without_padding(const at::Tensor& rows, const TokenLayout& layout) {
  const at::Tensor valid = layout.valid_mask().squeeze(2);  // [batch, 1, len]
  const int64_t len = valid.size(2);
  if (!rows.defined()) {
    const at::Tensor all = at::arange(len, valid.options().dtype(at::kInt));
    return all.view({1, 1, len}).expand_as(valid).masked_fill(valid.logical_not(), -1);
  }
  const at::Tensor own = rows.expand({valid.size(0), rows.size(1), rows.size(2)});
  const at::Tensor seen = valid.expand({valid.size(0), rows.size(1), len})
                              .gather(2, own.clamp(0, std::max<int64_t>(len - 1, 0)).to(at::kLong));
  return own.masked_fill(seen.logical_not(), -1);
}

DevicePools pool_on_device(const PooledOf& of, const at::Tensor& fault) {
  const at::Tensor& x = of.tensors[0];
  const int64_t batch = x.size(0);
  const auto numbers = x.options().dtype(at::kFloat);
  DevicePools out;
  out.count = at::zeros({batch, of.heads, of.places}, numbers);
  kernels::PooledKeysArgs args;
  std::vector<at::Tensor> sources;
  for (const at::Tensor& tensor : of.tensors) {
    const bool is_plain = tensor.stride(3) == 1 || tensor.size(3) == 1;
    sources.push_back(is_plain ? tensor : tensor.contiguous());
    out.mean.push_back(at::zeros({batch, of.heads, of.places, tensor.size(3)}, numbers));
    const at::Tensor& from = sources.back();
    args.in[args.count] = {from.const_data_ptr(), ops::kernel_dtype(from.scalar_type()),
                           from.stride(0), from.stride(1), from.stride(2)};
    args.mean[args.count++] = out.mean.back().mutable_data_ptr<float>();
  }
  const at::Tensor offsets = per_head(int_offsets(of.blocks, x.device()), of.heads).contiguous();
  const at::Tensor rows = of.rows.defined() ? per_head(of.rows, of.heads).contiguous() : of.rows;
  args.batch = batch, args.heads = of.heads, args.in_heads = x.size(1);
  args.dim = x.size(3), args.len = x.size(2), args.places = of.places;
  args.rows_in_mean = out.count.mutable_data_ptr<float>();
  args.order = order_of(rows), args.offsets = order_of(offsets);
  args.num_blocks = of.blocks.num_blocks();
  for (const kernels::SummaryKeys& keys : of.summaries) {
    args.summaries[args.num_summaries++] = keys;
  }
  args.fault = fault.mutable_data_ptr<int32_t>();
  if (of.places == 0 || x.size(3) == 0) return out;
  ops::run_on("pooled_keys", x.device(), args, &kernels::pooled_keys_cpu,
              FOVEA_CUDA_LAUNCHER(pooled_keys_cuda));
  return out;
}

Partial run_pooled_values_on_device(const AttentionPlan& plan, const PooledValuesBranch& branch,
                                    const AttentionCall& call, const at::Tensor& fault) {
  const at::Device device = call.q.device();
  const int64_t batch = call.q.size(0), heads = call.q.size(1);
  const at::Tensor& offsets = branch.kv_blocks.device_offsets();
  PooledOf of{.tensors = {call.v},
              .rows = at::Tensor(),
              .blocks = branch.kv_blocks,
              .summaries = {{.begin = 0, .per_block = 1, .pool = 0}},
              .places = branch.kv_blocks.num_blocks(),
              .heads = std::max(call.v.size(1), offsets.defined() ? offsets.size(1) : 1)};
  if (!plan.kv_order.is_identity()) {
    of.rows = plan.kv_order.rows(call.kv_layout, device).to(at::kInt).contiguous();
  }
  if (has_padding(call.kv_layout)) of.rows = rows_without_padding(of.rows, call.kv_layout);
  const at::Tensor values = per_head(pool_on_device(of, fault).mean[0], heads);
  const at::Tensor blocks = at::matmul(branch.weights.to(at::kFloat), values);
  const at::Tensor q_block = block_of_row(branch.q_blocks, plan.q_order, call.q_layout, device);
  const int64_t channels = blocks.size(3);
  const at::Tensor rows = q_block.unsqueeze(3).expand({batch, heads, q_block.size(2), channels});
  return {blocks.expand({batch, heads, blocks.size(2), channels}).gather(2, rows), {}};
}

at::Tensor bias_of_keys(const at::Tensor& bias, const at::Tensor& rows, const at::Tensor& hidden,
                        const AttentionCall& call) {
  const int64_t heads = call.q.size(1), len = call.k.size(2);
  at::Tensor out;
  if (bias.defined()) {
    out = bias.squeeze(2).to(at::kFloat).expand({-1, -1, len});
    if (rows.defined()) {
      const at::Tensor own = per_head(rows, heads);
      const auto lead = [&](int64_t axis) { return std::max(out.size(axis), own.size(axis)); };
      const at::Tensor at =
          own.expand({lead(0), lead(1), own.size(2)}).clamp(0, std::max<int64_t>(len - 1, 0));
      out = out.expand({lead(0), lead(1), len}).gather(2, at.to(at::kLong));
    }
  }
  if (!hidden.defined()) return out;
  const at::Tensor is_hidden = per_head(hidden, heads).lt(0);
  if (!out.defined()) out = at::zeros({1, 1, 1}, is_hidden.options().dtype(at::kFloat));
  return at::where(is_hidden, at::full({}, -kInfinity, out.options()), out);
}

}  // namespace fovea
