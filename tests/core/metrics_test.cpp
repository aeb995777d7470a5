#include "core/metrics.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <vector>

#include "core/json.h"
#include "tests/support/files.h"

namespace fovea {
namespace {

std::span<const uint8_t> samples(const std::string& bytes) {
  return {reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()};
}

TEST(Metrics, EqualTheFormulasInNumPy) {
  const fs::path folder = fs::path(std::getenv("FOVEA_GOLDEN_DIR")) / "metrics";
  const Json cases = read_json(folder / "cases.json");
  ASSERT_GE(cases.size(), 7u);
  for (const Json& item : cases) {
    const std::string name = item["name"];
    SCOPED_TRACE(name);
    const std::string a = read_file(folder / (name + "-a.bin"), 1 << 20);
    const std::string b = read_file(folder / (name + "-b.bin"), 1 << 20);
    const double mse = mean_squared_error(samples(a), samples(b));
    EXPECT_NEAR(mse, item["mse"].get<double>(), 1e-9);
    EXPECT_NEAR(psnr_of(mse), item["psnr"].get<double>(), 1e-9);
    EXPECT_NEAR(ssim(samples(a), samples(b), item["width"], item["height"], item["channels"]),
                item["ssim"].get<double>(), 1e-9);
  }
}

TEST(Metrics, EqualPicturesAreEqual) {
  const std::vector<uint8_t> picture(12 * 16 * 3, 77);
  const Similarity same = compare_pictures(picture, picture, 16, 12);
  EXPECT_TRUE(std::isinf(same.psnr()) && same.psnr() > 0);
  EXPECT_DOUBLE_EQ(same.ssim, 1);
}

TEST(Metrics, MeanIsOfErrorsAndWorstIsOfFrames) {
  SimilarityMean mean;
  EXPECT_TRUE(std::isinf(mean.psnr()));
  mean.add({.mse = 0, .ssim = 1});
  mean.add({.mse = 50, .ssim = 0.5});
  mean.add({.mse = 10, .ssim = 0.9});
  EXPECT_EQ(mean.frames(), 3);
  EXPECT_NEAR(mean.psnr(), 10 * std::log10(255.0 * 255 / 20), 1e-12);
  EXPECT_NEAR(mean.worst_psnr(), 10 * std::log10(255.0 * 255 / 50), 1e-12);
  EXPECT_NEAR(mean.ssim(), 0.8, 1e-12);
  EXPECT_NEAR(mean.worst_ssim(), 0.5, 1e-12);
}

TEST(Metrics, LpipsIsTheMeanOverFramesOrNothing) {
  SimilarityMean mean;
  EXPECT_FALSE(mean.lpips());
  mean.add({.mse = 0, .ssim = 1, .lpips = 0});
  mean.add({.mse = 50, .ssim = 0.5, .lpips = 0.6});
  mean.add({.mse = 10, .ssim = 0.9, .lpips = 0.3});
  EXPECT_NEAR(*mean.lpips(), 0.3, 1e-12);
  EXPECT_NEAR(*mean.worst_lpips(), 0.6, 1e-12);
  mean.add({.mse = 10, .ssim = 0.9});
  EXPECT_FALSE(mean.lpips());
  EXPECT_FALSE(mean.worst_lpips());
}

TEST(Metrics, RefusesSizesThatDoNotFit) {
  const std::vector<uint8_t> small(10 * 20 * 3), large(20 * 20 * 3);
  test::expect_error(ErrorCode::usage, "11x11", [&] { ssim(small, small, 20, 10); });
  test::expect_error(ErrorCode::usage, "expected 1200 samples",
                     [&] { ssim(large, small, 20, 20); });
  test::expect_error(ErrorCode::usage, "one size", [&] { mean_squared_error(large, small); });
  test::expect_error(ErrorCode::usage, "one size", [&] { mean_squared_error({}, {}); });
}

}  // namespace
}  // namespace fovea
