#include "core/ops/row_autograd.h"

#include <algorithm>

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "core/check.h"
#include "core/ops/launch.h"
#include "core/ops/modulate.h"
#include "core/ops/norm.h"
#include "core/ops/rope.h"
#include "kernels/ops/row_backward.h"

namespace fovea::ops {

#if FOVEA_HAS_CUDA
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr int64_t kBlocks = 1024;     // of one launch, about
constexpr int64_t kRowsOfAPart = 32;  // at least

at::Tensor fp32(const at::Tensor& x) { return x.detach().to(at::kFloat).contiguous(); }

// The rows of x as those of `items` items.
kernels::ItemRows rows_like(const at::Tensor& x, int64_t items) {
  const int64_t dim = x.size(-1), rows = x.numel() / dim / items;
  const int64_t parts = std::clamp<int64_t>(kBlocks / items, 1, rows / kRowsOfAPart + 1);
  return {.dtype = kernel_dtype(x.scalar_type()),
          .num_items = items,
          .rows_per_item = rows,
          .dim = dim,
          .num_parts = parts};
}

at::Tensor new_sums(const at::Tensor& x, const kernels::ItemRows& rows) {
  return at::empty({rows.num_parts, rows.num_items, rows.dim}, x.options().dtype(at::kFloat));
}

// A gradient as the kernels read it beside x.
at::Tensor dense(const at::Tensor& gradient, const at::Tensor& x) {
  return gradient.to(x.scalar_type()).contiguous();
}

void expect(const char* op, const kernels::Status& status) { FOVEA_ASSERT(accepted(op, status)); }

struct LayerNormGradients {
  at::Tensor x, factor, shift;  // of factor and shift: [items, dim] fp32
};

LayerNormGradients layer_norm_gradients(const at::Tensor& x, const at::Tensor& factor, double eps,
                                        const at::Tensor& y_gradient) {
  const kernels::ItemRows rows = rows_like(x, factor.size(0));
  const at::Tensor gradient = dense(y_gradient, x);
  at::Tensor out = at::empty(x.sizes(), x.options());
  at::Tensor factors = new_sums(x, rows), shifts = new_sums(x, rows);
  expect("layer_norm",
         kernels::layer_norm_backward_cuda({.rows = rows,
                                            .x = x.const_data_ptr(),
                                            .y_gradient = gradient.const_data_ptr(),
                                            .x_gradient = out.mutable_data_ptr(),
                                            .factor = factor.const_data_ptr<float>(),
                                            .factor_gradients = factors.mutable_data_ptr<float>(),
                                            .shift_gradients = shifts.mutable_data_ptr<float>(),
                                            .eps = eps},
                                           cuda_target(x.device())));
  return {out, factors.sum(0), shifts.sum(0)};
}

class LayerNorm : public torch::autograd::Function<LayerNorm> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& weight,
                            const at::Tensor& bias, double eps) {
    context->save_for_backward({x, weight, bias});
    context->saved_data["eps"] = eps;
    return fovea::layer_norm(x, weight, bias, eps);
  }
  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const variable_list saved = context->get_saved_variables();
    const at::Tensor &x = saved[0], &weight = saved[1], &bias = saved[2];
    const LayerNormGradients out = layer_norm_gradients(
        x, fp32(weight).unsqueeze(0), context->saved_data["eps"].toDouble(), gradients[0]);
    return {out.x, out.factor[0].to(weight.scalar_type()), out.shift[0].to(bias.scalar_type()), {}};
  }
};

class LayerNormModulate : public torch::autograd::Function<LayerNormModulate> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& scale,
                            const at::Tensor& shift, double eps) {
    context->save_for_backward({x, scale, shift});
    context->saved_data["eps"] = eps;
    return fovea::layer_norm_modulate(x, scale, shift, eps);
  }
  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const variable_list saved = context->get_saved_variables();
    const at::Tensor &x = saved[0], &scale = saved[1], &shift = saved[2];
    const LayerNormGradients out = layer_norm_gradients(
        x, fp32(scale) + 1, context->saved_data["eps"].toDouble(), gradients[0]);
    return {out.x, out.factor.to(scale.scalar_type()), out.shift.to(shift.scalar_type()), {}};
  }
};

class GateResidual : public torch::autograd::Function<GateResidual> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& y,
                            const at::Tensor& gate) {
    context->save_for_backward({y, gate});
    return fovea::gate_residual(x, y, gate);
  }
  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const variable_list saved = context->get_saved_variables();
    const at::Tensor &y = saved[0], &gate = saved[1];
    const at::Tensor values = fp32(gate), rows_of_y = y.contiguous();
    const kernels::ItemRows rows = rows_like(rows_of_y, gate.size(0));
    const at::Tensor gradient = dense(gradients[0], y);
    at::Tensor y_gradient = at::empty(y.sizes(), y.options());
    at::Tensor gates = new_sums(y, rows);
    expect("gate_residual",
           kernels::gate_residual_backward_cuda({.rows = rows,
                                                 .y = rows_of_y.const_data_ptr(),
                                                 .out_gradient = gradient.const_data_ptr(),
                                                 .y_gradient = y_gradient.mutable_data_ptr(),
                                                 .gate = values.const_data_ptr<float>(),
                                                 .gate_gradients = gates.mutable_data_ptr<float>()},
                                                cuda_target(y.device())));
    return {gradients[0], y_gradient, gates.sum(0).to(gate.scalar_type())};
  }
};

