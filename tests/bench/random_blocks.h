#pragma once

#include <cstdint>

// Random maps of blocks, the same ones in C++ and in flex_attention_bench.py.

namespace fovea::bench {

inline uint64_t mixed(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

/// Whether block number `index` of all (heads, rows, columns, the last one fastest) is kept.
inline bool keeps(uint64_t seed, uint64_t index, double density) {
  const uint64_t bits = mixed(index + 1 + seed * 0x9e3779b97f4a7c15ull);
  return static_cast<double>(bits >> 11) * 0x1p-53 < density;
}

}  // namespace fovea::bench
