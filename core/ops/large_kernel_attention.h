#pragma once

#include <cstdint>

#include <ATen/core/Tensor.h>

namespace fovea {

/// Weights of `large_kernel_attention`.
struct LargeKernelWeights {
  at::Tensor local;         ///< [channels, 1, k, k], k odd
  at::Tensor local_bias;    ///< [channels]
  at::Tensor dilated;       ///< [channels, 1, k', k'], k' odd
  at::Tensor dilated_bias;  ///< [channels]
  int64_t dilation = 1;     ///< of the second convolution, at least 1
  at::Tensor point;         ///< [channels, channels, 1, 1]
  at::Tensor point_bias;    ///< [channels]
};

/// Large-kernel attention: x · a with a = pointwise(dilated depthwise(local depthwise(x))), all
/// with zero padding that keeps the size (Guo et al., "Visual Attention Network", 2022, equations 1
/// and 2). Differentiable.
///
/// x        [batch, channels, height, width], floating point; weights of its dtype and device
/// returns  as x
/// throws   Error bad_data naming the tensor of a wrong shape, dtype or device
at::Tensor large_kernel_attention(const at::Tensor& x, const LargeKernelWeights& weights);

}  // namespace fovea
