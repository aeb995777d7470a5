#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include <ATen/core/Tensor.h>

#include "core/config.h"
#include "core/file.h"
#include "core/media/picture.h"

namespace fovea::models {

/// How pictures are made ready for a CLIP vision tower, with the result of transformers'
/// `CLIPImageProcessor` where torchvision is installed (its default).
///
/// A picture is resized with antialiasing in 8 bits, cropped around its centre (padded with black
/// where it is smaller), then scaled and normalized in fp32. The CPU does it all.
class ClipImageProcessor {
 public:
  /// Reads a preprocessor_config.json; absent keys have CLIP's values (224 pixels, bicubic).
  ///
  /// throws  Error bad_data naming the key for a value that is not supported: resample other than
  ///         0 (nearest), 2 (bilinear) and 3 (bicubic), do_pad, sizes that the reference cannot use
  ClipImageProcessor(const Config& config, Report& report);

  /// returns  [1, 3, height, width], fp32 on the CPU; of crop_size where do_center_crop is set
  /// throws   Error resource when the resized picture would have more than 64 Mpx, bad_data when it
  ///          would be empty
  at::Tensor process(const Picture& picture) const;

 private:
  enum class SizeRule { exact, shortest_edge, shortest_and_longest_edge, largest_box };
  enum class Filter { nearest, bilinear, bicubic };

  void read_size(Config& config);
  void read_crop(Config& config);
  void read_values(Config& config);
  std::array<int64_t, 2> resized(int64_t height, int64_t width) const;
  at::Tensor resize(const at::Tensor& image) const;
  at::Tensor center_crop(const at::Tensor& image) const;
  at::Tensor normalize(const at::Tensor& image) const;

  bool do_resize_ = true;
  bool do_center_crop_ = true;
  bool do_rescale_ = true;
  bool do_normalize_ = true;
  SizeRule rule_ = SizeRule::shortest_edge;
  std::array<int64_t, 2> size_{224, 224};  ///< height, width; or shortest, longest edge
  std::array<int64_t, 2> crop_{224, 224};  ///< height, width
  Filter filter_ = Filter::bicubic;
  double rescale_factor_ = 1.0 / 255;
  std::vector<double> mean_{0.48145466, 0.4578275, 0.40821073};  ///< per channel, or one for all
  std::vector<double> std_{0.26862954, 0.26130258, 0.27577711};
};

/// Reads FOLDER/preprocessor_config.json, or the image processor of FOLDER/processor_config.json
/// where there is one, as transformers does.
ClipImageProcessor load_clip_image_processor(const fs::path& folder, Report& report);

}  // namespace fovea::models
