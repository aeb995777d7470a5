#pragma once

#include <array>
#include <optional>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "core/attention/attention.h"
#include "core/config.h"
#include "core/weights.h"
#include "models/common/layers.h"

namespace fovea::models {

/// `config.json` of a diffusers WanTransformer3DModel; the defaults are those of Wan2.1-14B.
struct WanConfig {
  std::array<int64_t, 3> patch_size = {1, 2, 2};  ///< frames, height, width of a patch
  int64_t num_attention_heads = 40;
  int64_t attention_head_dim = 128;
  int64_t in_channels = 16;  ///< 36 for image-to-video: latents, mask and condition
  int64_t out_channels = 16;
  int64_t text_dim = 4096;
  int64_t freq_dim = 256;  ///< width of the sinusoidal time embedding
  int64_t ffn_dim = 13824;
  int64_t num_layers = 40;
  bool cross_attn_norm = true;
  double eps = 1e-6;
  std::optional<int64_t> image_dim;  ///< width of the image encoder's tokens, image-to-video only
  std::optional<int64_t>
      added_kv_proj_dim;            ///< width of the image keys and values in cross-attention
  int64_t rope_max_seq_len = 1024;  ///< largest grid side in tokens
  std::optional<int64_t> pos_embed_seq_len;  ///< image tokens of first and last frame together

  int64_t inner_dim() const { return num_attention_heads * attention_head_dim; }
  /// throws Error bad_data naming the key whose value cannot run
  static WanConfig read(Config& config);
};

/// The keys of `config.json` that `WanConfig::read` takes, in diffusers' order.
Json to_json(const WanConfig& config);

/// What one evaluation of the network sees.
struct WanInputs {
  at::Tensor latents;   ///< [batch, in_channels, frames, height, width], model dtype
  at::Tensor timestep;  ///< [batch], int64 or float
  at::Tensor text;      ///< [batch, text_len, text_dim], model dtype
  at::Tensor image;     ///< [batch, image_len, image_dim], or undefined
};

/// Rotary tables of one token grid.
struct RopeTables {
  at::Tensor cos;  ///< [tokens, head_dim / 2], fp32
  at::Tensor sin;
};

/// Angles of each token's frame, row and column; pairs are split 2·(head_dim / 6) for height and
/// width each, the rest for time. Built in fp64, rounded once.
///
/// source  Su et al., "RoFormer", 2021, section 3.2; Wan, 2025, section 4.2 (three axes)
RopeTables make_rope_tables(const WanConfig& config, std::array<int64_t, 3> grid,
                            at::Device device);

/// One attention of a block: projections, query and key norm across all heads, output projection.
class WanAttention {
 public:
  WanAttention() = default;
  WanAttention(ParameterSource& source, const std::string& name, const WanConfig& config,
               bool cross);

  struct Call {
    const at::Tensor& x;        ///< [batch, tokens, dim]
    const at::Tensor& context;  ///< [batch, context_len, dim] for cross-attention, else undefined
    const TokenLayout& layout;  ///< of x
    const RopeTables& rope;     ///< used by self-attention only
    const StepContext& step;
    int64_t layer;
  };
  /// returns [batch, tokens, dim]
  at::Tensor forward(const Call& call, Attention& attention) const;

 private:
  at::Tensor self_attention(const Call& call, Attention& attention) const;
  at::Tensor cross_attention(const Call& call, Attention& attention) const;
  at::Tensor split_heads(const at::Tensor& x) const;

  int64_t heads_ = 0;
  double eps_ = 1e-6;
  bool cross_ = false;
  Linear q_, k_, v_, out_, image_k_, image_v_;
  at::Tensor norm_q_, norm_k_, norm_image_k_;
};

/// Self-attention, cross-attention and feed-forward with adaptive layer norm.
class WanBlock {
 public:
  WanBlock(ParameterSource& source, const std::string& name, const WanConfig& config);
  /// modulation  [6, batch, dim] fp32, shared by all blocks; this block's table is added
  at::Tensor forward(const WanAttention::Call& call, const at::Tensor& modulation,
                     Attention& attention) const;

 private:
  double eps_;
  WanAttention self_, cross_;
  std::optional<LayerNorm> cross_norm_;
  Linear up_, down_;
  at::Tensor scale_shift_table_;  ///< [6, 1, dim] fp32
};

/// The Wan2.1 video transformer, text-to-video and image-to-video, numerically that of diffusers.
///
/// paper  Wan Team, "Wan: Open and Advanced Large-Scale Video Generative Models", 2025, section 4.2
class WanTransformer {
 public:
  WanTransformer(const WanConfig& config, ParameterSource& source);

  /// Predicted velocity [batch, out_channels, frames, height, width], model dtype.
  ///
  /// throws  Error usage when the latent size is no multiple of the patch or the grid is larger
  ///         than rope_max_seq_len
  at::Tensor forward(const WanInputs& inputs, const StepContext& step, Attention& attention);

  const WanConfig& config() const { return config_; }
  /// Type of the activations: that of the patch embedding.
  at::ScalarType dtype() const { return patch_weight_.scalar_type(); }

 private:
  struct Condition {
    at::Tensor time;        ///< [batch, dim], model dtype
    at::Tensor modulation;  ///< [6, batch, dim], fp32 at least
    at::Tensor context;     ///< image tokens, then text tokens: [batch, context_len, dim]
  };
  Condition embed(const WanInputs& inputs) const;
  at::Tensor embed_image(const at::Tensor& image) const;
  at::Tensor patchify(const at::Tensor& latents) const;
  at::Tensor unpatchify(const at::Tensor& x, std::array<int64_t, 3> grid) const;
  const RopeTables& rope(std::array<int64_t, 3> grid, at::Device device);

  WanConfig config_;
  at::Tensor patch_weight_, patch_bias_;
  Linear time_1_, time_2_, time_proj_, text_1_, text_2_, image_up_, image_down_;
  std::optional<LayerNorm> image_norm_1_, image_norm_2_;
  at::Tensor image_positions_;
  std::vector<WanBlock> blocks_;
  Linear proj_out_;
  at::Tensor scale_shift_table_;  ///< [1, 2, dim] fp32
  std::array<int64_t, 3> rope_grid_{};
  RopeTables rope_;
};

}  // namespace fovea::models
