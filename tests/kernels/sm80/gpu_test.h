#pragma once

#include "tests/kernels/device_array.h"

namespace fovea::kernels {

/// Skips where there is no GPU of compute capability 8.0 or newer.
class Sm80Test : public testing::Test {
 protected:
  void SetUp() override {
    int count = 0;
    if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) GTEST_SKIP() << "no GPU";
    int major = 0;
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0);
    if (major < 8) GTEST_SKIP() << "no GPU of compute capability 8.0 or newer";
  }
};

}  // namespace fovea::kernels
