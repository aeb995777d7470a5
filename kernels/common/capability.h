#pragma once

namespace fovea::kernels {

/// Ten times the compute capability of a device, such as 90 for 9.0; 0 where there is none.
int compute_capability(int device);

}  // namespace fovea::kernels
