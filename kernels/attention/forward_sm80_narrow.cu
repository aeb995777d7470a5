#include "kernels/attention/launch_sm80.cuh"

namespace fovea::kernels::sm80 {

template Status launch_dim<32>(const CudaAttentionArgs& args, CudaTarget target);
template Status launch_dim<64>(const CudaAttentionArgs& args, CudaTarget target);
template Status launch_dim<96>(const CudaAttentionArgs& args, CudaTarget target);

}  // namespace fovea::kernels::sm80
