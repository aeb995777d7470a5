#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/config.h"

namespace fovea::models {

/// The options of diffusers' `AutoencoderKLWan` (0.42.1), with its defaults: the autoencoder of
/// Wan2.1. Field names are the keys of `config.json`, spelling included.
struct WanVaeConfig {
  int64_t base_dim = 96;                         ///< channels of the encoder's first level
  int64_t decoder_base_dim = 96;                 ///< the same for the decoder; null means base_dim
  int64_t z_dim = 16;                            ///< latent channels
  std::vector<int64_t> dim_mult = {1, 2, 4, 4};  ///< channels per level, in units of the base
  int64_t num_res_blocks = 2;  ///< residual blocks a level; the decoder has one more
  /// Per step down between levels: halves the frame rate too. The decoder reads it from the end.
  std::vector<bool> temperal_downsample = {false, true, true};
  double dropout = 0.0;              ///< of training; this code never drops
  std::vector<double> latents_mean;  ///< [z_dim]
  std::vector<double> latents_std;   ///< [z_dim]
  int64_t in_channels = 3;
  int64_t out_channels = 3;
  int64_t scale_factor_temporal = 4;  ///< frames a latent frame stands for, as pipelines count
  int64_t scale_factor_spatial = 8;   ///< pixels a latent stands for, as pipelines count
  std::string where;                  ///< file named in errors

  /// Reads every key that the Python class takes.
  ///
  /// throws  Error bad_data naming the key: wrong type or range; a class other than
  ///         AutoencoderKLWan; is_residual true and patch_size (the Wan2.2 autoencoder);
  ///         attn_scales that match a level (diffusers' own encoder fails on them);
  ///         temperal_downsample that is too short, or halves the rate more than twice (the
  ///         encoder's chunk of four frames has no third halving)
  static WanVaeConfig read(Config& config);

  /// Levels of resolution, of encoder and decoder.
  int64_t num_levels() const { return static_cast<int64_t>(dim_mult.size()); }
  /// Pixels a side that one latent stands for in this network.
  int64_t spatial_ratio() const { return int64_t{1} << (num_levels() - 1); }
  /// Channels of the encoder's level `level`.
  int64_t encoder_dim(int64_t level) const { return base_dim * dim_mult[level]; }
  /// Channels of the decoder's up block `block`, the coarsest first.
  int64_t decoder_dim(int64_t block) const {
    return decoder_base_dim * dim_mult[num_levels() - 1 - block];
  }
  /// Whether the decoder doubles the frame rate after up block `block`.
  bool temperal_upsample(int64_t block) const {
    return temperal_downsample[temperal_downsample.size() - 1 - block];
  }
};

/// Every key of `config.json` that the Python class takes, in diffusers' order.
///
/// throws  Error usage unless latents_mean and latents_std hold z_dim values each
Json to_json(const WanVaeConfig& config);

}  // namespace fovea::models
