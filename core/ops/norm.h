#pragma once

#include <ATen/core/Tensor.h>

namespace fovea {

/// x / sqrt(mean(x^2) + eps) * weight over the last dimension.
///
/// Computed in fp32 and rounded once to the dtype of x, as torch.nn.RMSNorm does. On CPU and, in a
/// build with CUDA kernels, on GPUs one kernel runs; `composition::rms_norm` runs for fp64, when
/// a gradient is asked for, and where rows are not contiguous at equal distances.
///
/// x        [..., dim], fp32 / fp16 / bf16 / fp64
/// weight   [dim], any floating dtype; undefined means ones
/// returns  shape and dtype of x
/// throws   Error bad_data when a shape, dtype or device does not fit
/// paper    Zhang and Sennrich, Root Mean Square Layer Normalization, arXiv 1910.07467, equation 4
/// differs  squares beyond the fp32 range do not overflow in the kernels
at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps);

/// (x - mean) / sqrt(variance + eps) * weight + bias over the last dimension, in fp32, rounded once
/// to the dtype of x: diffusers' FP32LayerNorm. Kernel or composition as for `rms_norm`.
///
/// x             [..., dim], fp32 / fp16 / bf16 / fp64
/// weight, bias  [dim], any floating dtype; both or neither
/// returns       shape and dtype of x
/// throws        Error bad_data when a shape, dtype or device does not fit
/// paper         Ba, Kiros and Hinton, Layer Normalization, arXiv 1607.06450, section 3
at::Tensor layer_norm(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                      double eps);

/// The same in plain tensor operations: they define what the functions above mean, in any floating
/// dtype, on any device, with any strides, and are differentiable.
namespace composition {
at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps);
at::Tensor layer_norm(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                      double eps);
}  // namespace composition

}  // namespace fovea
