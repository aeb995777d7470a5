#pragma once

#include <ATen/core/Tensor.h>

namespace fovea::ops {

/// x in the type that sums and norms are computed in: fp64 stays, everything else becomes fp32.
inline at::Tensor widened(const at::Tensor& x) {
  return x.scalar_type() == at::kDouble ? x : x.to(at::kFloat);
}

}  // namespace fovea::ops
