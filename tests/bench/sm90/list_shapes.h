#pragma once

#include <vector>

#include "kernels/attention/block_sparse_cuda.h"

namespace fovea::kernels {

/// A shape of the forward kernel for lists over 128 channels in bf16 that `block_sparse_sm90` does
/// not have.
struct ListShape {
  const char* name;
  AttentionTile tile;
  Status (*run)(const CudaAttentionArgs& args, CudaTarget target);
};

const std::vector<ListShape>& list_shapes();

}  // namespace fovea::kernels
