#pragma once

#include <cstdint>

#include "kernels/common/status.h"
#include "kernels/common/tensor_view.h"

namespace fovea::kernels {

/// y = silu(x / max(|x|, floor) * sqrt(dim) * gamma), |x| over each row: the norm and activation
/// before a convolution of Wan's autoencoder, on channels-last pictures, whose rows are the
/// channels of a place. Computed in fp32, rounded once.
struct ChannelNormArgs {
  const void* x = nullptr;       ///< [num_rows, dim] contiguous, f16 / bf16, 16-byte aligned
  void* y = nullptr;             ///< as x
  DType dtype = DType::bf16;     ///< of x and y
  const float* gamma = nullptr;  ///< [dim]
  int64_t num_rows = 0;
  int64_t dim = 0;  ///< a multiple of 8, at most 256
  float floor = 1e-12f;
};

/// The gradients of the same.
struct ChannelNormBackwardArgs {
  ChannelNormArgs forward;           ///< y is not used
  const void* y_gradient = nullptr;  ///< as x
  void* x_gradient = nullptr;        ///< as x
  float* gamma_gradients = nullptr;  ///< [num_parts, dim]: their sum is gamma's gradient
  int64_t num_parts = 0;             ///< at least 1; a part is what one block adds up
};

/// Status unsupported for another dim or type, invalid when pointers or sizes make no sense.
Status check(const ChannelNormArgs& args);

#if FOVEA_HAS_CUDA
/// Each queues the whole problem on a stream; no synchronization.
Status channel_norm_silu_cuda(const ChannelNormArgs& args, CudaTarget target);
Status channel_norm_silu_backward_cuda(const ChannelNormBackwardArgs& args, CudaTarget target);
#endif

}  // namespace fovea::kernels