class RmsNorm : public torch::autograd::Function<RmsNorm> {
 public:
  using Table = std::optional<at::Tensor>;  // LibTorch takes no undefined tensor here

  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& weight,
                            const Table& cos, const Table& sin, double eps) {
    context->save_for_backward({x, weight, cos.value_or(at::Tensor()), sin.value_or(at::Tensor())});
    context->saved_data["eps"] = eps;
    return cos ? fovea::rms_norm_rope(x, weight, *cos, *sin, eps) : fovea::rms_norm(x, weight, eps);
  }
  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const variable_list saved = context->get_saved_variables();
    const at::Tensor &x = saved[0], &weight = saved[1];
    const kernels::ItemRows rows = rows_like(x, 1);
    const at::Tensor values = fp32(weight), gradient = dense(gradients[0], x);
    at::Tensor out = at::empty(x.sizes(), x.options()), weights = new_sums(x, rows);
    kernels::RmsNormBackwardArgs args{.rows = rows,
                                      .x = x.const_data_ptr(),
                                      .y_gradient = gradient.const_data_ptr(),
                                      .x_gradient = out.mutable_data_ptr(),
                                      .weight = values.const_data_ptr<float>(),
                                      .weight_gradients = weights.mutable_data_ptr<float>(),
                                      .eps = context->saved_data["eps"].toDouble()};
    at::Tensor cos, sin;
    if (saved[2].defined()) {
      cos = saved[2].contiguous();
      sin = saved[3].contiguous();
      args.rope = {.cos = cos.const_data_ptr<float>(),
                   .sin = sin.const_data_ptr<float>(),
                   .seq_len = cos.size(0),
                   .head_dim = 2 * cos.size(1)};
    }
    expect("rms_norm", kernels::rms_norm_backward_cuda(args, cuda_target(x.device())));
    return {out, weights.sum(at::IntArrayRef{0, 1}).to(weight.scalar_type()), {}, {}, {}};
  }
};

}  // namespace

bool backward_kernels_apply(const at::Tensor& x) {
  if (!x.is_cuda() || x.element_size() != 2 || x.numel() == 0 || !x.is_contiguous()) return false;
  if (reinterpret_cast<uintptr_t>(x.const_data_ptr()) % 16 != 0) return false;
  return kernels::check(rows_like(x, 1)).ok();
}

at::Tensor differentiable_layer_norm(const at::Tensor& x, const at::Tensor& weight,
                                     const at::Tensor& bias, double eps) {
  return LayerNorm::apply(x, weight, bias, eps);
}

at::Tensor differentiable_layer_norm_modulate(const at::Tensor& x, const at::Tensor& scale,
                                              const at::Tensor& shift, double eps) {
  return LayerNormModulate::apply(x, scale, shift, eps);
}

at::Tensor differentiable_gate_residual(const at::Tensor& x, const at::Tensor& y,
                                        const at::Tensor& gate) {
  return GateResidual::apply(x, y, gate);
}

at::Tensor differentiable_rms_norm(const at::Tensor& x, const at::Tensor& weight,
                                   const at::Tensor& cos, const at::Tensor& sin, double eps) {
  if (!cos.defined()) return RmsNorm::apply(x, weight, RmsNorm::Table(), RmsNorm::Table(), eps);
  return RmsNorm::apply(x, weight, RmsNorm::Table(cos), RmsNorm::Table(sin), eps);
}

#else

bool backward_kernels_apply(const at::Tensor&) { return false; }

at::Tensor differentiable_layer_norm(const at::Tensor& x, const at::Tensor& weight,
                                     const at::Tensor& bias, double eps) {
  return composition::layer_norm(x, weight, bias, eps);
}

at::Tensor differentiable_layer_norm_modulate(const at::Tensor& x, const at::Tensor& scale,
                                              const at::Tensor& shift, double eps) {
  return composition::layer_norm_modulate(x, scale, shift, eps);
}

at::Tensor differentiable_gate_residual(const at::Tensor& x, const at::Tensor& y,
                                        const at::Tensor& gate) {
  return composition::gate_residual(x, y, gate);
}

at::Tensor differentiable_rms_norm(const at::Tensor& x, const at::Tensor& weight,
                                   const at::Tensor& cos, const at::Tensor& sin, double eps) {
  return cos.defined() ? composition::rms_norm_rope(x, weight, cos, sin, eps)
                       : composition::rms_norm(x, weight, eps);
}

#endif

}  // namespace fovea::ops
