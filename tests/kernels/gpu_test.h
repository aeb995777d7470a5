#pragma once

#include <random>
#include <vector>

#include "tests/kernels/device_array.h"

namespace fovea::kernels {

/// How many times, or how large: on a GPU, and emulated by the CPU (tests/emulator).
constexpr int64_t on_gpu(int64_t full, [[maybe_unused]] int64_t emulated) {
#if FOVEA_EMULATED
  return emulated;
#else
  return full;
#endif
}

/// So many multiprocessors while it lives, where they are emulated.
class Processors {
 public:
  explicit Processors([[maybe_unused]] int count) {
#if FOVEA_EMULATED
    emulator::set_processors(count);
#endif
  }
  ~Processors() {
#if FOVEA_EMULATED
    emulator::set_processors(emulator::kProcessors);
#endif
  }
  Processors(const Processors&) = delete;
  Processors& operator=(const Processors&) = delete;
};

/// What `run` gives is the same each time.
template <typename Run>
void expect_same_every_time(const Run& run) {
  const auto first = run();
  for (int64_t i = 1; i < on_gpu(250, 4); ++i) ASSERT_EQ(run(), first) << "run " << i;
}

/// Skips where there is no GPU of a compute capability from kFrom, below kTo.
template <int kFrom, int kTo>
class GpuTest : public testing::Test {
 protected:
  void SetUp() override {
    int count = 0, major = 0;
    const bool found = cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
    if (found) cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0);
    if (found && major >= kFrom && major < kTo) return;
    GTEST_SKIP() << "missing: a GPU of compute capability " << kFrom << ".0"
                 << (kTo == kFrom + 1 ? "" : " or newer");
  }
};

using Sm90Test = GpuTest<9, 10>;
using Sm80Test = GpuTest<8, 1000>;

/// Random small integers, of which products and sums are exact.
template <typename Test>
class WithIntegers : public Test {
 protected:
  std::vector<int> integers(size_t count, int largest) {
    std::uniform_int_distribution<int> draw(-largest, largest);
    std::vector<int> out(count);
    for (int& x : out) x = draw(random_);
    return out;
  }

  std::mt19937 random_{7};
};

}  // namespace fovea::kernels
