#pragma once

#include <ATen/core/Tensor.h>

namespace fovea::pipelines {

/// throws Error usage when `scale` is NaN or infinite
void check_guidance_scale(double scale);

/// Whether a scale asks for a second, unconditional prediction: above 1 only.
bool guidance_active(double scale);

/// Classifier-free guidance: unconditional + scale · (conditional − unconditional), in the dtype of
/// the predictions, rounded as the reference's `WanPipeline` rounds.
///
/// conditional, unconditional  same shape, dtype and device
/// paper  arXiv 2207.12598, equation 6, with scale = 1 + w
at::Tensor guide(const at::Tensor& conditional, const at::Tensor& unconditional, double scale);

}  // namespace fovea::pipelines
