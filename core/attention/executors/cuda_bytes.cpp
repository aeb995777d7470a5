#include "core/attention/executors/cuda_bytes.h"

#include <algorithm>
#include <vector>

#include <ATen/ATen.h>

#include "core/attention/block_pool.h"
#include "core/attention/executors/cuda_keys.h"
#include "core/ops/device_kernel.h"
#include "core/ops/gather_rows.h"
#include "kernels/attention/quantize_bytes.h"

namespace fovea {
namespace {

constexpr int64_t kUnit = 16;  // keys that are permuted among themselves
constexpr int64_t kChannels = 128;

int64_t stride_of(const at::Tensor& x, int64_t axis) {
  return x.size(axis) == 1 ? 0 : x.stride(axis);
}

int64_t whole_units(int64_t size) { return (size + kUnit - 1) / kUnit * kUnit; }

// Of `heads`, positions in an order or as they are.
struct Side {
  const at::Tensor& x;     // [batch, in_heads, in_rows, dim], rows aligned
  const at::Tensor& rows;  // int32 [batch or 1, heads or 1, len], contiguous, or undefined
  int64_t heads;
  const at::Tensor& fault;

  int64_t len() const { return rows.defined() ? rows.size(2) : x.size(2); }
  kernels::BytesFrom view() const {
    kernels::BytesFrom out;
    out.x = {x.const_data_ptr(), ops::kernel_dtype(x.scalar_type()), x.stride(0), x.stride(1),
             x.stride(2)};
    out.batch = x.size(0), out.in_heads = x.size(1), out.in_rows = x.size(2), out.dim = x.size(3);
    out.heads = heads, out.len = len();
    if (rows.defined()) {
      out.order = {rows.const_data_ptr<int32_t>(), stride_of(rows, 0), stride_of(rows, 1)};
    }
    out.fault = fault.mutable_data_ptr<int32_t>();
    return out;
  }
};

at::TensorOptions floats(const at::Tensor& x) { return x.options().dtype(at::kFloat); }

// fp32 [batch, heads, dim] of `side`, which kernels fill unless there is nothing to read.
at::Tensor empty_columns(const Side& side) {
  const at::Tensor& x = side.x;
  const std::vector<int64_t> sizes = {x.size(0), side.heads, x.size(3)};
  return side.len() == 0 ? at::zeros(sizes, floats(x)) : at::empty(sizes, floats(x));
}

void run_column_stats(const Side& side, kernels::ColumnStatsArgs args) {
  args.from = side.view();
  ops::run_on("column_stats", side.x.device(), args, &kernels::column_stats_cpu,
              FOVEA_CUDA_LAUNCHER(column_stats_cuda));
}

at::Tensor largest_of_columns(const Side& side) {
  at::Tensor out = empty_columns(side);
  kernels::ColumnStatsArgs args;
  args.largest = out.mutable_data_ptr<float>();
  run_column_stats(side, args);
  return out;
}

at::Tensor mean_of_columns(const Side& side) {
  const at::Tensor& x = side.x;
  at::Tensor out = empty_columns(side);
  const at::Tensor sums = at::empty(
      {x.size(0), side.heads, kernels::column_chunks(side.len()), x.size(3) + 1}, floats(x));
  kernels::ColumnStatsArgs args;
  args.mean = out.mutable_data_ptr<float>();
  args.sums = sums.mutable_data_ptr<float>();
  run_column_stats(side, args);
  return out;
}

struct RowsHow {
  const Quantized& how;
  const BlockAxis& blocks;
  at::Tensor mean;  // fp32 [batch, kv_heads, dim], or undefined
  at::Tensor dot;   // fp32 [batch, heads, len]: see `ByteRowsArgs`
  double dot_factor = 1;
};

struct ScaledBytes {
  at::Tensor data, scale;
};

ScaledBytes rows_of(const Side& side, const RowsHow& how, int64_t scale_len) {
  const at::Tensor& x = side.x;
  const int64_t batch = x.size(0), heads = side.heads;
  ScaledBytes out;
  out.data = at::empty({batch, heads, side.len(), x.size(3)}, x.options().dtype(at::kByte));
  out.scale = at::empty({batch, heads, scale_len}, floats(x));
  kernels::ByteRowsArgs args;
  args.from = side.view();
  args.format =
      how.how.format == NumberFormat::int8 ? kernels::ByteFormat::int8 : kernels::ByteFormat::e4m3;
  if (how.mean.defined()) {
    args.mean = how.mean.const_data_ptr<float>();
    args.mean_heads = how.mean.size(1);
  }
  if (how.dot.defined()) {
    args.dot = how.dot.mutable_data_ptr<float>();
    args.dot_factor = static_cast<float>(how.dot_factor);
  }
  at::Tensor offsets, largest;
  if (how.how.unit == ScaleUnit::block) {
    offsets = per_head(piece_offsets(how.blocks, how.how.group, x.device()), heads).contiguous();
    args.offsets = offsets.const_data_ptr<int32_t>();
    args.num_pieces = offsets.size(2) - 1;
    args.map_batch_stride = offsets.size(0) == 1 ? 0 : offsets.size(1);
    args.map_head_stride = offsets.size(1) == 1 ? 0 : 1;
  } else if (how.how.unit == ScaleUnit::head) {
    largest = at::empty({batch, heads}, floats(x));
    args.largest = largest.mutable_data_ptr<float>();
  }
  args.out = out.data.mutable_data_ptr();
  args.scale = out.scale.mutable_data_ptr<float>();
  args.scale_len = scale_len;
  ops::run_on("byte_rows", x.device(), args, &kernels::byte_rows_cpu,
              FOVEA_CUDA_LAUNCHER(byte_rows_cuda));
  return out;
}

ScaledBytes columns_as_bytes(const Side& side, const at::Tensor& largest, bool by_head) {
  const at::Tensor& x = side.x;
  ScaledBytes out;
  out.data = at::empty({x.size(0), side.heads, x.size(3), kernels::byte_places(side.len())},
                       x.options().dtype(at::kByte));
  out.scale = at::empty({x.size(0), side.heads, x.size(3)}, floats(x));
  kernels::ByteColumnsArgs args;
  args.from = side.view();
  args.largest = largest.const_data_ptr<float>();
  args.by_head = by_head;
  args.out = out.data.mutable_data_ptr();
  args.scale = out.scale.mutable_data_ptr<float>();
  ops::run_on("byte_columns", x.device(), args, &kernels::byte_columns_cpu,
              FOVEA_CUDA_LAUNCHER(byte_columns_cuda));
  return out;
}

at::Tensor contiguous(const at::Tensor& x) { return x.defined() ? x.contiguous() : x; }

}  // namespace

std::optional<std::string> why_not_bytes(const Precision& precision, const AttentionCall& call) {
  const bool same =
      precision.q.format == precision.k.format && precision.q.format != NumberFormat::storage;
  const bool values =
      precision.v.format == NumberFormat::e4m3 && precision.v.unit != ScaleUnit::block;
  const bool weights =
      precision.p.format == NumberFormat::e4m3 && precision.p.unit == ScaleUnit::head;
  if (!same || !values || !weights) {
    return "takes q and k both in int8 or e4m3, v in e4m3 per head or channel and p in e4m3 with "
           "one scale, the plan asks for " +
           precision.describe();
  }
  if (call.q.size(3) != kChannels) {
    return str("takes ", kChannels, " channels a head in 8-bit numbers, not ", call.q.size(3));
  }
  return std::nullopt;
}

bool has_block_scales(const Precision& precision) {
  const auto of_block = [](const Quantized& x) {
    return x.format != NumberFormat::storage && x.unit == ScaleUnit::block;
  };
  return of_block(precision.q) || of_block(precision.k);
}

std::optional<PaddedKeys> pad_blocks(const BlockAxis& blocks, const at::Tensor& rows,
                                     const AttentionCall& call) {
  const std::vector<int64_t>& host = blocks.host_offsets();
  const bool fits = !host.empty() && std::all_of(host.begin(), host.end() - 1,
                                                 [](int64_t begin) { return begin % kUnit == 0; });
  if (fits) return std::nullopt;
  const at::Device device = call.q.device();
  const at::Tensor begins = blocks.offsets(device);  // [.., .., blocks + 1]
  const at::Tensor size = begins.diff().clamp_min(0);
  const at::Tensor ends = (size + (kUnit - 1)).floor_divide(kUnit).mul(kUnit).cumsum(2);
  const at::Tensor padded = at::cat({at::zeros_like(begins.slice(2, 0, 1)), ends}, 2).contiguous();
  PaddedKeys out;
  const int64_t count = blocks.num_blocks(), len = call.k.size(2);
  if (host.empty()) {
    out.len = whole_units(len + (kUnit - 1) * count);
    out.blocks = BlockAxis::from_offsets(padded.to(at::kInt), whole_units(blocks.max_size()));
  } else {
    std::vector<int64_t> offsets = {0};
    for (size_t i = 0; i + 1 < host.size(); ++i) {
      offsets.push_back(offsets.back() + whole_units(host[i + 1] - host[i]));
    }
    out.len = offsets.back();
    out.blocks = BlockAxis::from_host(std::move(offsets));
  }
  out.valid = per_head(size.to(at::kInt), call.q.size(1));
  const std::vector<int64_t> sizes = {padded.size(0), padded.size(1), out.len};
  const at::Tensor place = at::arange(out.len, padded.options()).expand(sizes).contiguous();
  const at::Tensor block = at::searchsorted(padded, place, /*out_int32=*/false, /*right=*/true)
                               .sub(1)
                               .clamp(0, count - 1);
  const at::Tensor inside = place - padded.gather(2, block);
  const at::Tensor is_one = inside < size.gather(2, block);
  const at::Tensor position =
      (begins.gather(2, block) + inside).masked_fill(is_one.logical_not(), -1).to(at::kInt);
  if (!rows.defined()) {
    out.rows = position;
    return out;
  }
  const int64_t heads = std::max(rows.size(1), position.size(1));
  const at::Tensor of = per_head(rows, heads), at = per_head(position, heads);
  const std::vector<int64_t> common = {std::max(of.size(0), at.size(0)), heads};
  const at::Tensor where = at.expand({common[0], common[1], out.len});
  out.rows = of.expand({common[0], common[1], of.size(2)})
                 .gather(2, where.clamp(0, std::max<int64_t>(len - 1, 0)).to(at::kLong))
                 .masked_fill(where.lt(0), -1);
  return out;
}

bool scales_by_key(const Quantized& keys, bool is_listed) {
  if (keys.unit == ScaleUnit::token) return true;
  if (keys.unit == ScaleUnit::head) return false;
  // Spans are cut where blocks begin, and every 128 keys from there.
  return !is_listed || keys.group % kernels::kEightBitTile.keys != 0;
}

kernels::EightBitOperands ByteOperands::view() const {
  kernels::EightBitOperands out;
  out.format = format;
  out.q = q.const_data_ptr(), out.k = k.const_data_ptr(), out.v = v.const_data_ptr();
  out.q_scale = q_scale.const_data_ptr<float>();
  out.k_scale = k_scale.const_data_ptr<float>();
  out.v_scale = v_scale.const_data_ptr<float>();
  out.scale_by_key = scale_by_key;
  if (lse_more.defined()) out.lse_more = lse_more.const_data_ptr<float>();
  return out;
}

ByteOperands make_byte_operands(const ByteOperandsOf& of, const at::Tensor& fault) {
  const AttentionCall& call = of.call;
  const at::Tensor q = ops::with_aligned_rows(call.q), k = ops::with_aligned_rows(call.k);
  const at::Tensor v = ops::with_aligned_rows(call.v);
  const int64_t kv_heads = k.size(1);
  const at::Tensor q_rows = contiguous(of.q_rows);
  const int64_t heads = of.kv_rows.defined() ? std::max(kv_heads, of.kv_rows.size(1)) : kv_heads;
  const at::Tensor kv_rows =
      of.kv_rows.defined() ? per_head(of.kv_rows, heads).contiguous() : of.kv_rows;
  // All tokens that are none of padding, in whatever order.
  const at::Tensor valid = has_padding(call.kv_layout)
                               ? rows_without_padding(at::Tensor(), call.kv_layout).contiguous()
                               : at::Tensor();
  const Side q_side{q, q_rows, q.size(1), fault};
  const Side k_side{k, kv_rows, heads, fault}, v_side{v, kv_rows, heads, fault};
  ByteOperands out;
  RowsHow of_q{of.precision.q, of.q_blocks, {}, {}}, of_k{of.precision.k, of.kv_blocks, {}, {}};
  if (of.precision.smooth_k) {
    of_q.mean = of_k.mean = mean_of_columns({k, valid, kv_heads, fault});
    of_q.dot = out.lse_more = at::empty({q.size(0), q.size(1), q_side.len()}, floats(q));
    of_q.dot_factor = of.sm_scale;
  }
  // A tensor that is read twice is read again at once, from the cache as far as it is there.
  ScaledBytes bytes = rows_of(k_side, of_k, kernels::byte_places(k_side.len()));
  out.k = bytes.data, out.k_scale = bytes.scale;
  const at::Tensor largest = largest_of_columns({v, valid, kv_heads, fault});
  bytes = columns_as_bytes(v_side, largest, of.precision.v.unit == ScaleUnit::head);
  out.v = bytes.data, out.v_scale = bytes.scale;
  bytes = rows_of(q_side, of_q, q_side.len());
  out.q = bytes.data, out.q_scale = bytes.scale;
  if (of.precision.q.format == NumberFormat::int8) out.format = kernels::ByteFormat::int8;
  out.scale_by_key = scales_by_key(of.precision.k, of.is_listed);
  return out;
}

}  // namespace fovea
