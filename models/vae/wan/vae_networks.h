#pragma once

#include <optional>
#include <vector>

#include "models/vae/wan/vae_config.h"
#include "models/vae/wan/vae_layers.h"

namespace fovea::models {

/// Video to latent parameters, a chunk of frames at a time (`WanEncoder3d`).
class VaeEncoder {
 public:
  VaeEncoder(const VaeParameters& parameters, const WanVaeConfig& config);
  /// frames   [batch, in_channels, 4 k + 1, height, width] at first, then 4 k frames a call
  /// returns  [batch, 2 * z_dim, latent frames, height / ratio, width / ratio]
  at::Tensor forward(const at::Tensor& frames, FeatureCache& cache, Attention& attention) const;

 private:
  struct Level {
    std::vector<VaeResidualBlock> blocks;
    std::optional<VaeDownsample> down;  // none at the last level
  };

  VaeCausalConv3d conv_in_;
  std::vector<Level> levels_;
  VaeMidBlock middle_;
  VaeChannelNorm norm_out_;
  VaeCausalConv3d conv_out_;
};

/// Latents to video, one latent frame at a time (`WanDecoder3d`).
class VaeDecoder {
 public:
  VaeDecoder(const VaeParameters& parameters, const WanVaeConfig& config);
  /// latent   [batch, z_dim, frames, height, width]
  /// returns  [batch, out_channels, n, height * ratio, width * ratio]: the stream's first frame
  ///          gives one, each later one is doubled by each temporal step; not clamped
  at::Tensor forward(const at::Tensor& latent, FeatureCache& cache, Attention& attention) const;

 private:
  struct Level {
    std::vector<VaeResidualBlock> blocks;
    std::optional<VaeUpsample> up;  // none at the last level
  };

  VaeCausalConv3d conv_in_;
  VaeMidBlock middle_;
  std::vector<Level> levels_;
  VaeChannelNorm norm_out_;
  VaeCausalConv3d conv_out_;
};

}  // namespace fovea::models
