#include "kernels/attention/launch_bytes_sm90.cuh"

namespace fovea::kernels::sm90 {

Status launch_int8(const CudaAttentionArgs& args, const EightBitOperands& operands,
                   CudaTarget target) {
  return launch_format<Type::s8>(args, operands, target);
}

}  // namespace fovea::kernels::sm90
