#include "kernels/attention/launch_sm80.cuh"

namespace fovea::kernels::sm80 {

template Status launch_dim<128>(const CudaAttentionArgs& args, CudaTarget target);
template Status launch_dim<256>(const CudaAttentionArgs& args, CudaTarget target);

}  // namespace fovea::kernels::sm80
