#pragma once

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

}  // namespace fovea::kernels
