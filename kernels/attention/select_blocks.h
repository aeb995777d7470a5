#pragma once

#include <cstdint>

#include "kernels/common/status.h"
#include "kernels/common/tensor_view.h"

namespace fovea::kernels {

/// Chooses the highest scores of each row, of equal ones those that come first; NaN is the highest.
///
/// At least `least` of them; and where sums count, one more as long as the sum of the chosen ones
/// is below `mass` (`takes_crossing`), or as long as the sum with one more is not above it.
struct SelectBlocksArgs {
  const float* scores = nullptr;  ///< [rows, blocks]; where sums count, not below 0
  int64_t rows = 0;
  int32_t blocks = 0;
  int32_t least = 0;
  bool sums = false;
  double mass = 0;
  bool takes_crossing = true;
  bool takes_lowest = true;  ///< else -inf is never chosen
  bool* chosen = nullptr;    ///< [rows, blocks]
};

/// The same on both, but for sums that differ in the last bits of a double; arrays are on the side
/// that computes.
void select_blocks_cpu(const SelectBlocksArgs& args);
Status select_blocks_cuda(const SelectBlocksArgs& args, CudaTarget target);

}  // namespace fovea::kernels
