#pragma once

#include <cstdint>

#include "kernels/common/status.h"
#include "kernels/common/tensor_view.h"
#include "kernels/ops/rope.h"

// Gradients of the row kernels in this folder, on GPUs, for rows of half types [num_rows, dim]
// without gaps, 16-byte aligned, whose dim is a multiple of 8 up to 256, of 16 up to 512, of 24 up
// to 768 or of 32 up to 1024. Sums over rows come in parts, for the caller to add up: what one
// block sums is a part.

namespace fovea::kernels {

/// Rows of several items, one after another.
struct ItemRows {
  DType dtype = DType::bf16;  ///< of all matrices
  int64_t num_items = 1;
  int64_t rows_per_item = 0;
  int64_t dim = 0;
  int64_t num_parts = 1;  ///< parts of the sums of an item
};

/// Of y = (x - mean) / sqrt(variance + eps) * factor + shift.
struct LayerNormBackwardArgs {
  ItemRows rows;
  const void* x = nullptr;
  const void* y_gradient = nullptr;
  void* x_gradient = nullptr;
  const float* factor = nullptr;      ///< [num_items, dim]; null means ones
  float* factor_gradients = nullptr;  ///< [num_parts, num_items, dim]; null when not wanted
  float* shift_gradients = nullptr;   ///< as factor_gradients; both or neither
  double eps = 0;
};

/// Of out = x + y * gate; x's gradient is out's.
struct GateBackwardArgs {
  ItemRows rows;
  const void* y = nullptr;
  const void* out_gradient = nullptr;
  void* y_gradient = nullptr;
  const float* gate = nullptr;      ///< [num_items, dim]
  float* gate_gradients = nullptr;  ///< [num_parts, num_items, dim]
};

/// Of y = rotated(x / sqrt(mean(x^2) + eps) * weight); without tables nothing is rotated.
struct RmsNormBackwardArgs {
  ItemRows rows;  ///< one item
  const void* x = nullptr;
  const void* y_gradient = nullptr;
  void* x_gradient = nullptr;
  const float* weight = nullptr;      ///< [dim]
  float* weight_gradients = nullptr;  ///< [num_parts, dim]
  RotaryTables rope;                  ///< head_dim a multiple of 8
  double eps = 0;
};

/// Status unsupported for another dim or type, invalid when sizes or pointers make no sense.
Status check(const ItemRows& rows);

#if FOVEA_HAS_CUDA
/// Each queues the whole problem on a stream; no synchronization.
Status layer_norm_backward_cuda(const LayerNormBackwardArgs& args, CudaTarget target);
Status gate_residual_backward_cuda(const GateBackwardArgs& args, CudaTarget target);
Status rms_norm_backward_cuda(const RmsNormBackwardArgs& args, CudaTarget target);
#endif

}  // namespace fovea::kernels
