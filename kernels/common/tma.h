#pragma once

#include <array>
#include <cstdint>

#include <cuda.h>

#include "kernels/common/status.h"

namespace fovea::kernels {

/// How the copy engine lays rows of 128 bytes out in shared memory: plainly, or with the 16-byte
/// units of row r at the places (unit ^ r % 8), which matrix instructions read without conflicts.
enum class Swizzle { none, bytes128 };

/// A tensor of five dimensions as the copy engine sees it; dimension 0 is contiguous. What has
/// fewer has some of size 1, of any stride that is a multiple of 16 and not 0.
struct TensorMapSpec {
  const void* data = nullptr;  ///< a multiple of 16
  CUtensorMapDataType type = CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  std::array<uint64_t, 5> size = {1, 1, 1, 1, 1};  ///< elements
  /// Bytes from one to the next of dimensions 1 to 4.
  std::array<uint64_t, 4> stride = {16, 16, 16, 16};
  /// Of one copy; its row times the element is at most 128 bytes where it is swizzled.
  std::array<uint32_t, 5> box = {1, 1, 1, 1, 1};
  Swizzle swizzle = Swizzle::bytes128;
};

/// Writes the driver's form of `spec`.
///
/// Loads bring zeros for what lies outside of the tensor, stores leave out what lies beyond its
/// end; no store may begin before its start. Answers `unsupported` with a reason for what the copy
/// engine cannot address, such as strides that are no multiples of 16 bytes.
Status make_tensor_map(const TensorMapSpec& spec, CUtensorMap* out);

}  // namespace fovea::kernels
