#include "core/ops/rope.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include "core/check.h"
#include "core/ops/launch.h"
#include "core/ops/norm.h"
#include "core/ops/row_autograd.h"
#include "kernels/ops/rms_norm.h"
#include "kernels/ops/rope.h"

namespace fovea {
namespace {

void check_tables(const char* op, const at::Tensor& x, const at::Tensor& cos,
                  const at::Tensor& sin) {
  ops::check_shape(op, {"cos", cos}, {x.size(1), -1});
  ops::check_shape(op, {"sin", sin}, cos.sizes());
  ops::check_devices(op, {{"x", x}, {"cos", cos}, {"sin", sin}});
  ops::check_fp32(op, {"cos", cos}, x);
  ops::check_fp32(op, {"sin", sin}, x);
}

void check_rope(const char* op, const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
  ops::check_input(op, {"x", x}, 0);
  ops::check_shape(op, {"x", x}, {-1, -1, -1, -1});
  check_tables(op, x, cos, sin);
  require(x.size(3) > 0 && x.size(3) == 2 * cos.size(1), ErrorCode::bad_data, op,
          "tensor 'cos': expected half of an even head_dim ", x.size(3), ", got ", cos.size(1));
}

/// The tables as kernels take them; `cos` and `sin` are contiguous and outlive the launch.
kernels::RotaryTables tables_of(const at::Tensor& cos, const at::Tensor& sin) {
  return {.cos = cos.const_data_ptr<float>(),
          .sin = sin.const_data_ptr<float>(),
          .seq_len = cos.size(0),
          .head_dim = 2 * cos.size(1)};
}

/// Runs the kernel from x into y; false when it does not cover them.
bool rotate(const at::Tensor& x, const at::Tensor& y, const at::Tensor& cos,
            const at::Tensor& sin) {
  if (!ops::kernels_apply(x, {{"x", x}, {"cos", cos}, {"sin", sin}})) return false;
  const auto from = ops::rows_of(x, 2), to = ops::rows_of(y, 2);
  if (!from || !to) return false;
  if (x.numel() == 0) return true;
  const at::Tensor c = cos.contiguous(), s = sin.contiguous();
  const kernels::RopeArgs args{.x = ops::constant(*from),
                               .y = *to,
                               .num_rows = x.size(0) * x.size(1),
                               .dim = x.size(2) * x.size(3),
                               .rope = tables_of(c, s)};
  const ops::RowWork work{"rope", x.device(), args.num_rows, args.dim};
  return ops::launch(work, args, &kernels::rope_cpu, FOVEA_CUDA_LAUNCHER(rope_cuda));
}

}  // namespace

namespace composition {

at::Tensor rope(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
  const at::Tensor pairs = x.unflatten(3, {x.size(3) / 2, 2});
  const at::Tensor x1 = pairs.select(4, 0), x2 = pairs.select(4, 1);
  const at::Tensor c = cos.unsqueeze(1), s = sin.unsqueeze(1);  // [seq_len, 1, head_dim / 2]
  return at::stack({x1 * c - x2 * s, x1 * s + x2 * c}, 4).flatten(3, 4).to(x.scalar_type());
}

at::Tensor rms_norm_rope(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& cos,
                         const at::Tensor& sin, double eps) {
  const int64_t head_dim = 2 * cos.size(1);
  const at::Tensor normed = composition::rms_norm(x, weight, eps);
  return composition::rope(normed.unflatten(2, {x.size(2) / head_dim, head_dim}), cos, sin);
}

}  // namespace composition

at::Tensor rope(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
  check_rope("rope", x, cos, sin);
  const at::Tensor y = at::empty(x.sizes(), x.options());
  return rotate(x, y, cos, sin) ? y : composition::rope(x, cos, sin);
}

void rope_(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
  check_rope("rope_", x, cos, sin);
  if (!rotate(x, x, cos, sin)) x.copy_(composition::rope(x, cos, sin));
}

at::Tensor rms_norm_rope(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& cos,
                         const at::Tensor& sin, double eps) {
  constexpr const char* kOp = "rms_norm_rope";
  ops::check_input(kOp, {"x", x}, 0);
  ops::check_shape(kOp, {"x", x}, {-1, -1, -1});
  check_tables(kOp, x, cos, sin);
  ops::check_devices(kOp, {{"x", x}, {"weight", weight}});
  const int64_t dim = x.size(2), head_dim = 2 * cos.size(1);
  require(head_dim > 0 && dim % head_dim == 0, ErrorCode::bad_data, kOp,
          "tensor 'cos': expected half of a head_dim that divides ", dim, ", got ", cos.size(1));
  if (weight.defined()) {
    ops::check_input(kOp, {"weight", weight}, 1);
    ops::check_shape(kOp, {"weight", weight}, {dim});
  }
  const bool apply =
      ops::kernels_apply(x, {{"x", x}, {"weight", weight}, {"cos", cos}, {"sin", sin}});
  const auto rows = apply && x.numel() > 0 ? ops::rows_of(x) : std::nullopt;
  if (!rows && weight.defined() && head_dim % 8 == 0 && c10::GradMode::is_enabled() &&
      ops::backward_kernels_apply(x)) {
    return ops::differentiable_rms_norm(x, weight, cos, sin, eps);
  }
  if (!rows) return composition::rms_norm_rope(x, weight, cos, sin, eps);

  const at::Tensor y = at::empty({x.size(0), x.size(1), dim / head_dim, head_dim}, x.options());
  const at::Tensor c = cos.contiguous(), s = sin.contiguous();
  kernels::RmsNormRopeArgs args{.norm = {.x = ops::constant(*rows),
                                         .y = *ops::rows_of(y, 2),
                                         .num_rows = x.size(0) * x.size(1),
                                         .dim = dim,
                                         .eps = eps},
                                .rope = tables_of(c, s)};
  at::Tensor held;  // keeps a converted weight alive until the launch
  if (weight.defined()) {
    held = weight.scalar_type() == x.scalar_type() ? weight.contiguous()
                                                   : weight.to(at::kFloat).contiguous();
    args.norm.weight = {held.const_data_ptr(), ops::kernel_dtype(held.scalar_type())};
  }
  const ops::RowWork work{kOp, x.device(), args.norm.num_rows, dim};
  if (ops::launch(work, args, &kernels::rms_norm_rope_cpu, FOVEA_CUDA_LAUNCHER(rms_norm_rope_cuda)))
    return y;
  return composition::rms_norm_rope(x, weight, cos, sin, eps);
}

}  // namespace fovea
