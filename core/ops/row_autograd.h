#pragma once

#include <ATen/core/Tensor.h>

// The functions of norm.h, rope.h and modulate.h with kernels for their gradients too. Not part of
// the interface of core/ops: those functions come here when a gradient is asked for.

namespace fovea::ops {

/// Whether kernels compute the gradients for rows like those of x: on a GPU, of a half type,
/// without gaps, with a number of channels that kernels/ops/row_backward.h covers.
bool backward_kernels_apply(const at::Tensor& x);

// Arguments as those of the functions without `differentiable_`, which have checked them; `cos` and
// `sin` undefined: no rotation, and x of any shape. Weights, biases, scales and gates are defined.
at::Tensor differentiable_layer_norm(const at::Tensor& x, const at::Tensor& weight,
                                     const at::Tensor& bias, double eps);
at::Tensor differentiable_layer_norm_modulate(const at::Tensor& x, const at::Tensor& scale,
                                              const at::Tensor& shift, double eps);
at::Tensor differentiable_gate_residual(const at::Tensor& x, const at::Tensor& y,
                                        const at::Tensor& gate);
at::Tensor differentiable_rms_norm(const at::Tensor& x, const at::Tensor& weight,
                                   const at::Tensor& cos, const at::Tensor& sin, double eps);

}  // namespace fovea::ops
