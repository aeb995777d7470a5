#pragma once

#include "kernels/attention/block_sparse_cuda.h"

namespace fovea::kernels {

/// Packed lists over 128 channels in bf16, with boxes of 1 to 32 rows for copies; see
/// `PackedShape`. `block_sparse_sm90` has boxes of powers of 2.
Status packed_exact_sm90(const CudaAttentionArgs& args, CudaTarget target);

}  // namespace fovea::kernels
