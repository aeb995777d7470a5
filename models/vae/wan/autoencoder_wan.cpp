#include "models/vae/wan/autoencoder_wan.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include "core/check.h"
#include "core/interrupt.h"

namespace fovea::models {
namespace {

constexpr int64_t kChunkFrames = 4;  // that the encoder takes after the first frame
constexpr double kMinLogvar = -30.0;
constexpr double kMaxLogvar = 20.0;
constexpr const char* kName = "AutoencoderKLWan";

VaeParameters parameters_for(ParameterSource& source, const std::string& prefix,
                             const AutoencoderWanOptions& options, int64_t& num_histories) {
  const auto format =
      options.channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
  return {source, prefix, format, num_histories};
}

// One value of `values` per latent channel, like diffusers' pipelines make it.
at::Tensor per_channel(const std::vector<double>& values, const at::Tensor& latents) {
  return at::tensor(values, at::kDouble)
      .to(at::kFloat)
      .view({1, static_cast<int64_t>(values.size()), 1, 1, 1})
      .to(latents.options());
}

void check_statistics(const WanVaeConfig& config) {
  for (const auto& [key, values] : {std::pair("latents_mean", &config.latents_mean),
                                    std::pair("latents_std", &config.latents_std)}) {
    require(static_cast<int64_t>(values->size()) == config.z_dim, ErrorCode::bad_data, config.where,
            "key '", key, "': expected ", config.z_dim, " values, as z_dim says, got ",
            values->size());
  }
}

}  // namespace

at::Tensor LatentDistribution::sample(std::optional<at::Generator> generator) const {
  const at::Device device = generator ? generator->device() : mean.device();
  const at::Tensor noise =
      at::randn(mean.sizes(), generator, mean.options().device(device)).to(mean.device());
  return mean + at::exp(0.5 * logvar) * noise;
}

AutoencoderWan::AutoencoderWan(const WanVaeConfig& config, ParameterSource& source,
                               AutoencoderWanOptions options)
    : config_(config),
      frames_at_once_(options.frames_at_once),
      encoder_(parameters_for(source, "encoder.", options, num_encoder_histories_), config),
      decoder_(parameters_for(source, "decoder.", options, num_decoder_histories_), config),
      quant_conv_(parameters_for(source, "quant_conv.", options, num_encoder_histories_),
                  2 * config.z_dim, 2 * config.z_dim, {1, 1}),
      post_quant_conv_(parameters_for(source, "post_quant_conv.", options, num_decoder_histories_),
                       config.z_dim, config.z_dim, {1, 1}) {}

LatentDistribution AutoencoderWan::encode(const at::Tensor& video, Attention& attention,
                                          const std::optional<VaeTiling>& tiling) const {
  const int64_t ratio = config_.spatial_ratio();
  require(video.dim() == 5 && video.size(0) > 0 && video.size(1) == config_.in_channels &&
              video.size(2) % kChunkFrames == 1 && video.size(3) >= ratio && video.size(4) >= ratio,
          ErrorCode::bad_data, kName, "video: expected [batch, ", config_.in_channels,
          ", 4 k + 1 frames, height, width] of at least ", ratio, " pixels a side, got ",
          video.sizes());
  const int64_t height = video.size(3) / ratio, width = video.size(4) / ratio;
  at::Tensor parameters;
  if (tiling && (video.size(3) > tiling->tile_height || video.size(4) > tiling->tile_width)) {
    const VaeTiling latent_tiling = latent_units(*tiling);
    const TileGrid grid(*tiling, height * ratio, width * ratio);
    std::vector<at::Tensor> tiles;
    for (int64_t tile = 0; tile < grid.num_tiles(); ++tile) {
      tiles.push_back(encode_stream(grid.cut(video, tile), attention));
    }
    parameters = join_tiles(std::move(tiles), grid.num_columns(), latent_tiling);
  } else {
    parameters = encode_stream(video, attention);
  }
  const std::vector<at::Tensor> halves = parameters.chunk(2, 1);
  return {halves[0], halves[1].clamp(kMinLogvar, kMaxLogvar)};
}

at::Tensor AutoencoderWan::encode_stream(const at::Tensor& video, Attention& attention) const {
  FeatureCache cache(num_encoder_histories_);
  if (frames_at_once_ || c10::GradMode::is_enabled()) {
    return quant_conv_.forward(encoder_.forward(video, cache, attention), cache);
  }
  std::vector<at::Tensor> chunks;
  for (int64_t start = 0; start < video.size(2); start += start == 0 ? 1 : kChunkFrames) {
    throw_if_interrupted();
    const at::Tensor frames = video.narrow(2, start, start == 0 ? 1 : kChunkFrames);
    chunks.push_back(quant_conv_.forward(encoder_.forward(frames, cache, attention), cache));
  }
  return at::cat(chunks, 2);
}

at::Tensor AutoencoderWan::decode(const at::Tensor& latents, Attention& attention,
                                  const std::optional<VaeTiling>& tiling) const {
  check_latents(latents);
  std::vector<at::Tensor> chunks;
  if (!exceeds_tile(tiling, latents)) {
    WanVaeDecoder stream(*this, attention);
    for (const at::Tensor& latent : latents.split(1, 2)) chunks.push_back(stream.push(latent));
    return at::cat(chunks, 2);
  }
  const TileGrid grid(latent_units(*tiling), latents.size(3), latents.size(4));
  std::vector<at::Tensor> tiles;
  for (int64_t tile = 0; tile < grid.num_tiles(); ++tile) {
    FeatureCache cache = decoder_cache();
    for (const at::Tensor& latent : grid.cut(latents, tile).split(1, 2)) {
      throw_if_interrupted();
      chunks.push_back(decode_frames(latent, cache, attention));
    }
    tiles.push_back(at::cat(chunks, 2));
    chunks.clear();
  }
  return join_tiles(std::move(tiles), grid.num_columns(), *tiling).clamp(-1.0, 1.0);
}

at::Tensor AutoencoderWan::decode_frames(const at::Tensor& latents, FeatureCache& cache,
                                         Attention& attention) const {
  return decoder_.forward(post_quant_conv_.forward(latents, cache), cache, attention);
}

at::Tensor AutoencoderWan::normalize(const at::Tensor& latents) const {
  check_latents(latents);
  check_statistics(config_);
  return (latents - per_channel(config_.latents_mean, latents)) *
         per_channel(config_.latents_std, latents).reciprocal();
}

at::Tensor AutoencoderWan::denormalize(const at::Tensor& latents) const {
  check_latents(latents);
  check_statistics(config_);
  return latents / per_channel(config_.latents_std, latents).reciprocal() +
         per_channel(config_.latents_mean, latents);
}

void AutoencoderWan::check_latents(const at::Tensor& latents) const {
  require(latents.dim() == 5 && latents.size(1) == config_.z_dim && latents.numel() > 0,
          ErrorCode::bad_data, kName, "latents: expected [batch, ", config_.z_dim,
          ", frames, height, width], got ", latents.sizes());
}

VaeTiling AutoencoderWan::latent_units(const VaeTiling& tiling) const {
  require(config_.scale_factor_spatial == config_.spatial_ratio(), ErrorCode::usage, config_.where,
          "key 'scale_factor_spatial': tiling needs ", config_.spatial_ratio(),
          ", the network's ratio, got ", config_.scale_factor_spatial);
  return tiling.in_units(config_.spatial_ratio());
}

bool AutoencoderWan::exceeds_tile(const std::optional<VaeTiling>& tiling,
                                  const at::Tensor& latents) const {
  if (!tiling) return false;
  const VaeTiling units = latent_units(*tiling);
  return latents.size(3) > units.tile_height || latents.size(4) > units.tile_width;
}

WanVaeDecoder::WanVaeDecoder(const AutoencoderWan& vae, Attention& attention,
                             std::optional<VaeTiling> tiling)
    : vae_(vae), attention_(attention), tiling_(tiling) {}

at::Tensor WanVaeDecoder::push(const at::Tensor& latent) {
  throw_if_interrupted();
  if (caches_.empty()) start(latent);
  require(latent.sizes() == at::IntArrayRef(shape_), ErrorCode::bad_data, kName,
          "latent: expected ", at::IntArrayRef(shape_), ", as before, got ", latent.sizes());
  if (!grid_) return vae_.decode_frames(latent, caches_[0], attention_).clamp(-1.0, 1.0);
  std::vector<at::Tensor> tiles;
  for (int64_t tile = 0; tile < grid_->num_tiles(); ++tile) {
    tiles.push_back(vae_.decode_frames(grid_->cut(latent, tile), caches_[tile], attention_));
  }
  return join_tiles(std::move(tiles), grid_->num_columns(), *tiling_).clamp(-1.0, 1.0);
}

void WanVaeDecoder::start(const at::Tensor& latent) {
  vae_.check_latents(latent);
  require(latent.size(2) == 1, ErrorCode::bad_data, kName,
          "latent: expected one frame at a time, got ", latent.size(2));
  if (vae_.exceeds_tile(tiling_, latent)) {
    grid_.emplace(vae_.latent_units(*tiling_), latent.size(3), latent.size(4));
  }
  shape_ = latent.sizes().vec();
  caches_.assign(grid_ ? grid_->num_tiles() : 1, vae_.decoder_cache());
}

}  // namespace fovea::models
