#include "core/ops/modulate.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include "core/check.h"
#include "core/ops/launch.h"
#include "core/ops/norm.h"
#include "core/ops/row_autograd.h"
#include "core/ops/widened.h"
#include "kernels/ops/gate_residual.h"
#include "kernels/ops/layer_norm_modulate.h"

namespace fovea {
namespace {

void check_channels(const char* op, const ops::Argument& channels, const at::Tensor& x) {
  ops::check_shape(op, channels, {-1, x.size(-1)});
  require(channels.tensor.size(0) == x.size(0) || channels.tensor.size(0) == 1, ErrorCode::bad_data,
          op, "tensor '", channels.name, "': expected ", x.size(0),
          " rows (the batch of 'x') or 1, got ", channels.tensor.size(0));
  ops::check_fp32(op, channels, x);
}

/// [batch or 1, dim] as [batch or 1, 1, ..., 1, dim], to broadcast over tokens.
at::Tensor over_tokens(const at::Tensor& channels, const at::Tensor& x) {
  std::vector<int64_t> shape(x.dim(), 1);
  shape.front() = channels.size(0);
  shape.back() = channels.size(1);
  return channels.reshape(shape);
}

/// Channels contiguous, items at any distance.
at::Tensor contiguous_channels(const at::Tensor& channels) {
  return channels.size(1) == 1 || channels.stride(1) == 1 ? channels : channels.contiguous();
}

}  // namespace

namespace composition {

at::Tensor layer_norm_modulate(const at::Tensor& x, const at::Tensor& scale,
                               const at::Tensor& shift, double eps) {
  const at::Tensor normed = composition::layer_norm(ops::widened(x), {}, {}, eps);
  return (normed * (1 + over_tokens(scale, x)) + over_tokens(shift, x)).to(x.scalar_type());
}

at::Tensor gate_residual(const at::Tensor& x, const at::Tensor& y, const at::Tensor& gate) {
  return (ops::widened(x) + y * over_tokens(gate, x)).to(x.scalar_type());
}

}  // namespace composition

at::Tensor layer_norm_modulate(const at::Tensor& x, const at::Tensor& scale,
                               const at::Tensor& shift, double eps) {
  constexpr const char* kOp = "layer_norm_modulate";
  ops::check_input(kOp, {"x", x}, 2);
  check_channels(kOp, {"scale", scale}, x);
  check_channels(kOp, {"shift", shift}, x);
  ops::check_devices(kOp, {{"x", x}, {"scale", scale}, {"shift", shift}});
  const bool apply = ops::kernels_apply(x, {{"x", x}, {"scale", scale}, {"shift", shift}});
  const auto rows = apply && x.numel() > 0 ? ops::rows_of(x) : std::nullopt;
  if (!rows && c10::GradMode::is_enabled() && ops::backward_kernels_apply(x)) {
    return ops::differentiable_layer_norm_modulate(x, scale, shift, eps);
  }
  if (!rows) return composition::layer_norm_modulate(x, scale, shift, eps);

  const at::Tensor y = at::empty(x.sizes(), x.options());
  const at::Tensor a = contiguous_channels(scale), b = contiguous_channels(shift);
  kernels::LayerNormModulateArgs args{.x = ops::constant(*rows),
                                      .y = *ops::rows_of(y),
                                      .scale = ops::channels_of(a),
                                      .shift = ops::channels_of(b),
                                      .dim = x.size(-1),
                                      .eps = eps};
  args.num_rows = x.numel() / args.dim;
  args.rows_per_item = args.num_rows / x.size(0);
  const ops::RowWork work{kOp, x.device(), args.num_rows, args.dim};
  if (ops::launch(work, args, &kernels::layer_norm_modulate_cpu,
                  FOVEA_CUDA_LAUNCHER(layer_norm_modulate_cuda))) {
    return y;
  }
  return composition::layer_norm_modulate(x, scale, shift, eps);
}

at::Tensor gate_residual(const at::Tensor& x, const at::Tensor& y, const at::Tensor& gate) {
  constexpr const char* kOp = "gate_residual";
  ops::check_input(kOp, {"x", x}, 2);
  ops::check_shape(kOp, {"y", y}, x.sizes());
  require(y.scalar_type() == x.scalar_type(), ErrorCode::bad_data, kOp, "tensor 'y': expected ",
          x.scalar_type(), " as tensor 'x', got ", y.scalar_type());
  check_channels(kOp, {"gate", gate}, x);
  ops::check_devices(kOp, {{"x", x}, {"y", y}, {"gate", gate}});
  const bool apply = ops::kernels_apply(x, {{"x", x}, {"y", y}, {"gate", gate}}) && x.numel() > 0;
  const auto x_rows = apply ? ops::rows_of(x) : std::nullopt;
  const auto y_rows = apply ? ops::rows_of(y) : std::nullopt;
  if (!apply && c10::GradMode::is_enabled() && ops::backward_kernels_apply(x)) {
    return ops::differentiable_gate_residual(x, y, gate);
  }
  if (!x_rows || !y_rows) return composition::gate_residual(x, y, gate);

  const at::Tensor out = at::empty(x.sizes(), x.options());
  const at::Tensor g = contiguous_channels(gate);
  kernels::GateResidualArgs args{.x = ops::constant(*x_rows),
                                 .y = ops::constant(*y_rows),
                                 .out = *ops::rows_of(out),
                                 .gate = ops::channels_of(g),
                                 .dim = x.size(-1)};
  args.num_rows = x.numel() / args.dim;
  args.rows_per_item = args.num_rows / x.size(0);
  const ops::RowWork work{kOp, x.device(), args.num_rows, args.dim};
  if (ops::launch(work, args, &kernels::gate_residual_cpu,
                  FOVEA_CUDA_LAUNCHER(gate_residual_cuda))) {
    return out;
  }
  return composition::gate_residual(x, y, gate);
}

}  // namespace fovea
