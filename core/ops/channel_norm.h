#pragma once

#include <ATen/core/Tensor.h>

namespace fovea {

/// silu(x / max(|x|, 1e-12) * sqrt(channels) * gamma), |x| over the channels of each place: the
/// norm and activation before a convolution of Wan's autoencoder. Differentiable.
///
/// Computed in fp32 at least and rounded to the dtype of x: on GPUs by one kernel each way for
/// half-type channels-last tensors whose channels are a multiple of 8 up to 256, which rounds once;
/// otherwise by `composition::channel_norm_silu`, which rounds before the activation too.
///
/// x      [batch, channels, frames, height, width]
/// gamma  [channels, 1, 1, 1], any floating dtype
/// throws Error bad_data when a shape or device does not fit
at::Tensor channel_norm_silu(const at::Tensor& x, const at::Tensor& gamma);

namespace composition {
at::Tensor channel_norm_silu(const at::Tensor& x, const at::Tensor& gamma);
}  // namespace composition

}  // namespace fovea
