#pragma once

#include <cstdint>

#include "kernels/common/status.h"
#include "kernels/common/tensor_view.h"
#include "kernels/scene/pose.h"

namespace fovea::kernels {

/// Pictures of scenes: solids on a checkered floor under a sun, by sphere tracing. The CPU and CUDA
/// use the same functions and only correctly rounded operations without contraction, so they give
/// the same bytes.
/// paper  Hart, Sphere Tracing: a geometric method for the antialiased ray tracing of implicit
///        surfaces, The Visual Computer 12 (1996), section 2
struct RenderArgs {
  const ScenePose* poses = nullptr;  ///< [num_pictures]
  uint8_t* out = nullptr;            ///< [num_pictures, height, width, 3], RGB, rows from the top
  int64_t num_pictures = 0;
  int height = 0;
  int width = 0;
  int samples = 4;  ///< a pixel: 1, or 4 on a rotated grid
};

/// Status invalid when pointers or sizes contradict each other.
Status check(const RenderArgs& args);

/// Computes the rows of `range`, counted through all pictures: num_pictures * height in all.
Status render_cpu(const RenderArgs& args, RowRange range);

#if FOVEA_HAS_CUDA
/// Queues all pictures on a stream; poses and out are on the device. No synchronization.
Status render_cuda(const RenderArgs& args, CudaTarget target);
#endif

}  // namespace fovea::kernels
