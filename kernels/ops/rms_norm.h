#pragma once

#include "kernels/common/isa.h"
#include "kernels/common/status.h"
#include "kernels/common/tensor_view.h"
#include "kernels/ops/rope.h"

namespace fovea::kernels {

/// y = x / sqrt(mean(x^2) + eps) * weight over each row.
///
/// The sum of squares neither overflows nor loses digits (fp64 on the CPU and for fp32 on GPUs,
/// fp64 where fp32 overflows for the half types on GPUs); everything else is fp32, rounded once to
/// y's type.
struct RmsNormArgs {
  ConstRows x;         ///< [num_rows, dim], f32 / f16 / bf16
  Rows y;              ///< [num_rows, dim], dtype of x; may be the memory of x
  ConstVector weight;  ///< [dim], f32 or the dtype of x; absent means ones
  int64_t num_rows = 0;
  int64_t dim = 0;
  double eps = 0;
};

/// The norm above over all heads together, rounded to y's type, then the rotation of rope.h.
struct RmsNormRopeArgs {
  RmsNormArgs norm;  ///< dim = num_heads * head_dim
  RotaryTables rope;
};

/// Status invalid when pointers, types or sizes contradict each other.
Status check(const RmsNormArgs& args);
Status check(const RmsNormRopeArgs& args);

/// Computes the rows of `range`; `isa` must be available.
Status rms_norm_cpu(const RmsNormArgs& args, RowRange range, Isa isa);
Status rms_norm_rope_cpu(const RmsNormRopeArgs& args, RowRange range, Isa isa);

#if FOVEA_HAS_CUDA
/// Queues the whole problem on a stream; no synchronization.
Status rms_norm_cuda(const RmsNormArgs& args, CudaTarget target);
Status rms_norm_rope_cuda(const RmsNormRopeArgs& args, CudaTarget target);
#endif

}  // namespace fovea::kernels
