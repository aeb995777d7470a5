#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>

#include <cuda_fp8.h>

#include "tests/emulator/simt.h"

// kernels/common/ptx.cuh on the CPU.

#define FOVEA_SM90A 1

namespace fovea::kernels::ptx {

inline char* dynamic_memory() { return emulator::dynamic_memory(); }
inline char* hidden_dynamic_memory() { return emulator::dynamic_memory(); }
inline uint32_t shared_address(const void* pointer) { return emulator::shared_address(pointer); }

// ---- Barriers -----------------------------------------------------------------------------------

/// What a barrier's 64 bits hold.
struct BarrierBits {
  int64_t bytes : 32;  ///< announced and not there yet
  int64_t pending : 13, arrivals : 13;
  uint64_t parity : 1;
  uint64_t mark : 5;  ///< kMark: it was made

  static constexpr uint64_t kMark = 21;
  static BarrierBits of(const uint64_t* barrier) {
    BarrierBits out;
    std::memcpy(&out, barrier, sizeof out);
    if (out.mark != kMark) emulator::fail("a barrier was not made");
    return out;
  }
  void write(uint64_t* barrier) {
    if (pending == 0 && bytes == 0) pending = arrivals, parity ^= 1;
    if (pending < 0 || (pending == 0 && bytes < 0)) emulator::fail("more arrives than is awaited");
    std::memcpy(barrier, this, sizeof *this);
  }
};
static_assert(sizeof(BarrierBits) == sizeof(uint64_t));

inline void barrier_init(uint64_t* barrier, uint32_t arrivals) {
  BarrierBits bits{0, static_cast<int>(arrivals), static_cast<int>(arrivals), 0,
                   BarrierBits::kMark};
  std::memcpy(barrier, &bits, sizeof bits);
}
inline void fence_barrier_init() {}
inline void arrive(uint64_t* barrier) {
  BarrierBits bits = BarrierBits::of(barrier);
  --bits.pending;
  bits.write(barrier);
}
inline void arrive_expect(uint64_t* barrier, uint32_t bytes) {
  BarrierBits bits = BarrierBits::of(barrier);
  bits.bytes += bytes, --bits.pending;
  bits.write(barrier);
}
/// By the copy engine.
inline void bytes_came(uint64_t* barrier, uint32_t bytes) {
  BarrierBits bits = BarrierBits::of(barrier);
  bits.bytes -= bytes;
  bits.write(barrier);
}
inline void wait(uint64_t* barrier, uint32_t parity) {
  emulator::wait_until("a barrier of copies",
                       [=] { return BarrierBits::of(barrier).parity != parity; });
}

// ---- Threads ------------------------------------------------------------------------------------

inline void named_sync(int id, int threads) { emulator::sync(id, threads, true); }
inline void named_arrive(int id, int threads) { emulator::sync(id, threads, false); }
template <int kRegisters>
void take_registers() {}
template <int kRegisters>
void give_registers() {}
inline bool elect_one() {
  __syncwarp();
  return emulator::thread_index() % 32 == 0;
}
inline void fence_async_proxy() {}
inline void opaque(uint32_t&) {}
inline void opaque(int&) {}
inline void opaque(float&) {}

// ---- Blocks in turns ----------------------------------------------------------------------------

inline void wait_for_turn(const int32_t* counter, int32_t value) {
  emulator::wait_for_blocks([=] { return *counter == value; });
}
inline void pass_turn(int32_t* counter) { ++*counter; }

// ---- Numbers ------------------------------------------------------------------------------------

inline float exp2_approx(float x) {
  const float y = std::exp2(x);
  return std::fpclassify(y) == FP_SUBNORMAL ? 0 : y;
}
inline uint32_t pack_bf16(float low, float high) {
  return emulator::bits_as<uint32_t>(__floats2bfloat162_rn(low, high));
}
inline uint32_t pack_f16(float low, float high) {
  return emulator::bits_as<uint32_t>(__floats2half2_rn(low, high));
}
inline uint32_t pack_e4m3(float x0, float x1, float x2, float x3) {
  return emulator::bits_as<uint32_t>(__nv_fp8x4_e4m3(make_float4(x0, x1, x2, x3)));
}

/// Addresses of rows and what each lane holds of the matrices.
inline void store_matrices(uint32_t row_address, const uint32_t (&value)[4]) {
  struct Lane {
    uint32_t address, value[4];
  };
  const Lane own{row_address, {value[0], value[1], value[2], value[3]}};
  emulator::collected<int>(0xffffffff, "stmatrix", own, [](int lane, const auto& in) {
    for (int matrix = 0; matrix < 4; ++matrix) {
      char* const row = emulator::shared_pointer(in(matrix * 8 + lane / 4).address);
      std::memcpy(row + lane % 4 * 4, &in(lane).value[matrix], 4);
    }
    return 0;
  });
}

inline void store_transposed(uint32_t row_address, const uint32_t (&value)[4]) {
  struct Lane {
    uint32_t address, value[4];
  };
  const Lane own{row_address, {value[0], value[1], value[2], value[3]}};
  emulator::collected<int>(0xffffffff, "stmatrix.trans", own, [](int lane, const auto& in) {
    for (int matrix = 0; matrix < 4; ++matrix) {
      for (int i = 0; i < 2; ++i) {
        char* const row = emulator::shared_pointer(in(matrix * 8 + lane % 4 * 2 + i).address);
        const auto bits = static_cast<uint16_t>(in(lane).value[matrix] >> 16 * i);
        std::memcpy(row + lane / 4 * 2, &bits, 2);
      }
    }
    return 0;
  });
}

// ---- Contiguous copies --------------------------------------------------------------------------

inline void bulk_load(void* shared, const void* global, uint32_t bytes, uint64_t* barrier) {
  emulator::start_copy([=] {
    std::memcpy(shared, global, bytes);
    bytes_came(barrier, bytes);
  });
}
inline void bulk_store(void* global, const void* shared, uint32_t bytes) {
  emulator::add_to_group(emulator::Stream::stores, [=] { std::memcpy(global, shared, bytes); });
}
inline void bulk_add(float* global, const float* shared, uint32_t bytes) {
  emulator::add_to_group(emulator::Stream::stores, [=] {
    for (uint32_t i = 0; i < bytes / 4; ++i) global[i] += shared[i];
  });
}
inline void bulk_commit() { emulator::end_group(emulator::Stream::stores); }
template <int kGroups>
void bulk_wait_read() {
  emulator::finish_groups(emulator::Stream::stores, kGroups);
}
template <int kGroups>
void bulk_wait() {
  emulator::finish_groups(emulator::Stream::stores, kGroups);
}

}  // namespace fovea::kernels::ptx
