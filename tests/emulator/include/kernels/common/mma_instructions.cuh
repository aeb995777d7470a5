#pragma once

#include <array>
#include <cstring>

#include "kernels/common/ptx.cuh"
#include "kernels/common/wgmma_types.cuh"
#include "tests/emulator/products.h"
#include "tests/emulator/simt.h"

// kernels/common/mma_instructions.cuh on the CPU.

namespace fovea::kernels::mma {

using wgmma::Type;

/// What a lane gives to a product.
template <typename C>
struct Operands {
  std::array<C, 4> c;
  std::array<uint32_t, 4> a;
  std::array<uint32_t, 2> b;
};

/// C[16, 8] + A[16, K] B[K, 8], K of 32 bytes: all lanes' parts at once.
template <Type kType, typename C>
std::array<C, 4> multiplied(const Operands<C>& own) {
  constexpr auto kNumbers = static_cast<emulator::Product::Type>(kType);
  constexpr int kSize = kType == Type::bf16 || kType == Type::f16 ? 2 : 1, kSteps = 32 / kSize;
  std::array<C, 4> out;
  emulator::collect(0xffffffff, "mma", &own, &out, [](const void* const* in, void* const* results) {
    const auto lane = [&](int i) -> const Operands<C>& {
      return *static_cast<const Operands<C>*>(in[i]);
    };
    float a[16][kSteps], b[8][kSteps];
    for (int k = 0; k < kSteps; ++k) {
      const int byte = k * kSize, of_row = byte % 16 / 4, half = byte / 16;
      for (int row = 0; row < 16; ++row) {
        const uint32_t* const bits = &lane(row % 8 * 4 + of_row).a[row / 8 + half * 2];
        a[row][k] = emulator::number_at(kNumbers, reinterpret_cast<const char*>(bits) + byte % 4);
      }
      for (int column = 0; column < 8; ++column) {
        const uint32_t* const bits = &lane(column * 4 + of_row).b[half];
        b[column][k] =
            emulator::number_at(kNumbers, reinterpret_cast<const char*>(bits) + byte % 4);
      }
    }
    for (int i = 0; i < 32; ++i) {
      std::array<C, 4> c = lane(i).c;
      for (int j = 0; j < 4; ++j) {
        float sum = 0;  // of 8-bit integers exact
        for (int k = 0; k < kSteps; ++k) sum += a[i / 4 + j / 2 * 8][k] * b[i % 4 * 2 + j % 2][k];
        c[j] += static_cast<C>(sum);
      }
      *static_cast<std::array<C, 4>*>(results[i]) = c;
    }
  });
  return out;
}

template <Type kType, int kCount>
void multiply(float (&c)[kCount], int at, const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const Operands<float> own{
      {c[at], c[at + 1], c[at + 2], c[at + 3]}, {a[0], a[1], a[2], a[3]}, {b0, b1}};
  const auto out = multiplied<kType>(own);
  std::memcpy(c + at, out.data(), sizeof out);
}
template <int kCount>
void multiply(int32_t (&c)[kCount], int at, const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const Operands<int32_t> own{
      {c[at], c[at + 1], c[at + 2], c[at + 3]}, {a[0], a[1], a[2], a[3]}, {b0, b1}};
  const auto out = multiplied<Type::s8>(own);
  std::memcpy(c + at, out.data(), sizeof out);
}

inline void load_matrices(uint32_t row_address, uint32_t (&out)[4]) {
  const auto got = emulator::collected<std::array<uint32_t, 4>>(
      0xffffffff, "ldmatrix", row_address, [](int lane, const auto& in) {
        std::array<uint32_t, 4> out;
        for (int matrix = 0; matrix < 4; ++matrix) {
          const char* const row = emulator::shared_pointer(in(matrix * 8 + lane / 4));
          std::memcpy(&out[matrix], row + lane % 4 * 4, 4);
        }
        return out;
      });
  std::memcpy(out, got.data(), sizeof out);
}

inline void load_transposed(uint32_t row_address, uint32_t (&out)[4]) {
  const auto got = emulator::collected<std::array<uint32_t, 4>>(
      0xffffffff, "ldmatrix.trans", row_address, [](int lane, const auto& in) {
        std::array<uint32_t, 4> out;
        for (int matrix = 0; matrix < 4; ++matrix) {
          uint16_t pair[2];
          for (int i = 0; i < 2; ++i) {
            const char* const row = emulator::shared_pointer(in(matrix * 8 + lane % 4 * 2 + i));
            std::memcpy(&pair[i], row + lane / 4 * 2, 2);
          }
          std::memcpy(&out[matrix], pair, 4);
        }
        return out;
      });
  std::memcpy(out, got.data(), sizeof out);
}

inline void copy_bytes(uint32_t shared, const void* global, size_t bytes, bool there) {
  emulator::add_to_group(emulator::Stream::copies, [=] {
    char* const to = emulator::shared_pointer(shared);
    there ? std::memcpy(to, global, bytes) : std::memset(to, 0, bytes);
  });
}
inline void copy16(uint32_t shared, const void* global, bool there) {
  if (there && reinterpret_cast<uintptr_t>(global) % 16 != 0) emulator::fail("cp.async: address");
  copy_bytes(shared, global, 16, there);
}
inline void copy4(uint32_t shared, const void* global, bool there) {
  copy_bytes(shared, global, 4, there);
}
inline void arrive_with_copies(uint64_t* barrier) {
  emulator::start_behind(emulator::Stream::copies, [=] { ptx::arrive(barrier); });
}
inline void commit_copies() { emulator::end_group(emulator::Stream::copies); }
template <int kGroups>
void wait_copies() {
  emulator::finish_groups(emulator::Stream::copies, kGroups);
}

}  // namespace fovea::kernels::mma
