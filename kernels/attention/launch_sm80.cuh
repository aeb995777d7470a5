#pragma once

#include <algorithm>
#include <limits>

#include "kernels/attention/forward_sm80.cuh"
#include "kernels/common/launch.cuh"

// How a shape of the forward kernel is started; for one source a number of channels or a few.

namespace fovea::kernels::sm80 {

/// Bytes of shared memory.
struct SharedMemory {
  int block = 0;      // that a block may have
  int processor = 0;  // of a multiprocessor
  int reserved = 0;   // that each block takes besides
};

/// Slots of the ring where as many of `blocks` as can have two are to fit on a multiprocessor; 0:
/// there is no memory for one.
constexpr int ring_slots(const SharedMemory& memory, int blocks, int fixed_bytes, int slot_bytes) {
  for (; blocks > 0; --blocks) {
    const int bytes = std::min(memory.block, memory.processor / blocks - memory.reserved);
    const int slots = (bytes - fixed_bytes) / slot_bytes;
    if (bytes > fixed_bytes && slots >= 2) return std::min(slots, kMostSlots);
  }
  return 0;
}

inline Status shared_memory(int device, SharedMemory* out) {
  cudaError_t code =
      cudaDeviceGetAttribute(&out->block, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (code == cudaSuccess) {
    code = cudaDeviceGetAttribute(&out->processor, cudaDevAttrMaxSharedMemoryPerMultiprocessor,
                                  device);
  }
  if (code == cudaSuccess) {
    code = cudaDeviceGetAttribute(&out->reserved, cudaDevAttrReservedSharedMemoryPerBlock, device);
  }
  if (code != cudaSuccess) return {StatusCode::device, cudaGetErrorString(code)};
  return {};
}

template <typename Shape, Type kType>
Status launch(const CudaAttentionArgs& args, CudaTarget target) {
  const int64_t tiles = args.lists.tiles != nullptr
                            ? args.lists.tiles_per_map
                            : (args.q_len + Shape::kQueries - 1) / Shape::kQueries;
  const int64_t num_tiles = tiles * args.heads * args.batch;
  if (num_tiles > std::numeric_limits<int32_t>::max()) {
    return {StatusCode::unsupported, "more than 2^31 tiles of queries"};
  }
  SharedMemory memory;
  if (const Status status = shared_memory(target.device, &memory); !status.ok()) return status;
  constexpr double kLog2e = 1.4426950408889634;
  ForwardParams params;
  params.args = args;
  params.tiles = static_cast<int>(tiles);
  params.slots =
      ring_slots(memory, Shape::kBlocks, sizeof(ForwardMemory<Shape>), Shape::kSlotBytes);
  params.scale_log2 = static_cast<float>(args.sm_scale * kLog2e);
  params.bias_scale = static_cast<float>(1 / args.sm_scale);
  if (params.slots == 0) return {StatusCode::unsupported, "takes 99 KB of shared memory a block"};
  const size_t bytes = sizeof(ForwardMemory<Shape>) + params.slots * Shape::kSlotBytes;
  return launch_kernel(forward_kernel<Shape, kType>,
                       {static_cast<unsigned>(num_tiles), Shape::kThreads, bytes, target.stream},
                       params);
}

/// With so many channels a head; integers are q_int8 and k_int8.
template <int kDim, bool kIntegers = false>
Status launch_dim(const CudaAttentionArgs& args, CudaTarget target) {
  using Large = ForwardShape<kDim, 128, kIntegers>;
  using Small = ForwardShape<kDim, 64, kIntegers>;
  const bool large = args.lists.tiles != nullptr ? args.tile.queries == 128 : args.q_len > 64;
  if (args.v.dtype == DType::bf16) {
    return large ? launch<Large, Type::bf16>(args, target)
                 : launch<Small, Type::bf16>(args, target);
  }
  return large ? launch<Large, Type::f16>(args, target) : launch<Small, Type::f16>(args, target);
}

}  // namespace fovea::kernels::sm80
