#include "core/ops/norm.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include "core/check.h"
#include "core/ops/launch.h"
#include "core/ops/row_autograd.h"
#include "core/ops/widened.h"
#include "kernels/ops/layer_norm_modulate.h"
#include "kernels/ops/rms_norm.h"

namespace fovea {
namespace {

void check_vector(const char* op, const ops::Argument& vector, int64_t dim) {
  if (!vector.tensor.defined()) return;
  ops::check_input(op, vector, 1);
  ops::check_shape(op, vector, {dim});
}

}  // namespace

namespace composition {

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps) {
  const at::Tensor wide = ops::widened(x);
  const at::Tensor normed =
      wide * at::rsqrt(at::mean(at::pow(wide, 2), {-1}, /*keepdim=*/true) + eps);
  return (weight.defined() ? normed * weight : normed).to(x.scalar_type());
}

at::Tensor layer_norm(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                      double eps) {
  const at::Tensor wide = ops::widened(x);
  std::optional<at::Tensor> wide_weight, wide_bias;
  if (weight.defined()) wide_weight = weight.to(wide.scalar_type());
  if (bias.defined()) wide_bias = bias.to(wide.scalar_type());
  return at::layer_norm(wide, {x.size(-1)}, wide_weight, wide_bias, eps).to(x.scalar_type());
}

}  // namespace composition

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps) {
  constexpr const char* kOp = "rms_norm";
  ops::check_input(kOp, {"x", x}, 1);
  ops::check_devices(kOp, {{"x", x}, {"weight", weight}});
  check_vector(kOp, {"weight", weight}, x.size(-1));
  const auto rows =
      ops::kernels_apply(x, {{"x", x}, {"weight", weight}}) ? ops::rows_of(x) : std::nullopt;
  if (!rows && weight.defined() && c10::GradMode::is_enabled() && ops::backward_kernels_apply(x)) {
    return ops::differentiable_rms_norm(x, weight, {}, {}, eps);
  }
  if (!rows) return composition::rms_norm(x, weight, eps);

  const at::Tensor y = at::empty(x.sizes(), x.options());
  kernels::RmsNormArgs args{.x = ops::constant(*rows),
                            .y = *ops::rows_of(y),
                            .num_rows = 0,
                            .dim = x.size(-1),
                            .eps = eps};
  args.num_rows = args.dim == 0 ? 0 : x.numel() / args.dim;
  at::Tensor held;  // keeps a converted weight alive until the launch
  if (weight.defined()) {
    held = weight.scalar_type() == x.scalar_type() ? weight.contiguous()
                                                   : weight.to(at::kFloat).contiguous();
    args.weight = {held.const_data_ptr(), ops::kernel_dtype(held.scalar_type())};
  }
  const ops::RowWork work{kOp, x.device(), args.num_rows, args.dim};
  if (ops::launch(work, args, &kernels::rms_norm_cpu, FOVEA_CUDA_LAUNCHER(rms_norm_cuda))) return y;
  return composition::rms_norm(x, weight, eps);
}

at::Tensor layer_norm(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                      double eps) {
  constexpr const char* kOp = "layer_norm";
  ops::check_input(kOp, {"x", x}, 1);
  ops::check_devices(kOp, {{"x", x}, {"weight", weight}, {"bias", bias}});
  check_vector(kOp, {"weight", weight}, x.size(-1));
  check_vector(kOp, {"bias", bias}, x.size(-1));
  require(weight.defined() == bias.defined(), ErrorCode::bad_data, kOp,
          "expected tensors 'weight' and 'bias', or neither");
  const auto rows = ops::kernels_apply(x, {{"x", x}, {"weight", weight}, {"bias", bias}})
                        ? ops::rows_of(x)
                        : std::nullopt;
  if (!rows && weight.defined() && c10::GradMode::is_enabled() && ops::backward_kernels_apply(x)) {
    return ops::differentiable_layer_norm(x, weight, bias, eps);
  }
  if (!rows) return composition::layer_norm(x, weight, bias, eps);

  const at::Tensor y = at::empty(x.sizes(), x.options());
  kernels::LayerNormModulateArgs args{
      .x = ops::constant(*rows), .y = *ops::rows_of(y), .dim = x.size(-1), .eps = eps};
  args.num_rows = args.dim == 0 ? 0 : x.numel() / args.dim;
  at::Tensor held_weight, held_bias;  // keep converted ones alive until the launch
  if (weight.defined()) {
    held_weight = weight.to(at::kFloat).contiguous();
    held_bias = bias.to(at::kFloat).contiguous();
    args.weight = held_weight.const_data_ptr<float>();
    args.bias = held_bias.const_data_ptr<float>();
  }
  const ops::RowWork work{kOp, x.device(), args.num_rows, args.dim};
  if (ops::launch(work, args, &kernels::layer_norm_modulate_cpu,
                  FOVEA_CUDA_LAUNCHER(layer_norm_modulate_cuda))) {
    return y;
  }
  return composition::layer_norm(x, weight, bias, eps);
}

}  // namespace fovea
