#pragma once

#include <cstdint>

#include <ATen/core/Tensor.h>

#include "core/media/picture.h"

namespace fovea::pipelines {

/// A picture as the autoencoder takes it: resized to exactly height × width with PIL's Lanczos
/// filter (the proportions are not kept), bytes 0 to 255 mapped to −1 to 1.
///
/// returns  [1, 3, height, width], fp32 on the CPU; equal to diffusers' `VideoProcessor.preprocess`
///          of an RGB PIL image
/// throws   Error usage, resource as `resize`
at::Tensor picture_to_tensor(const Picture& picture, int64_t height, int64_t width);

}  // namespace fovea::pipelines
