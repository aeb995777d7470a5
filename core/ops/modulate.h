#pragma once

#include <ATen/core/Tensor.h>

namespace fovea {

/// Layer norm without weights, then n * (1 + scale) + shift, in fp32, rounded once to the dtype of
/// x: the modulation of Wan's and other diffusion transformers' blocks. Kernel or composition as
/// for `rms_norm`.
///
/// x             [batch, ..., dim], fp32 / fp16 / bf16 / fp64
/// scale, shift  [batch, dim] or [1, dim], fp32 (fp64 beside an fp64 x); the same for all tokens
/// returns       shape and dtype of x
/// throws        Error bad_data when a shape, dtype or device does not fit
/// paper         Peebles and Xie, Scalable Diffusion Models with Transformers, arXiv 2212.09748,
///               section 3.2 (adaLN)
at::Tensor layer_norm_modulate(const at::Tensor& x, const at::Tensor& scale,
                               const at::Tensor& shift, double eps);

/// x + y * gate in fp32, rounded once to the dtype of x. Kernel or composition as for `rms_norm`.
///
/// x, y     [batch, ..., dim], the same fp32 / fp16 / bf16 / fp64
/// gate     [batch, dim] or [1, dim], fp32 (fp64 beside an fp64 x); the same for all tokens
/// returns  shape and dtype of x
/// throws   Error bad_data when a shape, dtype or device does not fit
at::Tensor gate_residual(const at::Tensor& x, const at::Tensor& y, const at::Tensor& gate);

/// The same in plain tensor operations; see core/ops/norm.h.
namespace composition {
at::Tensor layer_norm_modulate(const at::Tensor& x, const at::Tensor& scale,
                               const at::Tensor& shift, double eps);
at::Tensor gate_residual(const at::Tensor& x, const at::Tensor& y, const at::Tensor& gate);
}  // namespace composition

}  // namespace fovea
