#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "core/attention/attention.h"
#include "core/config.h"
#include "core/weights.h"

namespace fovea::models {

/// Sizes of a CLIP vision tower, by their names in transformers' `CLIPVisionConfig`.
struct ClipVisionConfig {
  int64_t hidden_size = 768;
  int64_t intermediate_size = 3072;
  int64_t num_hidden_layers = 12;
  int64_t num_attention_heads = 12;
  int64_t num_channels = 3;
  int64_t image_size = 224;  ///< height and width of the pictures, in pixels
  int64_t patch_size = 32;
  std::string hidden_act = "quick_gelu";
  double layer_norm_eps = 1e-5;

  /// Reads the config.json of a `CLIPVisionModel` or `CLIPVisionModelWithProjection`, or the
  /// vision_config of a whole `CLIPModel`.
  ///
  /// throws  Error bad_data naming the key for a value that is not supported
  static ClipVisionConfig read(const Config& config, Report& report);

  int64_t head_dim() const { return hidden_size / num_attention_heads; }
  int64_t grid() const { return image_size / patch_size; }  ///< patches along a side
  int64_t seq_len() const { return grid() * grid() + 1; }   ///< class token and patches
};

/// The vision transformer of CLIP (transformers' `CLIPVisionModel`), a pre-norm ViT with a class
/// token; Wan2.1 image-to-video conditions on its next-to-last hidden state.
/// paper  arXiv 2103.00020, section 2.4
class ClipVision {
 public:
  /// Takes every parameter once; names may carry the prefix "vision_model." or not.
  ClipVision(const ClipVisionConfig& config, ParameterSource& source);
  ~ClipVision();
  ClipVision(ClipVision&&) noexcept;

  /// One of transformers' `hidden_states`.
  ///
  /// pixel_values  [batch, num_channels, image_size, image_size], any floating dtype
  /// index         0 (embeddings after the first norm) to num_hidden_layers (the last layer's
  ///               output); later layers are not computed
  /// returns       [batch, seq_len, hidden_size] in the parameters' dtype, class token first
  /// throws        Error bad_data when the pictures have another size
  at::Tensor hidden_state(const at::Tensor& pixel_values, int64_t index,
                          Attention& attention) const;

  /// transformers' `hidden_states[-2]`: the input of the last layer.
  at::Tensor next_to_last(const at::Tensor& pixel_values, Attention& attention) const;

  /// transformers' `pooler_output`: the class token of the last layer, normed; [batch,
  /// hidden_size].
  at::Tensor pooled(const at::Tensor& pixel_values, Attention& attention) const;

  const ClipVisionConfig& config() const { return config_; }

 private:
  struct Layer;
  struct Parameters;

  at::Tensor embed(const at::Tensor& pixel_values) const;
  at::Tensor run_layer(const Layer& layer, const at::Tensor& hidden, int64_t index,
                       Attention& attention) const;

  ClipVisionConfig config_;
  std::unique_ptr<Parameters> parameters_;
};

/// Loads FOLDER/config.json and FOLDER/model.safetensors (or its shards).
///
/// throws  Error bad_data for a missing file or key, a wrong shape, a config that is not supported
ClipVision load_clip_vision(const fs::path& folder, const WeightOptions& options, Report& report);

}  // namespace fovea::models
