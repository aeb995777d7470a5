#include "kernels/common/half.h"

#include <bit>
#include <cmath>

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>
#include <gtest/gtest.h>

namespace fovea::kernels {
namespace {

// LibTorch's scalar types are an implementation of the same conversions by others.

TEST(Half, EveryValueWidensAndComesBack) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto word = static_cast<uint16_t>(bits);
    const float f16 = to_float(Half{word});
    const float expected_f16 = static_cast<float>(c10::Half(word, c10::Half::from_bits()));
    const float bf16 = to_float(BFloat16{word});
    if (std::isnan(expected_f16)) {
      EXPECT_TRUE(std::isnan(f16)) << bits;
      EXPECT_TRUE(std::isnan(to_float(from_float<Half>(f16)))) << bits;
    } else {
      EXPECT_EQ(std::bit_cast<uint32_t>(f16), std::bit_cast<uint32_t>(expected_f16)) << bits;
      EXPECT_EQ(from_float<Half>(f16).bits, word);
    }
    EXPECT_EQ(std::bit_cast<uint32_t>(bf16), bits << 16);
    if (!std::isnan(bf16)) {
      EXPECT_EQ(from_float<BFloat16>(bf16).bits, word);
    }
  }
}

TEST(Half, RoundsAsLibTorchDoes) {
  // Every 4099th of all fp32 bit patterns: a prime step meets every low half of the word.
  for (uint64_t step = 0; step * 4099 <= 0xffffffffull; ++step) {
    const auto bits = static_cast<uint32_t>(step * 4099);
    const float value = std::bit_cast<float>(bits);
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(to_float(from_float<Half>(value)))) << bits;
      EXPECT_TRUE(std::isnan(to_float(from_float<BFloat16>(value)))) << bits;
      continue;
    }
    ASSERT_EQ(from_float<Half>(value).bits, c10::Half(value).x) << value;
    ASSERT_EQ(from_float<BFloat16>(value).bits, c10::BFloat16(value).x) << value;
  }
}

TEST(Half, RoundsTiesToEven) {
  EXPECT_EQ(from_float<BFloat16>(1.0f + 0x1p-8f).bits, 0x3f80);
  EXPECT_EQ(from_float<BFloat16>(1.0f + 3 * 0x1p-8f).bits, 0x3f82);
  EXPECT_EQ(from_float<Half>(1.0f + 0x1p-11f).bits, 0x3c00);
  EXPECT_EQ(from_float<Half>(0x1p-25f).bits, 0x0000);
  EXPECT_EQ(from_float<Half>(3 * 0x1p-25f).bits, 0x0002);
  EXPECT_EQ(from_float<Half>(65519.0f).bits, 0x7bff);
  EXPECT_EQ(from_float<Half>(65520.0f).bits, 0x7c00);
}

}  // namespace
}  // namespace fovea::kernels
