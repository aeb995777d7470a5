#pragma once

#include <array>
#include <cstdint>

#include "tests/emulator/simt.h"

namespace fovea::emulator {

/// A product of a warpgroup, C[64, N] (+)= A[64, K] B[K, N] with K of 32 bytes, while its threads
/// come one after the other.
struct ProductWork {
  explicit ProductWork(const Product& product) : product(product) {}
  void add(int thread, void* c, const uint32_t* a);
  /// Once all 128 threads were added.
  void run() const;

  Product product;
  int threads = 0;

 private:
  void read_a(float* out, int steps) const;  // [64, steps]
  void read_b(float* out, int steps) const;  // [steps, columns]
  void add_to(void* c, int i, float sum) const;

  struct Part {
    void* c;
    std::array<uint32_t, 4> a;
  };
  std::array<Part, 128> parts_;
};

/// A number of a type, as its bits lie in memory.
float number_at(Product::Type type, const void* at);

}  // namespace fovea::emulator
