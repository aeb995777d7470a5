#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include <ATen/core/Tensor.h>

#include "core/file.h"
#include "core/json.h"

namespace fovea::pipelines {

/// One video that is asked for. The defaults are those of diffusers' WanPipeline.
struct VideoRequest {
  std::string prompt;
  std::string negative_prompt;
  fs::path image;        ///< first frame, image-to-video models only
  int64_t height = 480;  ///< pixels
  int64_t width = 832;   ///< pixels
  int64_t num_frames = 81;
  int64_t num_steps = 50;
  double guidance_scale = 5.0;  ///< guidance runs above 1
  uint64_t seed = 0;
  /// Initial noise [1, channels, latent_frames, latent_height, latent_width], fp32; drawn from the
  /// seed where undefined.
  at::Tensor latents;

  /// Everything that decides the picture, for the file's metadata and the resume state.
  Json settings() const;
};

/// Checks what needs no model. throws Error usage naming the option, resource above a size budget
void check_request(const VideoRequest& request);

}  // namespace fovea::pipelines
