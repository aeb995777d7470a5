#include "kernels/attention/launch_bytes_sm90.cuh"

namespace fovea::kernels::sm90 {

Status launch_e4m3(const CudaAttentionArgs& args, const EightBitOperands& operands,
                   CudaTarget target) {
  return launch_format<Type::e4m3>(args, operands, target);
}

}  // namespace fovea::kernels::sm90
