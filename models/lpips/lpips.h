#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "core/report.h"
#include "core/weights.h"

namespace fovea::models {

/// LPIPS 0.1, a distance of pictures that grows as people find them less alike: 0 for equal ones.
///
/// Both pictures go through a network for classification. After each of its five stages the
/// features of a pixel are scaled to length 1, the squared differences weighted per channel and
/// summed, and the mean taken over the pixels; the distance is the sum over stages.
/// paper    Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric",
///          2018, arXiv 1801.03924, sections 3 and 4
/// same as  `LPIPS(net="alex")` and `LPIPS(net="vgg")` of Python's package lpips 0.1, by whose
///          names parameters are asked for
class Lpips {
 public:
  /// Takes every parameter once. Which network it is follows from the names that are there.
  ///
  /// where   named in errors: the file
  /// throws  Error bad_data when the names are neither network's, and as `source`
  Lpips(ParameterSource& source, const std::string& where);

  /// a, b     [batch, 3, height, width], RGB from -1 to 1, of the parameters' dtype and device
  /// returns  [batch]
  /// throws   Error usage when the shapes differ or a side is below `min_side()`
  at::Tensor distance(const at::Tensor& a, const at::Tensor& b) const;

  /// "alexnet" or "vgg16"
  const std::string& network() const { return network_; }
  /// The smallest height and width, in pixels, that leaves the last stage a pixel.
  int64_t min_side() const { return min_side_; }
  /// Dtype and device of the parameters.
  at::TensorOptions options() const { return shift_.options(); }

 private:
  struct Convolution {
    at::Tensor weight, bias;
    int64_t stride, padding;
  };
  struct Stage {
    int64_t pool = 0;  ///< side of the windows that pool what comes in, two pixels apart; 0 = none
    std::vector<Convolution> convolutions;
    at::Tensor channel_weights;  ///< [1, channels, 1, 1]
  };

  std::string network_;
  int64_t min_side_ = 0;
  at::Tensor shift_, scale_;  // [1, 3, 1, 1]
  std::vector<Stage> stages_;
};

/// Loads a safetensors file of the package's parameters.
///
/// throws  Error bad_data for a file that is none or holds another network, a missing key, a wrong
///         shape; non_finite for NaN or Inf
Lpips load_lpips(const fs::path& file, at::Device device, Report& report);

/// The distance of two pictures of 8 bits, each [height, width, 3]; exactly 0 for equal ones.
///
/// throws  Error usage for spans of another size; non_finite when the network overflows; as
///         `Lpips::distance`
double lpips_distance(const Lpips& lpips, std::span<const uint8_t> a, std::span<const uint8_t> b,
                      int64_t width, int64_t height);

}  // namespace fovea::models
