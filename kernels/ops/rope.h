#pragma once

#include "kernels/common/isa.h"
#include "kernels/common/status.h"
#include "kernels/common/tensor_view.h"

namespace fovea::kernels {

/// Angles of a rotary position embedding on interleaved pairs: values 2i and 2i + 1 of each head
/// turn by the angle of (position, i).
struct RotaryTables {
  const float* cos = nullptr;  ///< [seq_len, head_dim / 2], contiguous
  const float* sin = nullptr;  ///< as cos
  int64_t seq_len = 0;         ///< row r has position r % seq_len
  int64_t head_dim = 0;        ///< even
};

/// y[2i] = x[2i] cos - x[2i+1] sin,  y[2i+1] = x[2i] sin + x[2i+1] cos, in fp32: each product and
/// sum rounded, as separate tensor operations round, then once to y's type.
struct RopeArgs {
  ConstRows x;  ///< [num_rows, dim], dim = num_heads * head_dim, f32 / f16 / bf16
  Rows y;       ///< as x; may be the memory of x
  int64_t num_rows = 0;
  int64_t dim = 0;
  RotaryTables rope;
};

/// Status invalid when pointers, types or sizes contradict each other.
Status check(const RopeArgs& args);

/// Computes the rows of `range`; `isa` must be available.
Status rope_cpu(const RopeArgs& args, RowRange range, Isa isa);

#if FOVEA_HAS_CUDA
/// Queues the whole problem on a stream; no synchronization.
Status rope_cuda(const RopeArgs& args, CudaTarget target);
#endif

}  // namespace fovea::kernels
