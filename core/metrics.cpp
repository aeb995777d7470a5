#include "core/metrics.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <vector>

#include "core/check.h"

namespace fovea {
namespace {

constexpr int kWindow = 11;
constexpr double kSigma = 1.5, kRange = 255, kK1 = 0.01, kK2 = 0.03;
constexpr int kMoments = 5;  // a, b, a², b², ab

std::array<double, kWindow> gaussian() {
  std::array<double, kWindow> out{};
  double sum = 0;
  for (int i = 0; i < kWindow; ++i) {
    const double x = i - kWindow / 2;
    sum += out[i] = std::exp(-x * x / (2 * kSigma * kSigma));
  }
  for (double& weight : out) weight /= sum;
  return out;
}

// The moments of one row of pixels, weighted along the row: [kMoments][windows].
class RowMoments {
 public:
  RowMoments(int width, int channels)
      : width_(width), channels_(channels), products_(kMoments * static_cast<size_t>(width)) {}

  void compute(const uint8_t* a, const uint8_t* b, double* out) {
    for (int x = 0; x < width_; ++x) {
      const double p = a[x * channels_], q = b[x * channels_];
      const std::array<double, kMoments> values = {p, q, p * p, q * q, p * q};
      for (int m = 0; m < kMoments; ++m) products_[m * static_cast<size_t>(width_) + x] = values[m];
    }
    const size_t windows = static_cast<size_t>(width_ - kWindow + 1);
    std::fill(out, out + kMoments * windows, 0.0);
    for (int m = 0; m < kMoments; ++m) {
      const double* in = products_.data() + m * static_cast<size_t>(width_);
      double* row = out + m * windows;
      for (int k = 0; k < kWindow; ++k) {
        const double weight = weights_[k];
        for (size_t x = 0; x < windows; ++x) row[x] += weight * in[x + k];
      }
    }
  }

 private:
  const std::array<double, kWindow> weights_ = gaussian();
  int width_, channels_;
  std::vector<double> products_;
};

// The sum of the similarity over a row of windows, from moments [kMoments][windows].
double row_similarity(const double* moments, size_t windows) {
  constexpr double c1 = kK1 * kRange * kK1 * kRange, c2 = kK2 * kRange * kK2 * kRange;
  double sum = 0;
  for (size_t x = 0; x < windows; ++x) {
    const double a = moments[x], b = moments[windows + x];
    const double variances = moments[2 * windows + x] - a * a + moments[3 * windows + x] - b * b;
    const double covariance = moments[4 * windows + x] - a * b;
    sum += (2 * a * b + c1) * (2 * covariance + c2) / ((a * a + b * b + c1) * (variances + c2));
  }
  return sum;
}

// One channel; the rows of the last `kWindow` pixel rows are kept in a ring.
double channel_ssim(const uint8_t* a, const uint8_t* b, int width, int height, int channels) {
  static const std::array<double, kWindow> weights = gaussian();
  const size_t windows = static_cast<size_t>(width - kWindow + 1), row = kMoments * windows;
  std::vector<double> ring(kWindow * row), moments(row);
  RowMoments along(width, channels);
  double sum = 0;
  for (int y = 0; y < height; ++y) {
    const size_t line = static_cast<size_t>(y) * width * channels;
    along.compute(a + line, b + line, ring.data() + static_cast<size_t>(y % kWindow) * row);
    if (y < kWindow - 1) continue;
    std::fill(moments.begin(), moments.end(), 0.0);
    for (int k = 0; k < kWindow; ++k) {
      const double* in = ring.data() + static_cast<size_t>((y + 1 + k) % kWindow) * row;
      for (size_t i = 0; i < row; ++i) moments[i] += weights[k] * in[i];
    }
    sum += row_similarity(moments.data(), windows);
  }
  return sum / (static_cast<double>(windows) * (height - kWindow + 1));
}

}  // namespace

double psnr_of(double mean_squared_error) {
  if (mean_squared_error == 0) return std::numeric_limits<double>::infinity();
  return 10 * std::log10(kRange * kRange / mean_squared_error);
}

double mean_squared_error(std::span<const uint8_t> a, std::span<const uint8_t> b) {
  require(!a.empty() && a.size() == b.size(), ErrorCode::usage, "metrics",
          "expected two pictures of one size, got ", a.size(), " and ", b.size(), " samples");
  uint64_t sum = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const int difference = int{a[i]} - int{b[i]};
    sum += static_cast<uint64_t>(difference * difference);
  }
  return static_cast<double>(sum) / static_cast<double>(a.size());
}

double ssim(std::span<const uint8_t> a, std::span<const uint8_t> b, int width, int height,
            int channels) {
  require(width >= kWindow && height >= kWindow && channels >= 1, ErrorCode::usage, "metrics",
          "SSIM needs pictures of ", kWindow, "x", kWindow, " or more, got ", width, "x", height);
  const size_t expected = static_cast<size_t>(width) * height * channels;
  require(a.size() == expected && b.size() == expected, ErrorCode::usage, "metrics", "expected ",
          expected, " samples, got ", a.size(), " and ", b.size());
  double sum = 0;
  for (int c = 0; c < channels; ++c) {
    sum += channel_ssim(a.data() + c, b.data() + c, width, height, channels);
  }
  return sum / channels;
}

void SimilarityMean::add(const Similarity& frame) {
  ++frames_;
  squared_ += frame.mse;
  ssim_ += frame.ssim;
  worst_squared_ = std::max(worst_squared_, frame.mse);
  worst_ssim_ = std::min(worst_ssim_, frame.ssim);
  if (!frame.lpips) return;
  ++with_lpips_;
  lpips_ += *frame.lpips;
  worst_lpips_ = with_lpips_ == 1 ? *frame.lpips : std::max(worst_lpips_, *frame.lpips);
}

std::optional<double> SimilarityMean::lpips() const {
  if (frames_ == 0 || with_lpips_ < frames_) return std::nullopt;
  return lpips_ / static_cast<double>(frames_);
}

std::optional<double> SimilarityMean::worst_lpips() const {
  return lpips() ? std::optional(worst_lpips_) : std::nullopt;
}

Similarity compare_pictures(std::span<const uint8_t> a, std::span<const uint8_t> b, int width,
                            int height) {
  return {mean_squared_error(a, b), ssim(a, b, width, height)};
}

}  // namespace fovea
