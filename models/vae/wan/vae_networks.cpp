#include "models/vae/wan/vae_networks.h"

#include <ATen/ATen.h>

#include "core/check.h"

namespace fovea::models {
namespace {

// Indices of the two middle blocks in attention calls.
constexpr int64_t kEncoderLayer = 0;
constexpr int64_t kDecoderLayer = 1;

}  // namespace

VaeEncoder::VaeEncoder(const VaeParameters& parameters, const WanVaeConfig& config)
    : conv_in_(parameters["conv_in"], config.in_channels, config.base_dim, {3, 3}),
      middle_(parameters["mid_block"], config.encoder_dim(config.num_levels() - 1), kEncoderLayer),
      norm_out_(parameters["norm_out"], config.encoder_dim(config.num_levels() - 1), 3),
      conv_out_(parameters["conv_out"], config.encoder_dim(config.num_levels() - 1),
                2 * config.z_dim, {3, 3}) {
  int64_t channels = config.base_dim;
  int64_t index = 0;  // blocks and downsamplers of all levels are one list in the checkpoint
  for (int64_t level = 0; level < config.num_levels(); ++level) {
    Level& built = levels_.emplace_back();
    for (int64_t block = 0; block < config.num_res_blocks; ++block) {
      const int64_t out_channels = config.encoder_dim(level);
      built.blocks.emplace_back(parameters[str("down_blocks.", index++)], channels, out_channels);
      channels = out_channels;
    }
    if (level + 1 < config.num_levels()) {
      built.down.emplace(parameters[str("down_blocks.", index++)], channels,
                         config.temperal_downsample[level]);
    }
  }
}

at::Tensor VaeEncoder::forward(const at::Tensor& frames, FeatureCache& cache,
                               Attention& attention) const {
  at::Tensor x = conv_in_.forward(frames, cache);
  for (const Level& level : levels_) {
    for (const VaeResidualBlock& block : level.blocks) x = block.forward(x, cache);
    if (level.down) x = level.down->forward(x, cache);
  }
  return conv_out_.forward(norm_out_, middle_.forward(x, cache, attention), cache);
}

VaeDecoder::VaeDecoder(const VaeParameters& parameters, const WanVaeConfig& config)
    : conv_in_(parameters["conv_in"], config.z_dim, config.decoder_dim(0), {3, 3}),
      middle_(parameters["mid_block"], config.decoder_dim(0), kDecoderLayer),
      norm_out_(parameters["norm_out"], config.decoder_dim(config.num_levels() - 1), 3),
      conv_out_(parameters["conv_out"], config.decoder_dim(config.num_levels() - 1),
                config.out_channels, {3, 3}) {
  int64_t channels = config.decoder_dim(0);
  for (int64_t level = 0; level < config.num_levels(); ++level) {
    const VaeParameters here = parameters[str("up_blocks.", level)];
    const int64_t out_channels = config.decoder_dim(level);
    Level& built = levels_.emplace_back();
    for (int64_t block = 0; block <= config.num_res_blocks; ++block) {
      built.blocks.emplace_back(here[str("resnets.", block)], channels, out_channels);
      channels = out_channels;
    }
    if (level + 1 < config.num_levels()) {
      built.up.emplace(here["upsamplers.0"], channels, config.temperal_upsample(level));
      channels /= 2;
    }
  }
}

at::Tensor VaeDecoder::forward(const at::Tensor& latent, FeatureCache& cache,
                               Attention& attention) const {
  at::Tensor x = middle_.forward(conv_in_.forward(latent, cache), cache, attention);
  for (const Level& level : levels_) {
    for (const VaeResidualBlock& block : level.blocks) x = block.forward(x, cache);
    if (level.up) x = level.up->forward(x, cache);
  }
  return conv_out_.forward(norm_out_, x, cache);
}

}  // namespace fovea::models
