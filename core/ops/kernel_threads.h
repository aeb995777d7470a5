#pragma once

#include <cstdint>

#include <ATen/core/Tensor.h>

#include "kernels/attention/block_sparse.h"

// What the kernels of kernels/attention are given. Not part of the interface of core/ops.

namespace fovea::ops {

/// As many threads as LibTorch has, those of `parallel_for`.
kernels::Parallel all_threads();

/// `bytes` aligned bytes of `memory`, which is made anew where it is undefined or too small.
kernels::Workspace workspace_in(at::Tensor& memory, int64_t bytes);

}  // namespace fovea::ops
