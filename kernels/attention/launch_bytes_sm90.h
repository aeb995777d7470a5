#pragma once

#include "kernels/attention/eight_bit_cuda.h"

// A source for each format, as compiling all takes long.

namespace fovea::kernels::sm90 {

Status launch_e4m3(const CudaAttentionArgs& args, const EightBitOperands& operands,
                   CudaTarget target);
Status launch_int8(const CudaAttentionArgs& args, const EightBitOperands& operands,
                   CudaTarget target);

}  // namespace fovea::kernels::sm90
