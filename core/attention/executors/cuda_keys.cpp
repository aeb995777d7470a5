#include "core/attention/executors/cuda_keys.h"

#include <algorithm>
#include <limits>

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/custom_function.h>

#include "core/attention/block_pool.h"
#include "core/attention/device_constants.h"
#include "core/attention/executors/cuda_views.h"
#include "core/ops/device_kernel.h"
#include "core/ops/gather_rows.h"
#include "kernels/attention/pooled_keys.h"

namespace fovea {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

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

DevicePools pool(const PooledOf& of, const at::Tensor& fault) {
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
    args.in[args.count] = view_of(sources.back());
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

// What of gradients of means comes to each row: all means that it is in share it.
//
// shares  fp32 [batch, heads, places, dim]
// of      without tensors
// like    the tensor that the means are of
at::Tensor shares_of_rows(const at::Tensor& shares, const PooledOf& of, const at::Tensor& fault,
                          const at::TensorOptions& like, int64_t len) {
  const TokenLayout positions = TokenLayout::extra(len);
  at::Tensor sum;
  for (const kernels::SummaryKeys& level : of.summaries) {
    const at::Tensor piece =
        piece_of_row(of.blocks, level.pool, TokenOrder(), positions, shares.device(), of.heads);
    // Nobody has looked at what only a device knows.
    const at::Tensor place = (piece + level.begin).clamp(0, of.places - 1).unsqueeze(3);
    const at::Tensor own =
        shares.gather(2, place.expand({shares.size(0), of.heads, len, shares.size(3)}));
    sum = sum.defined() ? sum + own : own;
  }
  const at::Tensor by_position = sum.to(like.dtype());
  if (!of.rows.defined()) return by_position;
  const at::Tensor rows = per_head(of.rows, of.heads).contiguous();
  return ops::gather_rows({{by_position, ops::places_of_rows(rows, len), of.heads}}, fault)[0];
}

struct PoolTask {
  const PooledOf& of;
  const at::Tensor& fault;
  at::Tensor& count;  // of the result
};

struct SavedPools : torch::CustomClassHolder {
  PooledOf of;  // without tensors
  at::Tensor fault, count;
  int64_t heads = 0, len = 0;  // of the tensors
  at::TensorOptions options;
};

class PoolRows : public torch::autograd::Function<PoolRows> {
 public:
  static variable_list forward(AutogradContext* context, at::TensorList /*tensors*/,
                               const PoolTask& task) {
    const DevicePools pools = pool(task.of, task.fault);
    const at::Tensor& x = task.of.tensors[0];
    auto saved = c10::make_intrusive<SavedPools>();
    saved->of = task.of, saved->of.tensors.clear();
    saved->fault = task.fault, saved->count = pools.count;
    saved->heads = x.size(1), saved->len = x.size(2), saved->options = x.options();
    context->saved_data["pools"] = at::IValue::make_capsule(std::move(saved));
    context->set_materialize_grads(false);
    task.count = pools.count;
    return pools.mean;
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const auto saved =
        c10::static_intrusive_pointer_cast<SavedPools>(context->saved_data["pools"].toCapsule());
    const at::Tensor divisor = saved->count.clamp_min(1).unsqueeze(3);
    variable_list out(gradients.size() + 1);  // the last is the task's
    for (size_t i = 0; i < gradients.size(); ++i) {
      if (!gradients[i].defined() || !context->needs_input_grad(i)) continue;
      const at::Tensor rows = shares_of_rows(gradients[i] / divisor, saved->of, saved->fault,
                                             saved->options, saved->len);
      out[i] = ops::sum_of_heads(rows, saved->heads);
    }
    return out;
  }
};

// Where the rows of queries get what their blocks have.
struct BlocksTask {
  const at::Tensor& q_block;  // int64 [batch or 1, heads or 1, q_len]
  const PooledOf& of;         // the blocks, without tensors
  const at::Tensor& fault;
};

struct SavedBlocks : torch::CustomClassHolder {
  PooledOf of;
  at::Tensor fault;
};

class RowsOfBlocks : public torch::autograd::Function<RowsOfBlocks> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& blocks,
                            const BlocksTask& task) {
    auto saved = c10::make_intrusive<SavedBlocks>();
    saved->of = task.of, saved->fault = task.fault;
    context->saved_data["blocks"] = at::IValue::make_capsule(std::move(saved));
    const at::Tensor rows = task.q_block.unsqueeze(3);
    return blocks.gather(
        2, rows.expand({blocks.size(0), blocks.size(1), rows.size(2), blocks.size(3)}));
  }
  // Added up in one order, which a gather's own gradient is not.
  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const auto saved =
        c10::static_intrusive_pointer_cast<SavedBlocks>(context->saved_data["blocks"].toCapsule());
    PooledOf of = saved->of;
    of.tensors = {gradients[0]};
    const DevicePools pools = pool(of, saved->fault);
    return {pools.mean[0] * pools.count.unsqueeze(3), at::Tensor()};
  }
};

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
  if (!c10::GradMode::is_enabled()) return pool(of, fault);
  DevicePools out;
  out.mean = PoolRows::apply(at::TensorList(of.tensors), PoolTask{of, fault, out.count});
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
  PooledOf of_rows{.tensors = {},
                   .rows = at::Tensor(),
                   .blocks = branch.q_blocks,
                   .summaries = {{.begin = 0, .per_block = 1, .pool = 0}},
                   .places = branch.q_blocks.num_blocks(),
                   .heads = heads};
  if (!plan.q_order.is_identity()) {
    of_rows.rows = plan.q_order.rows(call.q_layout, device).to(at::kInt).contiguous();
  }
  const at::Tensor whole = blocks.expand({batch, heads, blocks.size(2), blocks.size(3)});
  return {RowsOfBlocks::apply(whole, BlocksTask{q_block, of_rows, fault}), {}};
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
