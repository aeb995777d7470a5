// The functions of the CUDA runtime that the project calls, for a device that is this processor:
// compute capability 9.0, two multiprocessors. Memory ends where nothing may be touched, and is
// no number before it is written.

#include <sys/mman.h>

#include <cstring>
#include <map>

#include <cuda.h>
#include <cuda_runtime.h>

#include "tests/emulator/simt.h"
#include "tests/emulator/tensor_map.h"

namespace {

constexpr size_t kPage = 4096;

struct Mapping {
  void* begin;
  size_t bytes;
};
std::map<void*, Mapping>& mappings() {
  static std::map<void*, Mapping> out;
  return out;
}

using fovea::emulator::TensorMap;

CUresult encode_tiled(CUtensorMap* out, CUtensorMapDataType type, cuuint32_t rank, void* data,
                      const cuuint64_t* size, const cuuint64_t* stride, const cuuint32_t* box,
                      const cuuint32_t* element_stride, CUtensorMapInterleave interleave,
                      CUtensorMapSwizzle swizzle, CUtensorMapL2promotion,
                      CUtensorMapFloatOOBfill fill) {
  if (rank != 5 || interleave != CU_TENSOR_MAP_INTERLEAVE_NONE ||
      fill != CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE || reinterpret_cast<uintptr_t>(out) % 64 != 0) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  TensorMap map{};
  map.data = static_cast<char*>(data);
  map.type = type, map.is_swizzled = swizzle == CU_TENSOR_MAP_SWIZZLE_128B;
  map.mark = TensorMap::kMark;
  for (size_t d = 0; d < 5; ++d) {
    if (size[d] == 0 || size[d] > uint64_t{1} << 32 || box[d] == 0 || box[d] > 256 ||
        element_stride[d] != 1 || (d > 0 && (stride[d - 1] % 16 != 0 || stride[d - 1] == 0))) {
      return CUDA_ERROR_INVALID_VALUE;
    }
    map.size[d] = static_cast<uint32_t>(size[d]), map.box[d] = box[d];
    if (d > 0) map.stride[d - 1] = stride[d - 1];
  }
  std::memset(out, 0, sizeof *out);
  std::memcpy(static_cast<void*>(out), &map, sizeof map);
  return CUDA_SUCCESS;
}

}  // namespace

extern "C" {

cudaError_t cudaMalloc(void** out, size_t bytes) {
  const size_t pages = (bytes + kPage - 1) / kPage * kPage + kPage;
  void* const begin =
      mmap(nullptr, pages, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (begin == MAP_FAILED) return cudaErrorMemoryAllocation;
  char* const end = static_cast<char*>(begin) + pages - kPage;
  mprotect(end, kPage, PROT_NONE);
  // At a multiple of 16, as kernels want it; what is behind the end then is no number.
  char* const at = end - (bytes + 15) / 16 * 16;
  std::memset(at, 0xff, static_cast<size_t>(end - at));
  mappings()[at] = {begin, pages};
  *out = at;
  return cudaSuccess;
}
cudaError_t cudaFree(void* at) {
  const auto found = mappings().find(at);
  if (found == mappings().end()) return at == nullptr ? cudaSuccess : cudaErrorInvalidValue;
  munmap(found->second.begin, found->second.bytes);
  mappings().erase(found);
  return cudaSuccess;
}
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemset(void* to, int value, size_t bytes) {
  std::memset(to, value, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  return cudaMemset(to, value, bytes);
}
cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
cudaError_t cudaGetLastError() { return cudaSuccess; }
cudaError_t cudaSetDevice(int) { return cudaSuccess; }
cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
const char* cudaGetErrorString(cudaError_t) { return "an error of the emulator"; }
cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int value) {
  return static_cast<size_t>(value) <= fovea::emulator::kSharedBytes ? cudaSuccess
                                                                     : cudaErrorInvalidValue;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor:
      *value = 9;
      break;
    case cudaDevAttrComputeCapabilityMinor:
      *value = 0;
      break;
    case cudaDevAttrL2CacheSize:
      *value = 50 << 20;
      break;
    case cudaDevAttrMultiProcessorCount:
      *value = 2;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = 227 * 1024;
      break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = 228 * 1024;
      break;
    case cudaDevAttrReservedSharedMemoryPerBlock:
      *value = 1024;
      break;
    default:
      return cudaErrorInvalidValue;
  }
  return cudaSuccess;
}
cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned,
                                             unsigned long long,
                                             cudaDriverEntryPointQueryResult* found) {
  const bool known = std::strcmp(name, "cuTensorMapEncodeTiled") == 0;
  *function = known ? reinterpret_cast<void*>(&encode_tiled) : nullptr;
  if (found != nullptr) {
    *found = known ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  }
  return cudaSuccess;
}

}  // extern "C"
