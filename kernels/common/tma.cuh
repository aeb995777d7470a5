#pragma once

#include <cuda.h>

#include "kernels/common/ptx.cuh"

// Copies of boxes between a tensor in global memory and shared memory, by one thread. Maps are
// `const __grid_constant__ CUtensorMap` parameters of the kernel, all of them of five dimensions:
// what has fewer has some of size 1.

namespace fovea::kernels::tma {

/// Where a box begins, in elements; the contiguous dimension first. Of a load it may lie outside of
/// the tensor; of a store not before its start.
struct Corner {
  int x, y, z, u, w;
};

/// Of what a load leaves in the L2 cache: data read once should go first, data that many blocks
/// read last.
__device__ inline uint64_t evict_first() {
  uint64_t policy;
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
__device__ inline uint64_t evict_last() {
  uint64_t policy;
  asm volatile("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

/// The map is in the cache when it is first used.
__device__ inline void prefetch(const CUtensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

/// Loads a box; its bytes, also those outside of the tensor, count at `barrier`.
__device__ inline void load(void* shared, const CUtensorMap& map, Corner at, uint64_t* barrier,
                            uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      ".L2::cache_hint [%0], [%1, {%4, %5, %6, %7, %8}], [%2], %3;" ::"r"(
          ptx::shared_address(shared)),
      "l"(&map), "r"(ptx::shared_address(barrier)), "l"(policy), "r"(at.x), "r"(at.y), "r"(at.z),
      "r"(at.u), "r"(at.w)
      : "memory");
}

/// Stores a box, see `ptx::bulk_commit`. Shared memory that threads wrote needs
/// `ptx::fence_async_proxy` and a barrier first.
__device__ inline void store(const CUtensorMap& map, Corner at, const void* shared) {
  asm volatile(
      "cp.async.bulk.tensor.5d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4, %5, %6}], "
      "[%1];" ::"l"(&map),
      "r"(ptx::shared_address(shared)), "r"(at.x), "r"(at.y), "r"(at.z), "r"(at.u), "r"(at.w)
      : "memory");
}

/// tensor += box, element by element.
__device__ inline void add(const CUtensorMap& map, Corner at, const void* shared) {
  asm volatile(
      "cp.reduce.async.bulk.tensor.5d.global.shared::cta.add.tile.bulk_group "
      "[%0, {%2, %3, %4, %5, %6}], [%1];" ::"l"(&map),
      "r"(ptx::shared_address(shared)), "r"(at.x), "r"(at.y), "r"(at.z), "r"(at.u), "r"(at.w)
      : "memory");
}

}  // namespace fovea::kernels::tma
