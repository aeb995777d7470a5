#pragma once

#include "kernels/common/isa.h"
#include "kernels/common/status.h"
#include "kernels/common/tensor_view.h"

namespace fovea::kernels {

/// out = x + y * gate in fp32, product and sum rounded, then rounded once to out's type.
struct GateResidualArgs {
  ConstRows x;                ///< [num_rows, dim], f32 / f16 / bf16
  ConstRows y;                ///< as x
  Rows out;                   ///< as x; may be the memory of x or y
  ConstChannels gate;         ///< [batch, dim]
  int64_t rows_per_item = 1;  ///< tokens of one batch item
  int64_t num_rows = 0;
  int64_t dim = 0;
};

/// Status invalid when pointers, types or sizes contradict each other.
Status check(const GateResidualArgs& args);

/// Computes the rows of `range`; `isa` must be available.
Status gate_residual_cpu(const GateResidualArgs& args, RowRange range, Isa isa);

#if FOVEA_HAS_CUDA
/// Queues the whole problem on a stream; no synchronization.
Status gate_residual_cuda(const GateResidualArgs& args, CudaTarget target);
#endif

}  // namespace fovea::kernels
