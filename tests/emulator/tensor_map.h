#pragma once

#include <array>
#include <cstdint>

#include <cuda.h>

namespace fovea::emulator {

/// A tensor of five dimensions and a box of it, as the emulated driver writes them.
struct TensorMap {
  static constexpr uint32_t kMark = 0x7e450a11;

  char* data;
  std::array<uint64_t, 4> stride;  ///< bytes, of dimensions 1 to 4
  std::array<uint32_t, 5> size, box;
  CUtensorMapDataType type;
  bool is_swizzled;
  uint32_t mark;

  static TensorMap of(const CUtensorMap& map);
  uint32_t bytes() const;  ///< of a box
  /// Faults where the hardware would.
  void check(std::array<int, 5> corner, const void* shared) const;
  void load(std::array<int, 5> corner, char* shared) const;
  void store(std::array<int, 5> corner, const char* shared, bool adds) const;

 private:
  int element_bytes() const;
  template <typename Visit>
  void for_each(std::array<int, 5> corner, const Visit& visit) const;
};
static_assert(sizeof(TensorMap) <= sizeof(CUtensorMap));

}  // namespace fovea::emulator
