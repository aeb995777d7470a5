#pragma once

#include <optional>

#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>

#include "core/attention/attention.h"
#include "core/weights.h"
#include "models/vae/wan/vae_config.h"
#include "models/vae/wan/vae_layers.h"
#include "models/vae/wan/vae_networks.h"
#include "models/vae/wan/vae_tiling.h"

namespace fovea::models {

/// A normal distribution per latent (`DiagonalGaussianDistribution` of diffusers).
struct LatentDistribution {
  at::Tensor mean;    ///< [batch, z_dim, latent frames, latent height, latent width]
  at::Tensor logvar;  ///< same shape, clamped to [-30, 20]

  /// The likeliest latents: the mean.
  const at::Tensor& mode() const { return mean; }
  /// mean + exp(logvar / 2) * noise; the noise is drawn on the generator's device, in the mean's
  /// dtype, and moved, as diffusers' randn_tensor does. Without a generator the default one of the
  /// mean's device draws.
  at::Tensor sample(std::optional<at::Generator> generator = {}) const;
};

/// How an autoencoder keeps its weights.
struct AutoencoderWanOptions {
  /// Copies convolution weights into the channels-last format, which activations then follow.
  /// For inference only: later changes of the source's tensors would not be seen.
  bool channels_last = false;
  /// `encode` takes all frames at once: fewer, larger operations, and memory that grows with the
  /// number of frames. For small pictures on GPUs.
  bool frames_at_once = false;
};

/// The causal video autoencoder of Wan2.1 (`AutoencoderKLWan` of diffusers with is_residual false).
///
/// Frame 1 of a video is one latent frame, each further four frames (two, one: as
/// temperal_downsample says) are one more; the layers remember what they need of earlier frames,
/// so that memory beyond input and output does not grow with the number of frames.
///
/// `attention` runs the middle blocks' attention among the places of one frame (role self, layer 0
/// in the encoder and 1 in the decoder): give it an object of its own, not the transformer's.
/// Gradients flow where the caller records them; `encode` then takes all frames at once, since
/// what it would save in memory is kept for the gradients anyway. Methods are const and may be
/// called at once from several threads, each with an Attention of its own.
///
/// differs  fewer passes over memory (padding inside the convolution, one factor sqrt(channels) *
///          gamma): equal within rounding, not bit for bit
class AutoencoderWan {
 public:
  /// Asks `source` for every parameter, by its name in diffusers' checkpoints.
  AutoencoderWan(const WanVaeConfig& config, ParameterSource& source,
                 AutoencoderWanOptions options = {});

  const WanVaeConfig& config() const { return config_; }

  /// video    [batch, in_channels, 4 k + 1, height, width], values in [-1, 1], dtype and device of
  ///          the parameters
  /// tiling   in tiles one after another where the picture is larger than a tile, blended
  ///          (`tiled_encode`); memory then depends on the tile's size
  /// returns  height and width divided by spatial_ratio(), rounded down
  /// throws   Error bad_data for another shape; usage for tile sizes that are no multiples of
  ///          spatial_ratio(); interrupted
  /// differs  another number of frames than 4 k + 1 is refused, where Python drops the last ones; a
  ///          rest of a picture below one latent makes no tile, where Python fails
  LatentDistribution encode(const at::Tensor& video, Attention& attention,
                            const std::optional<VaeTiling>& tiling = {}) const;

  /// latents  [batch, z_dim, frames, height, width], not normalized
  /// tiling   tile after tile, each over all frames, as `tiled_decode`: the layers' memory exists
  ///          for one tile only, but all decoded tiles are held until they are joined
  /// returns  [batch, out_channels, frames of the video, height * ratio, width * ratio], clamped to
  ///          [-1, 1]; equal to `WanVaeDecoder` on each frame in turn, bit for bit
  /// throws   Error as `encode`
  at::Tensor decode(const at::Tensor& latents, Attention& attention,
                    const std::optional<VaeTiling>& tiling = {}) const;

  /// (latents - latents_mean) * (1 / latents_std) per channel, in the latents' dtype and in the
  /// order of operations of `WanImageToVideoPipeline`: what the transformer works on.
  ///
  /// latents  [batch, z_dim, frames, height, width]
  /// throws   Error bad_data naming the key when the config's lists are not z_dim long
  at::Tensor normalize(const at::Tensor& latents) const;
  /// latents / (1 / latents_std) + latents_mean, the order of `WanPipeline`; else as `normalize`.
  at::Tensor denormalize(const at::Tensor& latents) const;

  /// For streams: an empty memory of the decoder, and the next latent frames [batch, z_dim, n,
  /// height, width] decoded with it, not clamped. Equal, within rounding, for any n at a time.
  FeatureCache decoder_cache() const { return FeatureCache(num_decoder_histories_); }
  at::Tensor decode_frames(const at::Tensor& latents, FeatureCache& cache,
                           Attention& attention) const;

  /// Whether `latents` are larger than one tile; never without tiling. throws as `latent_units`
  bool exceeds_tile(const std::optional<VaeTiling>& tiling, const at::Tensor& latents) const;
  /// `tiling` in latents.
  ///
  /// throws  Error usage as `VaeTiling::in_units`, and when scale_factor_spatial of the config is
  ///         not what the network does
  VaeTiling latent_units(const VaeTiling& tiling) const;
  /// throws  Error bad_data unless latents are [batch, z_dim, frames, height, width], none empty
  void check_latents(const at::Tensor& latents) const;

 private:
  at::Tensor encode_stream(const at::Tensor& video, Attention& attention) const;

  WanVaeConfig config_;
  bool frames_at_once_;
  int64_t num_encoder_histories_ = 0;
  int64_t num_decoder_histories_ = 0;
  VaeEncoder encoder_;
  VaeDecoder decoder_;
  VaeCausalConv3d quant_conv_;
  VaeCausalConv3d post_quant_conv_;
};

/// Decodes a video while it is being written: one latent frame in, one (the first) or
/// scale_factor_temporal frames out.
///
/// Holds what the layers remember and nothing of earlier input or output. With tiling the memory of
/// all tiles exists at once, since every frame needs every tile: the untiled memory times the
/// share of overlap (by the layers' sizes, Wan2.1 at 480x832 in fp32: 6.3 GB instead of 3.8 GB),
/// in exchange for activations of one tile only. Where that is too much, `AutoencoderWan::decode`
/// keeps one tile's memory, but the whole video.
class WanVaeDecoder {
 public:
  /// Both references are kept.
  /// tiling  as in `AutoencoderWan::decode`
  WanVaeDecoder(const AutoencoderWan& vae, Attention& attention,
                std::optional<VaeTiling> tiling = {});

  /// latent   [batch, z_dim, 1, height, width], the next one, not normalized; all alike
  /// returns  [batch, out_channels, n, height * ratio, width * ratio], clamped to [-1, 1]
  /// throws   Error bad_data for another shape, usage as `decode`, interrupted
  at::Tensor push(const at::Tensor& latent);

 private:
  void start(const at::Tensor& latent);

  const AutoencoderWan& vae_;
  Attention& attention_;
  std::optional<VaeTiling> tiling_;   // in pixels
  std::optional<TileGrid> grid_;      // in latents; none when one tile holds the picture
  std::vector<FeatureCache> caches_;  // one a tile
  std::vector<int64_t> shape_;        // of every latent
};

}  // namespace fovea::models
