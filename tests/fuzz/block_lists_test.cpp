#include "tests/fuzz/block_lists.h"

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <vector>

namespace fovea::kernels {
namespace {

#if defined(__SANITIZE_ADDRESS__)
constexpr int kCases = 2'000;  // not optimized
#else
constexpr int kCases = 20'000;
#endif

TEST(FuzzBlockLists, AreRefusedOrComputedRight) {
  std::map<std::string, int> refusals;
  int refused = 0, right = 0;
  for (int seed = 0; seed < kCases; ++seed) {
    std::mt19937 random(static_cast<uint32_t>(seed));
    std::vector<uint8_t> bytes(48);
    for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random());
    const FuzzVerdict verdict = fuzz_block_lists(bytes.data(), bytes.size());
    ASSERT_NE(verdict.outcome, FuzzVerdict::Outcome::wrong)
        << "seed " << seed << ": " << verdict.text;
    if (verdict.outcome == FuzzVerdict::Outcome::right) {
      ++right;
      continue;
    }
    ++refused;
    ++refusals[verdict.text];
  }
  printf("%d computed right, %d refused\n", right, refused);
  for (const auto& [text, count] : refusals) printf("%7d %s\n", count, text.c_str());
  EXPECT_GE(right, kCases / 4);
  EXPECT_GE(refused, kCases / 5);
  EXPECT_GE(refusals.size(), 10u);
}

TEST(FuzzBlockLists, TakesAnyNumberOfBytes) {
  const std::vector<uint8_t> bytes(200, 0xff);
  for (size_t size = 0; size <= bytes.size(); ++size) {
    EXPECT_NE(fuzz_block_lists(bytes.data(), size).outcome, FuzzVerdict::Outcome::wrong) << size;
  }
}

}  // namespace
}  // namespace fovea::kernels
