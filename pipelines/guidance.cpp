#include "pipelines/guidance.h"

#include <cmath>

#include <ATen/ATen.h>

#include "core/check.h"

namespace fovea::pipelines {

void check_guidance_scale(double scale) {
  require(std::isfinite(scale), ErrorCode::usage, "--guidance-scale",
          "expected a finite number, got ", scale);
}

bool guidance_active(double scale) { return scale > 1.0; }

at::Tensor guide(const at::Tensor& conditional, const at::Tensor& unconditional, double scale) {
  FOVEA_ASSERT(conditional.sizes() == unconditional.sizes() &&
               conditional.scalar_type() == unconditional.scalar_type());
  return unconditional + scale * (conditional - unconditional);
}

}  // namespace fovea::pipelines
