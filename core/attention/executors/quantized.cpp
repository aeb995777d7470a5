#include "core/attention/executors/quantized.h"

#include <ATen/ATen.h>

#include "core/attention/block_pool.h"
#include "core/attention/executors/cpu_softmax.h"
#include "core/check.h"
#include "core/ops/kernel_threads.h"
#include "core/ops/launch.h"
#include "kernels/attention/quantize_rows.h"

namespace fovea {
namespace {

// Magnitudes without padding, which may hold anything.
at::Tensor magnitudes(const at::Tensor& x, const TokenLayout& layout) {
  const at::Tensor valid = layout.valid_mask();
  const at::Tensor size = x.detach().abs();
  return valid.defined() ? size.masked_fill(valid.logical_not().transpose(2, 3), 0) : size;
}

// First positions of the pieces, and the number of positions: int32 [.., .., pieces + 1].
at::Tensor scale_offsets(const Quantized& how, const OperandSide& side, int64_t len) {
  if (how.unit == ScaleUnit::head) return at::tensor({int64_t{0}, len}, at::kInt).view({1, 1, 2});
  return piece_offsets(side.blocks, how.group);
}

int64_t stride_of(const at::Tensor& x, int64_t axis) {
  return x.size(axis) == 1 ? 0 : x.stride(axis);
}

}  // namespace

at::Tensor OperandSide::pieces(int64_t heads, at::Device device, int64_t group) const {
  return piece_of_row(blocks, group, order, layout, device, heads);
}

at::Tensor largest_of_pieces(const at::Tensor& x, const at::Tensor& piece, int64_t pieces) {
  const at::Tensor where =
      piece.expand({x.size(0), x.size(1), x.size(2)}).unsqueeze(3).expand_as(x);
  return at::zeros({x.size(0), x.size(1), pieces, x.size(3)}, x.options())
      .scatter_reduce(2, where, x, "amax")
      .gather(2, where);
}

at::Tensor quantized_operand(const at::Tensor& x, const Quantized& how, const OperandSide& side) {
  if (how.format == NumberFormat::storage || x.size(2) == 0) return x;
  const at::Tensor size = magnitudes(x, side.layout);
  if (how.unit == ScaleUnit::channel) return quantize(x, how.format, size.amax(2, true));
  if (how.unit == ScaleUnit::head) return quantize(x, how.format, size.amax({2, 3}, true));
  const at::Tensor of_token = size.amax(3, /*keepdim=*/true);
  if (how.unit == ScaleUnit::token) return quantize(x, how.format, of_token);
  const int64_t pieces = side.blocks.num_blocks() * pieces_per_block(side.blocks, how.group);
  const at::Tensor piece = side.pieces(x.size(1), x.device(), how.group);
  return quantize(x, how.format, largest_of_pieces(of_token, piece, pieces));
}

IntegerRows integer_rows(const at::Tensor& x, const Quantized& how, const OperandSide& side,
                         const at::Tensor& mean) {
  const at::Tensor from = x.stride(3) == 1 || x.size(3) == 1 ? x : x.contiguous();
  IntegerRows out;
  out.data = at::empty(x.sizes(), x.options().dtype(at::kChar));
  out.scale = at::empty(x.sizes().slice(0, 3), x.options().dtype(at::kFloat));
  kernels::QuantizeRowsArgs args;
  args.batch = x.size(0), args.heads = x.size(1), args.len = x.size(2), args.dim = x.size(3);
  args.x.data = from.const_data_ptr();
  args.x.dtype = ops::kernel_dtype(x.scalar_type());
  args.x.batch_stride = from.stride(0), args.x.head_stride = from.stride(1);
  args.x.row_stride = from.stride(2);
  const at::Tensor lost = mean.defined() ? mean.contiguous() : mean;
  if (lost.defined()) args.mean = lost.const_data_ptr<float>();
  at::Tensor rows, offsets;
  if (how.unit == ScaleUnit::block && !side.order.is_identity()) {
    rows = per_head(side.order.rows(side.layout, at::kCPU), x.size(1)).to(at::kInt).contiguous();
    args.order = {rows.const_data_ptr<int32_t>(), stride_of(rows, 0), stride_of(rows, 1)};
  }
  if (how.unit != ScaleUnit::token) {
    offsets = scale_offsets(how, side, x.size(2));
    args.offsets = offsets.const_data_ptr<int32_t>();
    args.num_pieces = offsets.size(2) - 1;
    args.maps = offsets.size(0) * offsets.size(1);
    args.map_batch_stride = offsets.size(0) == 1 ? 0 : offsets.size(1);
    args.map_head_stride = offsets.size(1) == 1 ? 0 : 1;
  }
  args.out = out.data.mutable_data_ptr<int8_t>();
  args.scale = out.scale.mutable_data_ptr<float>();
  const kernels::Status status =
      kernels::quantize_rows_cpu(args, ops::all_threads(), kernels::best_isa());
  FOVEA_ASSERT(status.ok(), status.message);
  return out;
}

}  // namespace fovea
