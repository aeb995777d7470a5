#include "kernels/common/tma.h"

#include <cuda_runtime.h>

namespace fovea::kernels {
namespace {

using EncodeTiled = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*,
                                 const cuuint64_t*, const cuuint64_t*, const cuuint32_t*,
                                 const cuuint32_t*, CUtensorMapInterleave, CUtensorMapSwizzle,
                                 CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

// Asked for at run time: the program links no driver, so it starts without one.
EncodeTiled find_encoder() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found{};
  constexpr unsigned kSince = 12000;  // the driver's version that has it
  const cudaError_t code = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function,
                                                            kSince, cudaEnableDefault, &found);
  const bool ok = code == cudaSuccess && found == cudaDriverEntryPointSuccess;
  return ok ? reinterpret_cast<EncodeTiled>(function) : nullptr;
}

}  // namespace

Status make_tensor_map(const TensorMapSpec& spec, CUtensorMap* out) {
  static const EncodeTiled encode = find_encoder();
  if (encode == nullptr) return {StatusCode::device, "the driver cannot encode tensor maps"};
  if (reinterpret_cast<uintptr_t>(spec.data) % 16 != 0) {
    return {StatusCode::unsupported, "data that does not begin at a multiple of 16 bytes"};
  }
  for (const uint64_t stride : spec.stride) {
    if (stride % 16 != 0 || stride >= uint64_t{1} << 40) {
      return {StatusCode::unsupported, "strides that are no multiples of 16 bytes below 1 TiB"};
    }
  }
  constexpr std::array<cuuint32_t, 5> kEveryElement = {1, 1, 1, 1, 1};
  const CUresult code = encode(
      out, spec.type, 5, const_cast<void*>(spec.data), spec.size.data(), spec.stride.data(),
      spec.box.data(), kEveryElement.data(), CU_TENSOR_MAP_INTERLEAVE_NONE,
      spec.swizzle == Swizzle::none ? CU_TENSOR_MAP_SWIZZLE_NONE : CU_TENSOR_MAP_SWIZZLE_128B,
      CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (code != CUDA_SUCCESS) return {StatusCode::invalid, "the driver refused a tensor map"};
  return {};
}

}  // namespace fovea::kernels
