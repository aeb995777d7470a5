#pragma once

#include <ATen/core/Tensor.h>

#include "models/vae/wan/autoencoder_wan.h"

namespace fovea::pipelines {

/// What an image-to-video transformer sees beside the noise: a mask that marks given frames, and
/// the latents of the video whose first frame is `image` and whose other frames are mid-grey.
///
/// image    [1, 3, height, width] in [-1, 1], on the autoencoder's device
/// returns  [1, temporal_scale + z_dim, latent_frames, latent_height, latent_width], fp32
/// source   diffusers WanImageToVideoPipeline.prepare_latents
at::Tensor make_image_condition(const at::Tensor& image, int64_t num_frames,
                                const models::AutoencoderWan& vae, Attention& attention);

}  // namespace fovea::pipelines
