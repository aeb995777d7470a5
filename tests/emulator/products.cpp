#include "tests/emulator/products.h"

#include <cstring>
#include <vector>

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

namespace fovea::emulator {
namespace {

constexpr int kRows = 64, kStepBytes = 32;

int bytes_of(Product::Type type) {
  return type == Product::Type::bf16 || type == Product::Type::f16 ? 2 : 1;
}

template <typename T>
T read(const void* at) {
  T out;
  std::memcpy(&out, at, sizeof out);
  return out;
}

// The 128-byte swizzle: bits 4 to 6 of an address change with bits 7 to 9.
const char* swizzled(uint32_t address) {
  return shared_pointer(address ^ ((address >> 7 & 7) << 4));
}

uint32_t begin_of(uint32_t matrix) { return (matrix & 0x3fff) << 4; }

// Byte `byte` of row `row` along K, of a matrix with groups of 8 rows 1024 bytes apart.
const char* k_major(uint32_t matrix, int row, int byte) {
  return swizzled(begin_of(matrix) + static_cast<uint32_t>(row / 8 * 1024 + row % 8 * 128 + byte));
}

// Column n of row k, 16-bit numbers, panels of 64 columns.
const char* n_major(uint32_t matrix, int k, int n) {
  const uint32_t panel = (matrix >> 16 & 0x3fff) << 4;
  return swizzled(begin_of(matrix) + static_cast<uint32_t>(n / 64) * panel +
                  static_cast<uint32_t>(k / 8 * 1024 + k % 8 * 128 + n % 64 * 2));
}

// Hopper's sums of 8-bit floats have 13 bits of fraction, what is beyond is cut off (DeepSeek-V3,
// arXiv:2412.19437, section 3.3.2, names 14 bits).
constexpr int kFractionOfSums = 13;

float cut_off(float x) {
  constexpr uint32_t kLost = (1u << (23 - kFractionOfSums)) - 1;
  return bits_as<float>(bits_as<uint32_t>(x) & ~kLost);
}

// What the last bit of a sum is worth whose largest addend is `top`.
float last_bit(float top) {
  return top == 0 ? 1 : std::ldexp(1.0f, std::ilogb(top) - kFractionOfSums);
}

// sums = A B; of 8-bit integers they are exact in fp32 too.
#if defined(__x86_64__)
__attribute__((target_clones("arch=haswell", "default")))
#endif
void multiply(const float* a, const float* b, int rows, int steps, int columns, float* sums) {
  for (int row = 0; row < rows; ++row) {
    float* const sum = sums + row * columns;
    for (int n = 0; n < columns; ++n) sum[n] = 0;
    for (int k = 0; k < steps; ++k) {
      const float factor = a[row * steps + k];
      const float* const from = b + k * columns;
      for (int n = 0; n < columns; ++n) sum[n] += factor * from[n];
    }
  }
}

// sums += A B as 8-bit floats are added: all products of a step and the sum before lose what is
// below the last bit of the largest of them.
#if defined(__x86_64__)
__attribute__((target_clones("arch=haswell", "default")))
#endif
void add_e4m3(const float* a, const float* b, int rows, int steps, int columns, float* sums) {
  std::vector<float> top(static_cast<size_t>(columns)), unit(top.size());
  for (int row = 0; row < rows; ++row) {
    float* const sum = sums + row * columns;
    for (int n = 0; n < columns; ++n) top[n] = std::fabs(sum[n]);
    for (int k = 0; k < steps; ++k) {
      const float factor = a[row * steps + k];
      const float* const from = b + k * columns;
      for (int n = 0; n < columns; ++n) {
        const float x = std::fabs(factor * from[n]);
        top[n] = top[n] < x ? x : top[n];
      }
    }
    for (int n = 0; n < columns; ++n) unit[n] = last_bit(top[n]), top[n] = 1 / unit[n];
    for (int n = 0; n < columns; ++n) sum[n] = std::trunc(sum[n] * top[n]) * unit[n];
    for (int k = 0; k < steps; ++k) {
      const float factor = a[row * steps + k];
      const float* const from = b + k * columns;
      for (int n = 0; n < columns; ++n) {
        sum[n] += std::trunc(factor * from[n] * top[n]) * unit[n];
      }
    }
    for (int n = 0; n < columns; ++n) sum[n] = cut_off(sum[n]);
  }
}

}  // namespace

float number_at(Product::Type type, const void* at) {
  switch (type) {
    case Product::Type::bf16:
      return bits_as<float>(uint32_t{read<uint16_t>(at)} << 16);
    case Product::Type::f16:
      return __half2float(read<__half>(at));
    case Product::Type::e4m3:
      return static_cast<float>(read<__nv_fp8_e4m3>(at));
    case Product::Type::s8:
      return read<int8_t>(at);
  }
  return 0;
}

void ProductWork::add(int thread, void* c, const uint32_t* a) {
  Part& part = parts_[static_cast<size_t>(thread)];
  part.c = c;
  if (a != nullptr) std::memcpy(part.a.data(), a, sizeof part.a);
  ++threads;
}

void ProductWork::run() const {
  const int steps = kStepBytes / bytes_of(product.type), columns = product.columns;
  std::vector<float> a(static_cast<size_t>(kRows * steps));
  std::vector<float> b(static_cast<size_t>(steps * columns));
  std::vector<float> sums(static_cast<size_t>(kRows * columns));
  read_a(a.data(), steps);
  read_b(b.data(), steps);
  const auto for_each = [&](auto&& visit) {
    for (int row = 0; row < kRows; ++row) {
      for (int n = 0; n < columns; ++n) {
        const int thread = row / 16 * 32 + row % 8 * 4 + n % 8 / 2;
        const int i = n / 8 * 4 + row / 8 % 2 * 2 + n % 2;
        visit(parts_[thread].c, i, sums[row * columns + n]);
      }
    }
  };
  if (product.type == Product::Type::e4m3) {
    for_each([&](const void* c, int i, float& sum) {
      sum = product.keep != 0 ? static_cast<const float*>(c)[i] : 0;
    });
    add_e4m3(a.data(), b.data(), kRows, steps, columns, sums.data());
    for_each([&](void* c, int i, float sum) { static_cast<float*>(c)[i] = sum; });
  } else {
    multiply(a.data(), b.data(), kRows, steps, columns, sums.data());
    for_each([&](void* c, int i, float sum) { add_to(c, i, sum); });
  }
}

void ProductWork::read_a(float* out, int steps) const {
  const int size = bytes_of(product.type);
  for (int row = 0; row < kRows; ++row) {
    for (int k = 0; k < steps; ++k) {
      const char* at = nullptr;
      if (product.a_in_shared) {
        at = product.m_major ? n_major(product.a_matrix, k, row)
                             : k_major(product.a_matrix, row, k * size);
      } else {
        // A thread's register r holds 4 bytes of row 8 (r % 2), from byte 16 (r / 2) on.
        const int byte = k * size, thread = row / 16 * 32 + row % 8 * 4 + byte % 16 / 4;
        const int r = row / 8 % 2 + byte / 16 * 2;
        at = reinterpret_cast<const char*>(parts_[thread].a.data()) + r * 4 + byte % 4;
      }
      out[row * steps + k] = number_at(product.type, at);
    }
  }
}

void ProductWork::read_b(float* out, int steps) const {
  const int size = bytes_of(product.type);
  for (int n = 0; n < product.columns; ++n) {
    for (int k = 0; k < steps; ++k) {
      const char* const at = product.n_major ? n_major(product.b_matrix, k, n)
                                             : k_major(product.b_matrix, n, k * size);
      out[k * product.columns + n] = number_at(product.type, at);
    }
  }
}

void ProductWork::add_to(void* c, int i, float sum) const {
  if (product.type == Product::Type::s8) {
    int32_t& x = static_cast<int32_t*>(c)[i];
    x = (product.keep != 0 ? x : 0) + static_cast<int32_t>(sum);
  } else {
    float& x = static_cast<float*>(c)[i];
    x = (product.keep != 0 ? x : 0) + sum;
  }
}

}  // namespace fovea::emulator
