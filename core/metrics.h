#pragma once

#include <cstdint>
#include <optional>
#include <span>

namespace fovea {

/// The peak signal-to-noise ratio of pixels of 8 bits in dB: 10 · log10(255² / mean squared error);
/// infinite when the error is 0.
double psnr_of(double mean_squared_error);

/// The mean of (a - b)² over all samples.
///
/// a, b    of one length, not empty
/// throws  Error usage when the lengths differ or are 0
double mean_squared_error(std::span<const uint8_t> a, std::span<const uint8_t> b);

/// The structural similarity of two pictures of 8 bits, 1 for equal ones.
///
/// Local means, variances and the covariance are weighted with an 11 × 11 Gaussian of sigma 1.5;
/// K1 = 0.01, K2 = 0.03, a range of 255; variances are those of the population. The result is the
/// mean over channels and over all windows that lie wholly inside the picture. Computed in fp64.
///
/// a, b           [height, width, channels]
/// width, height  at least 11
/// throws         Error usage for a smaller picture or spans of another size
/// paper          Wang et al., "Image Quality Assessment: From Error Visibility to Structural
///                Similarity", 2004, section III
/// same as        scikit-image `structural_similarity(a, b, channel_axis=-1, data_range=255,
///                gaussian_weights=True, sigma=1.5, use_sample_covariance=False)`; torchmetrics
///                `structural_similarity_index_measure(a, b, data_range=255)`
double ssim(std::span<const uint8_t> a, std::span<const uint8_t> b, int width, int height,
            int channels = 3);

/// How alike two pictures are.
struct Similarity {
  double mse = 0;
  double ssim = 1;
  std::optional<double> lpips = std::nullopt;  ///< a network's distance, where one was asked

  double psnr() const { return psnr_of(mse); }
};

/// Gathers the similarity of a video's frames, or of several videos'.
///
/// PSNR is that of the mean squared error over all frames, as it is usual for videos (the mean of
/// single PSNRs would be infinite when one frame is equal); SSIM and LPIPS are means over frames.
class SimilarityMean {
 public:
  void add(const Similarity& frame);

  int64_t frames() const { return frames_; }
  double psnr() const {
    return psnr_of(frames_ == 0 ? 0 : squared_ / static_cast<double>(frames_));
  }
  double ssim() const { return frames_ == 0 ? 1 : ssim_ / static_cast<double>(frames_); }
  double worst_psnr() const { return psnr_of(worst_squared_); }
  double worst_ssim() const { return worst_ssim_; }
  /// Nothing unless every frame has it.
  std::optional<double> lpips() const;
  std::optional<double> worst_lpips() const;

 private:
  int64_t frames_ = 0, with_lpips_ = 0;
  double squared_ = 0, ssim_ = 0, lpips_ = 0;  // sums
  double worst_squared_ = 0, worst_ssim_ = 1, worst_lpips_ = 0;
};

/// Both measures of two RGB pictures; throws as `ssim`.
Similarity compare_pictures(std::span<const uint8_t> a, std::span<const uint8_t> b, int width,
                            int height);

}  // namespace fovea
