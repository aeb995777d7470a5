#pragma once

#include "kernels/common/isa.h"
#include "kernels/common/status.h"
#include "kernels/common/tensor_view.h"

namespace fovea::kernels {

/// n = (x - mean) / sqrt(var + eps) over each row, then n * weight + bias where given, then
/// n * (1 + scale) + shift where given.
///
/// Mean and variance (of the population) come in two passes, exact enough that x - mean is good to
/// the last digits where it cancels. The rest is fp32, each operation rounded, and rounded once to
/// y's type.
struct LayerNormModulateArgs {
  ConstRows x;                    ///< [num_rows, dim], f32 / f16 / bf16
  Rows y;                         ///< as x; may be the memory of x
  const float* weight = nullptr;  ///< [dim], absent or together with bias
  const float* bias = nullptr;    ///< [dim]
  ConstChannels scale;            ///< [batch, dim], absent or together with shift
  ConstChannels shift;            ///< [batch, dim]
  int64_t rows_per_item = 1;      ///< tokens of one batch item
  int64_t num_rows = 0;
  int64_t dim = 0;
  double eps = 0;
};

/// Status invalid when pointers, types or sizes contradict each other.
Status check(const LayerNormModulateArgs& args);

/// Computes the rows of `range`; `isa` must be available.
Status layer_norm_modulate_cpu(const LayerNormModulateArgs& args, RowRange range, Isa isa);

#if FOVEA_HAS_CUDA
/// Queues the whole problem on a stream; no synchronization.
Status layer_norm_modulate_cuda(const LayerNormModulateArgs& args, CudaTarget target);
#endif

}  // namespace fovea::kernels
