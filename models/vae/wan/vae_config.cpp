#include "models/vae/wan/vae_config.h"

#include <algorithm>
#include <cmath>

#include "core/check.h"

namespace fovea::models {
namespace {

constexpr int64_t kMaxChannels = 1 << 16;  // of a base, of the latents or of a picture
constexpr int64_t kMaxMultiplier = 1 << 10;
constexpr int64_t kMaxLevels = 10;  // 512 pixels a latent

const std::vector<double> kLatentsMean = {-0.7571, -0.7089, -0.9113, 0.1075,  -0.1745, 0.9653,
                                          -0.1517, 1.5508,  0.4134,  -0.0715, 0.5517,  -0.3632,
                                          -0.1922, -0.9497, 0.2503,  -0.2921};
const std::vector<double> kLatentsStd = {2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708,
                                         2.6052, 2.0743, 3.2687, 2.1526, 2.8652, 1.5579,
                                         1.6382, 1.1253, 2.8251, 1.9160};

void read_levels(Config& config, WanVaeConfig& result) {
  result.dim_mult = config.integers("dim_mult", result.dim_mult, 1, kMaxMultiplier);
  const int64_t levels = result.num_levels();
  if (levels < 1 || levels > kMaxLevels) {
    config.refuse("dim_mult", str("expected 1 to ", kMaxLevels, " levels"));
  }
  result.temperal_downsample = config.booleans("temperal_downsample", result.temperal_downsample);
  const auto& temporal = result.temperal_downsample;
  if (static_cast<int64_t>(temporal.size()) < levels - 1) {
    config.refuse("temperal_downsample",
                  str("expected at least ", levels - 1, " values, one for each step of dim_mult"));
  }
  if (std::count(temporal.begin(), temporal.begin() + (levels - 1), true) > 2) {
    config.refuse("temperal_downsample",
                  "the encoder takes four frames at a time, which can be halved twice at most");
  }
  for (int64_t block = 0; block + 1 < levels; ++block) {
    // The step up to the next level halves the channels.
    if (result.decoder_dim(block) < 2) {
      config.refuse("dim_mult", "the decoder needs 2 channels or more at each level but the last");
    }
  }
}

void refuse_other_kinds(Config& config, const WanVaeConfig& result) {
  const std::string name = config.text("_class_name", "AutoencoderKLWan");
  if (name != "AutoencoderKLWan") config.refuse("_class_name", "expected AutoencoderKLWan");
  if (config.boolean("is_residual", false)) {
    config.refuse("is_residual", "the residual autoencoder of Wan2.2 is not supported");
  }
  if (config.optional_integer("patch_size", 1, kMaxChannels)) {
    config.refuse("patch_size", "pictures folded into channels (Wan2.2) are not supported");
  }
  for (const double scale : config.numbers("attn_scales", {})) {
    for (int64_t level = 0; level < result.num_levels(); ++level) {
      if (scale == std::ldexp(1.0, static_cast<int>(-level))) {
        config.refuse("attn_scales", "attention outside the middle block is not supported");
      }
    }
  }
}

void read_latent_statistics(Config& config, WanVaeConfig& result) {
  result.latents_mean = config.numbers("latents_mean", kLatentsMean);
  result.latents_std = config.numbers("latents_std", kLatentsStd);
  for (const double value : result.latents_mean) {
    if (!std::isfinite(value)) config.refuse("latents_mean", "expected finite numbers");
  }
  for (const double value : result.latents_std) {
    if (!std::isfinite(value) || value == 0.0) {
      config.refuse("latents_std", "expected finite numbers other than 0");
    }
  }
}

}  // namespace

WanVaeConfig WanVaeConfig::read(Config& config) {
  WanVaeConfig result;
  result.where = config.where();
  result.base_dim = config.integer("base_dim", result.base_dim, 1, kMaxChannels);
  result.decoder_base_dim =
      config.optional_integer("decoder_base_dim", 1, kMaxChannels).value_or(result.base_dim);
  result.z_dim = config.integer("z_dim", result.z_dim, 1, kMaxChannels);
  result.num_res_blocks = config.integer("num_res_blocks", result.num_res_blocks, 1, 1024);
  result.dropout = config.number("dropout", result.dropout);
  if (!(result.dropout >= 0.0 && result.dropout <= 1.0)) {
    config.refuse("dropout", "expected a number from 0 to 1");
  }
  result.in_channels = config.integer("in_channels", result.in_channels, 1, kMaxChannels);
  result.out_channels = config.integer("out_channels", result.out_channels, 1, kMaxChannels);
  result.scale_factor_temporal =
      config.integer("scale_factor_temporal", result.scale_factor_temporal, 1, 1024);
  result.scale_factor_spatial =
      config.integer("scale_factor_spatial", result.scale_factor_spatial, 1, 1024);
  read_levels(config, result);
  refuse_other_kinds(config, result);
  read_latent_statistics(config, result);
  return result;
}

Json to_json(const WanVaeConfig& config) {
  for (const auto& [key, values] : {std::pair("latents_mean", &config.latents_mean),
                                    std::pair("latents_std", &config.latents_std)}) {
    require(static_cast<int64_t>(values->size()) == config.z_dim, ErrorCode::usage, key,
            "expected ", config.z_dim, " values, as z_dim says, got ", values->size());
  }
  const bool one_base = config.decoder_base_dim == config.base_dim;
  return {{"attn_scales", Json::array()},
          {"base_dim", config.base_dim},
          {"decoder_base_dim", one_base ? Json() : Json(config.decoder_base_dim)},
          {"dim_mult", config.dim_mult},
          {"dropout", config.dropout},
          {"in_channels", config.in_channels},
          {"is_residual", false},
          {"latents_mean", config.latents_mean},
          {"latents_std", config.latents_std},
          {"num_res_blocks", config.num_res_blocks},
          {"out_channels", config.out_channels},
          {"patch_size", nullptr},
          {"scale_factor_spatial", config.scale_factor_spatial},
          {"scale_factor_temporal", config.scale_factor_temporal},
          {"temperal_downsample", config.temperal_downsample},
          {"z_dim", config.z_dim}};
}

}  // namespace fovea::models
