#include "tests/emulator/tensor_map.h"

#include <cstring>
#include <string>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "tests/emulator/simt.h"

namespace fovea::emulator {
namespace {

template <typename T>
void add_to(char* to, const char* from) {
  T a, b;
  std::memcpy(&a, to, sizeof a), std::memcpy(&b, from, sizeof b);
  a = static_cast<T>(static_cast<float>(a) + static_cast<float>(b));
  std::memcpy(to, &a, sizeof a);
}

}  // namespace

TensorMap TensorMap::of(const CUtensorMap& map) {
  TensorMap out;
  std::memcpy(static_cast<void*>(&out), &map, sizeof out);
  if (out.mark != kMark) fail("a tensor map was not made");
  return out;
}

int TensorMap::element_bytes() const {
  switch (type) {
    case CU_TENSOR_MAP_DATA_TYPE_UINT8:
      return 1;
    case CU_TENSOR_MAP_DATA_TYPE_FLOAT16:
    case CU_TENSOR_MAP_DATA_TYPE_BFLOAT16:
    case CU_TENSOR_MAP_DATA_TYPE_UINT16:
      return 2;
    case CU_TENSOR_MAP_DATA_TYPE_INT32:
    case CU_TENSOR_MAP_DATA_TYPE_UINT32:
    case CU_TENSOR_MAP_DATA_TYPE_FLOAT32:
      return 4;
    default:
      fail("elements of another type");
  }
}

uint32_t TensorMap::bytes() const {
  uint32_t out = static_cast<uint32_t>(element_bytes());
  for (const uint32_t count : box) out *= count;
  return out;
}

void TensorMap::check(std::array<int, 5> corner, const void* shared) const {
  if (corner[0] * element_bytes() % 16 != 0) {
    fail("a copy begins at " + std::to_string(corner[0]) + ", no multiple of 16 bytes");
  }
  // The pattern is one of addresses: it begins anew every 1024 bytes.
  if (reinterpret_cast<uintptr_t>(shared) % 128 != 0) fail("a copy at no multiple of 128 bytes");
  shared_address(shared);
}

// visit(place in shared memory, place in the tensor or null where it is outside)
template <typename Visit>
void TensorMap::for_each(std::array<int, 5> corner, const Visit& visit) const {
  const auto bytes = static_cast<uint32_t>(element_bytes());
  uint32_t at = 0;
  std::array<uint32_t, 5> i;
  for (i[4] = 0; i[4] < box[4]; ++i[4]) {
    for (i[3] = 0; i[3] < box[3]; ++i[3]) {
      for (i[2] = 0; i[2] < box[2]; ++i[2]) {
        for (i[1] = 0; i[1] < box[1]; ++i[1]) {
          for (i[0] = 0; i[0] < box[0]; ++i[0], at += bytes) {
            bool inside = true;
            uint64_t place = 0;
            for (size_t d = 0; d < 5; ++d) {
              const int64_t x = int64_t{corner[d]} + i[d];
              inside = inside && x >= 0 && x < int64_t{size[d]};
              place += static_cast<uint64_t>(x) * (d == 0 ? bytes : stride[d - 1]);
            }
            visit(at, inside ? data + place : nullptr);
          }
        }
      }
    }
  }
}

namespace {

// Place `at` of a copy to or from `shared`.
template <typename Char>
Char* place_of(Char* shared, uint32_t at, bool is_swizzled) {
  if (!is_swizzled) return shared + at;
  const uintptr_t address = reinterpret_cast<uintptr_t>(shared) + at;
  return reinterpret_cast<Char*>(address ^ ((address >> 7 & 7) << 4));
}

}  // namespace

void TensorMap::load(std::array<int, 5> corner, char* shared) const {
  const auto bytes = static_cast<size_t>(element_bytes());
  for_each(corner, [&](uint32_t at, const char* from) {
    char* const to = place_of(shared, at, is_swizzled);
    from == nullptr ? std::memset(to, 0, bytes) : std::memcpy(to, from, bytes);
  });
}

void TensorMap::store(std::array<int, 5> corner, const char* shared, bool adds) const {
  const auto bytes = static_cast<size_t>(element_bytes());
  for_each(corner, [&](uint32_t at, char* to) {
    const char* const from = place_of(shared, at, is_swizzled);
    if (to == nullptr) return;
    if (!adds) {
      std::memcpy(to, from, bytes);
    } else if (type == CU_TENSOR_MAP_DATA_TYPE_FLOAT32) {
      add_to<float>(to, from);
    } else if (type == CU_TENSOR_MAP_DATA_TYPE_BFLOAT16) {
      add_to<__nv_bfloat16>(to, from);
    } else {
      fail("additions of another type");
    }
  });
}

}  // namespace fovea::emulator
