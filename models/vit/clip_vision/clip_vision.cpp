#include "models/vit/clip_vision/clip_vision.h"

#include <cmath>

#include <ATen/ATen.h>

#include "core/check.h"
#include "core/interrupt.h"
#include "models/vit/clip_vision/activation.h"

namespace fovea::models {
namespace {

struct Affine {
  at::Tensor weight;
  at::Tensor bias;
};

Affine take_linear(ParameterSource& source, const std::string& name, int64_t in, int64_t out) {
  return {source.get(name + ".weight", {out, in}), source.get(name + ".bias", {out})};
}

Affine take_norm(ParameterSource& source, const std::string& name, int64_t size) {
  return {source.get(name + ".weight", {size}), source.get(name + ".bias", {size})};
}

at::Tensor linear(const at::Tensor& x, const Affine& parameters) {
  return at::linear(x, parameters.weight, parameters.bias);
}

at::Tensor layer_norm(const at::Tensor& x, const Affine& parameters, double eps) {
  return at::layer_norm(x, {x.size(-1)}, parameters.weight, parameters.bias, eps);
}

}  // namespace

struct ClipVision::Layer {
  Affine norm1, norm2, q, k, v, out, fc1, fc2;
};

struct ClipVision::Parameters {
  at::Tensor class_embedding;     ///< [hidden_size]
  at::Tensor patch_embedding;     ///< [hidden_size, num_channels, patch_size, patch_size]
  at::Tensor position_embedding;  ///< [seq_len, hidden_size]
  Affine pre_norm, post_norm;
  std::vector<Layer> layers;
};

ClipVision::ClipVision(const ClipVisionConfig& config, ParameterSource& source)
    : config_(config), parameters_(std::make_unique<Parameters>()) {
  const int64_t width = config.hidden_size;
  const std::string prefixed = "vision_model.";
  const std::string prefix = source.has(prefixed + "embeddings.class_embedding") ? prefixed : "";
  Parameters& own = *parameters_;
  const std::string embeddings = prefix + "embeddings.";
  own.class_embedding = source.get(embeddings + "class_embedding", {width});
  own.patch_embedding =
      source.get(embeddings + "patch_embedding.weight",
                 {width, config.num_channels, config.patch_size, config.patch_size});
  own.position_embedding =
      source.get(embeddings + "position_embedding.weight", {config.seq_len(), width});
  // The misspelt name is the checkpoint's.
  own.pre_norm = take_norm(source, prefix + "pre_layrnorm", width);
  for (int64_t i = 0; i < config.num_hidden_layers; ++i) {
    throw_if_interrupted();
    const std::string name = str(prefix, "encoder.layers.", i, ".");
    Layer layer;
    layer.norm1 = take_norm(source, name + "layer_norm1", width);
    layer.norm2 = take_norm(source, name + "layer_norm2", width);
    layer.q = take_linear(source, name + "self_attn.q_proj", width, width);
    layer.k = take_linear(source, name + "self_attn.k_proj", width, width);
    layer.v = take_linear(source, name + "self_attn.v_proj", width, width);
    layer.out = take_linear(source, name + "self_attn.out_proj", width, width);
    layer.fc1 = take_linear(source, name + "mlp.fc1", width, config.intermediate_size);
    layer.fc2 = take_linear(source, name + "mlp.fc2", config.intermediate_size, width);
    own.layers.push_back(std::move(layer));
  }
  own.post_norm = take_norm(source, prefix + "post_layernorm", width);
}

ClipVision::~ClipVision() = default;
ClipVision::ClipVision(ClipVision&&) noexcept = default;

at::Tensor ClipVision::embed(const at::Tensor& pixel_values) const {
  const Parameters& own = *parameters_;
  const int64_t size = config_.image_size;
  require(pixel_values.dim() == 4 && pixel_values.size(1) == config_.num_channels &&
              pixel_values.size(2) == size && pixel_values.size(3) == size,
          ErrorCode::bad_data, "image encoder", "expected pictures of [batch, ",
          config_.num_channels, ", ", size, ", ", size, "], got ", pixel_values.sizes());
  const at::Tensor pixels = pixel_values.to(own.patch_embedding.options());
  const at::Tensor patches = at::conv2d(pixels, own.patch_embedding, {}, config_.patch_size);
  const at::Tensor tokens = patches.flatten(2).transpose(1, 2);
  const at::Tensor class_token =
      own.class_embedding.expand({pixels.size(0), 1, config_.hidden_size});
  const at::Tensor hidden = at::cat({class_token, tokens}, 1) + own.position_embedding.unsqueeze(0);
  return layer_norm(hidden, own.pre_norm, config_.layer_norm_eps);
}

at::Tensor ClipVision::run_layer(const Layer& layer, const at::Tensor& hidden, int64_t index,
                                 Attention& attention) const {
  const int64_t batch = hidden.size(0);
  const int64_t heads = config_.num_attention_heads;
  const auto split_heads = [&](const at::Tensor& x) {
    return x.view({batch, config_.seq_len(), heads, config_.head_dim()}).transpose(1, 2);
  };
  const at::Tensor normed = layer_norm(hidden, layer.norm1, config_.layer_norm_eps);
  AttentionCall call;
  call.role = AttentionRole::self;
  call.q_layout = TokenLayout::extra(1);
  call.q_layout.append(TokenLayout::grid(1, config_.grid(), config_.grid()));
  call.kv_layout = call.q_layout;
  call.q = split_heads(linear(normed, layer.q));
  call.k = split_heads(linear(normed, layer.k));
  call.v = split_heads(linear(normed, layer.v));
  call.sm_scale = std::pow(static_cast<double>(config_.head_dim()), -0.5);
  call.layer = index;
  const at::Tensor attended = attention.run(call).transpose(1, 2).reshape_as(hidden);
  const at::Tensor middle = hidden + linear(attended, layer.out);

  const at::Tensor inner =
      linear(layer_norm(middle, layer.norm2, config_.layer_norm_eps), layer.fc1);
  return middle + linear(activation(config_.hidden_act, inner), layer.fc2);
}

at::Tensor ClipVision::hidden_state(const at::Tensor& pixel_values, int64_t index,
                                    Attention& attention) const {
  FOVEA_ASSERT(index >= 0 && index <= config_.num_hidden_layers);
  at::Tensor hidden = embed(pixel_values);
  for (int64_t i = 0; i < index; ++i) {
    throw_if_interrupted();
    hidden = run_layer(parameters_->layers[i], hidden, i, attention);
  }
  return hidden;
}

at::Tensor ClipVision::next_to_last(const at::Tensor& pixel_values, Attention& attention) const {
  return hidden_state(pixel_values, config_.num_hidden_layers - 1, attention);
}

at::Tensor ClipVision::pooled(const at::Tensor& pixel_values, Attention& attention) const {
  const at::Tensor last = hidden_state(pixel_values, config_.num_hidden_layers, attention);
  return layer_norm(last.select(1, 0), parameters_->post_norm, config_.layer_norm_eps);
}

ClipVision load_clip_vision(const fs::path& folder, const WeightOptions& options, Report& report) {
  const ClipVisionConfig config =
      ClipVisionConfig::read(Config::read(folder / "config.json"), report);
  WeightFiles files(folder, "model", options);
  // The projection and the text tower belong to other uses of the same checkpoint.
  for (const char* name : {"visual_projection.weight", "text_projection.weight", "logit_scale",
                           "vision_model.embeddings.position_ids", "embeddings.position_ids"}) {
    files.ignore(name);
  }
  ClipVision model(config, files);
  files.finish(report);
  return model;
}

}  // namespace fovea::models
