#pragma once

#include <cstdint>
#include <span>

#include <ATen/core/Tensor.h>

#include "kernels/scene/scene.h"

namespace fovea {

/// Size of the clips that `render_scenes` draws.
struct RenderSize {
  int64_t frames = 17;   ///< 1 to 20,000; the first shows time 0, the last time 1
  int64_t height = 128;  ///< pixels, 1 to 4,096
  int64_t width = 128;   ///< pixels, 1 to 4,096
  int64_t samples = 4;   ///< a pixel: 1 or 4
};

/// Clips of scenes, drawn on `device`; CPU and GPUs give the same bytes. On a GPU the work is
/// queued on the current stream.
///
/// returns  [scenes, frames, height, width, 3] uint8, RGB, rows from the top
/// throws   Error usage that names the key for a size out of range, resource above 8 Gpx in all,
///          bad_data for a scene without a solid or with a number that is not finite, device when
///          this build or machine cannot use `device`, interrupted
at::Tensor render_scenes(std::span<const kernels::Scene> scenes, const RenderSize& size,
                         at::Device device);

}  // namespace fovea
