#pragma once

#include <cstdint>

// One instruction a function, for compute capability 9.0a. Kernels that use them keep their bodies
// behind FOVEA_SM90A, as the same file is compiled for other architectures too.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define FOVEA_SM90A 1
#endif

namespace fovea::kernels::ptx {

/// Where a pointer into shared memory points, as instructions want it.
__device__ inline uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

/// The dynamic shared memory of a block; without other variables there it begins at a multiple of
/// 1024, behind the system's.
__device__ inline char* dynamic_memory() {
  extern __shared__ __align__(1024) char dynamic[];
  return dynamic;
}
/// The same where the compiler must not know it: kernels that are short of registers would make
/// addresses anew at each use.
__device__ inline char* hidden_dynamic_memory() {
  extern __shared__ char hidden[];
  return hidden + (1024 - shared_address(hidden) % 1024) % 1024;
}

// ---- Barriers in shared memory that count arrivals and bytes (mbarrier) -------------------------

/// A phase ends when `arrivals` threads have arrived and all announced bytes are there.
__device__ inline void barrier_init(uint64_t* barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(arrivals)
               : "memory");
}

/// Makes initialized barriers visible to the copy engine; __syncthreads() comes after it.
__device__ inline void fence_barrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ inline void arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier))
               : "memory");
}

/// Arrives, and announces that copies will bring `bytes`.
__device__ inline void arrive_expect(uint64_t* barrier, uint32_t bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
      "r"(bytes)
      : "memory");
}

/// Waits for the end of the phase of that parity: 0 for the first, then 1, 0, 1, ... A barrier that
/// was just made counts as one whose phase of parity 1 has ended.
__device__ inline void wait(uint64_t* barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra.uni end;\n"
      "bra.uni again;\n"
      "end:\n"
      "}\n" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}

// ---- Threads ------------------------------------------------------------------------------------

/// Barrier number `id` (1 to 15; 0 is __syncthreads) of `threads` threads, whole warps.
__device__ inline void named_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ inline void named_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

/// Registers of each thread of this warpgroup from here on; for `__launch_bounds__(n, 1)` only.
template <int kRegisters>
__device__ inline void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ inline void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

/// One thread of the warp, all of which must be here.
__device__ inline bool elect_one() {
  uint32_t elected;
  asm volatile(
      "{\n"
      ".reg .pred one;\n"
      "elect.sync _|one, 0xffffffff;\n"
      "selp.u32 %0, 1, 0, one;\n"
      "}\n"
      : "=r"(elected));
  return elected != 0;
}

/// Shared memory that threads wrote is what the copy engine and the matrix units see; each writing
/// thread calls it, a barrier comes after it.
__device__ inline void fence_async_proxy() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// ---- Blocks in turns ----------------------------------------------------------------------------

/// Waits until blocks have raised the counter to `value`; what their copy engines had brought into
/// global memory before is what this thread's one finds there. Those blocks must be running, or be
/// sure to.
__device__ inline void wait_for_turn(const int32_t* counter, int32_t value) {
  while (true) {
    int32_t now;
    asm volatile("ld.acquire.gpu.global.b32 %0, [%1];" : "=r"(now) : "l"(counter) : "memory");
    if (now == value) break;
    __nanosleep(32);
  }
  asm volatile("fence.proxy.async.global;" ::: "memory");
}
/// One more; `bulk_wait` comes before it.
__device__ inline void pass_turn(int32_t* counter) {
  asm volatile(
      "fence.proxy.async.global;\n"
      "red.release.gpu.global.add.s32 [%0], 1;" ::"l"(counter)
      : "memory");
}

// ---- Numbers ------------------------------------------------------------------------------------

/// 2^x, to about 2 ulp; 0 for -inf.
__device__ inline float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// Two numbers in 16 bits each, the first in the low half.
__device__ inline uint32_t pack_bf16(float low, float high) {
  uint32_t bits;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  return bits;
}
__device__ inline uint32_t pack_f16(float low, float high) {
  uint32_t bits;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  return bits;
}

/// Four numbers as e4m3, the first in the lowest byte; what is too large becomes 448.
__device__ inline uint32_t pack_e4m3(float x0, float x1, float x2, float x3) {
  uint32_t bits;
  asm("{\n"
      ".reg .b16 low, high;\n"
      "cvt.rn.satfinite.e4m3x2.f32 low, %2, %1;\n"
      "cvt.rn.satfinite.e4m3x2.f32 high, %4, %3;\n"
      "mov.b32 %0, {low, high};\n"
      "}\n"
      : "=r"(bits)
      : "f"(x0), "f"(x1), "f"(x2), "f"(x3));
  return bits;
}

/// The compiler knows nothing of what the register holds behind this place: it is kept, not made
/// anew, and not moved.
__device__ inline void opaque(uint32_t& x) { asm volatile("" : "+r"(x)); }
__device__ inline void opaque(int& x) { asm volatile("" : "+r"(x)); }
__device__ inline void opaque(float& x) { asm volatile("" : "+f"(x)::"memory"); }

/// Four 8x8 matrices of 16-bit numbers: lane l gives the address of row l % 8 of matrix l / 8, and
/// holds of each matrix entries 2 (l % 4) and + 1 of row l / 4.
__device__ inline void store_matrices(uint32_t row_address, const uint32_t (&value)[4]) {
  asm volatile(
      "stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row_address),
      "r"(value[0]), "r"(value[1]), "r"(value[2]), "r"(value[3])
      : "memory");
}
/// The same with each matrix transposed: the row at an address is a column of what lanes hold.
__device__ inline void store_transposed(uint32_t row_address, const uint32_t (&value)[4]) {
  asm volatile(
      "stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row_address),
      "r"(value[0]), "r"(value[1]), "r"(value[2]), "r"(value[3])
      : "memory");
}

// ---- Contiguous copies by the copy engine -------------------------------------------------------
// Addresses and sizes are multiples of 16 bytes.

__device__ inline void bulk_load(void* shared, const void* global, uint32_t bytes,
                                 uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(shared_address(shared)),
      "l"(global), "r"(bytes), "r"(shared_address(barrier))
      : "memory");
}

__device__ inline void bulk_store(void* global, const void* shared, uint32_t bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(global),
               "r"(shared_address(shared)), "r"(bytes)
               : "memory");
}

/// global += shared, fp32 element by element.
__device__ inline void bulk_add(float* global, const float* shared, uint32_t bytes) {
  asm volatile(
      "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(global),
      "r"(shared_address(shared)), "r"(bytes)
      : "memory");
}

/// Stores and additions so far form a group.
__device__ inline void bulk_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }

/// Until all but the last `kGroups` groups have read their shared memory.
template <int kGroups>
__device__ inline void bulk_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kGroups) : "memory");
}
/// Until all but the last `kGroups` groups are in global memory.
template <int kGroups>
__device__ inline void bulk_wait() {
  asm volatile("cp.async.bulk.wait_group %0;" ::"n"(kGroups) : "memory");
}

}  // namespace fovea::kernels::ptx
