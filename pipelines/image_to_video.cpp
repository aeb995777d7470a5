#include "pipelines/image_to_video.h"

#include <ATen/ATen.h>

namespace fovea::pipelines {

at::Tensor make_image_condition(const at::Tensor& image, int64_t num_frames,
                                const models::AutoencoderWan& vae, Attention& attention) {
  const at::Tensor rest =
      at::zeros({1, 3, num_frames - 1, image.size(2), image.size(3)}, image.options());
  const at::Tensor video = at::cat({image.unsqueeze(2), rest}, 2);
  const at::Tensor encoded = vae.encode(video, attention).mode().to(at::kFloat);
  const at::Tensor latents = vae.normalize(encoded);
  // Per latent frame one channel for each pixel frame behind it; the first latent frame stands for
  // one pixel frame, whose mark is repeated.
  const int64_t scale = vae.config().scale_factor_temporal;
  at::Tensor mask =
      at::zeros({1, scale, latents.size(2), latents.size(3), latents.size(4)}, latents.options());
  mask.select(2, 0).fill_(1);
  return at::cat({mask, latents}, 1);
}

}  // namespace fovea::pipelines
