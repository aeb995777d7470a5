#include "tests/bench/sm90/packed_shapes.h"

#include "kernels/attention/launch_sm90.cuh"

namespace fovea::kernels {

Status packed_exact_sm90(const CudaAttentionArgs& args, CudaTarget target) {
  using namespace sm90;
  if (args.tile == AttentionTile{128, 128, true}) {
    return launch<PackedShape<128, 128, 2, 32>, Type::bf16>(args, target);
  }
  if (args.tile == AttentionTile{128, 160, true}) {
    return launch<PackedShape<128, 160, 2, 32>, Type::bf16>(args, target);
  }
  return {StatusCode::invalid, "packed lists of another tile"};
}

}  // namespace fovea::kernels
