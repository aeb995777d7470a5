#pragma once

#include <cuda.h>

#include "kernels/common/ptx.cuh"
#include "tests/emulator/tensor_map.h"

// kernels/common/tma.cuh on the CPU.

namespace fovea::kernels::tma {

struct Corner {
  int x, y, z, u, w;
  std::array<int, 5> all() const { return {x, y, z, u, w}; }
};

inline uint64_t evict_first() { return 1; }
inline uint64_t evict_last() { return 2; }
inline void prefetch(const CUtensorMap&) {}

inline void load(void* shared, const CUtensorMap& map, Corner at, uint64_t* barrier,
                 uint64_t policy) {
  if (policy != 1 && policy != 2) emulator::fail("a copy without a policy");
  const auto box = emulator::TensorMap::of(map);
  box.check(at.all(), shared);
  emulator::start_copy([=] {
    box.load(at.all(), static_cast<char*>(shared));
    ptx::bytes_came(barrier, box.bytes());
  });
}
inline void store(const CUtensorMap& map, Corner at, const void* shared) {
  const auto box = emulator::TensorMap::of(map);
  box.check(at.all(), shared);
  emulator::add_to_group(emulator::Stream::stores,
                         [=] { box.store(at.all(), static_cast<const char*>(shared), false); });
}
inline void add(const CUtensorMap& map, Corner at, const void* shared) {
  const auto box = emulator::TensorMap::of(map);
  box.check(at.all(), shared);
  emulator::add_to_group(emulator::Stream::stores,
                         [=] { box.store(at.all(), static_cast<const char*>(shared), true); });
}

}  // namespace fovea::kernels::tma
