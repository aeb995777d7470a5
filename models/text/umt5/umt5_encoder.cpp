#include "models/text/umt5/umt5_encoder.h"

#include <cmath>
#include <limits>

#include <ATen/ATen.h>

#include "core/check.h"
#include "core/interrupt.h"
#include "core/ops/widened.h"
#include "models/text/tokenizer/prompt_clean.h"
#include "models/vit/clip_vision/activation.h"

namespace fovea::models {
namespace {

// A checkpoint may hold the table under either name, or under both; the encoder reads the second.
constexpr const char* kSharedName = "shared.weight";
constexpr const char* kEmbeddingName = "encoder.embed_tokens.weight";

// transformers keeps the residual stream of fp16 models finite.
at::Tensor clamp_fp16(const at::Tensor& x) {
  if (x.scalar_type() != at::kHalf) return x;
  constexpr double largest = 65504;
  const at::Tensor limit = at::where(at::isinf(x).any(), at::full({}, largest - 1000, x.options()),
                                     at::full({}, largest, x.options()));
  return at::clamp(x, limit.neg(), limit);
}

}  // namespace

Umt5Encoder::Umt5Encoder(Umt5Config config, ParameterSource& source) : config_(std::move(config)) {
  embedding_ = source.get(source.has(kEmbeddingName) ? kEmbeddingName : kSharedName,
                          {config_.vocab_size, config_.d_model});
  const bool wo_fp32 = embedding_.scalar_type() == at::kHalf;
  for (int64_t i = 0; i < config_.num_layers; ++i) {
    throw_if_interrupted();
    layers_.push_back(make_layer(source, i, wo_fp32));
  }
  final_norm_ = source.get("encoder.final_layer_norm.weight", {config_.d_model});
}

Umt5Encoder Umt5Encoder::load(const fs::path& folder, WeightOptions options, Report& report,
                              const std::string& class_name) {
  Config config = Config::read(folder / "config.json");
  const Umt5Config sizes = Umt5Config::read(config, report, class_name);
  WeightFiles files(folder, "model", options);
  ignore_spare(files);
  Umt5Encoder encoder(sizes, files);
  files.finish(report);
  return encoder;
}

void Umt5Encoder::ignore_spare(WeightFiles& files) {
  if (files.has(kEmbeddingName)) files.ignore(kSharedName);
}

Umt5Encoder::Layer Umt5Encoder::make_layer(ParameterSource& source, int64_t index,
                                           bool wo_fp32) const {
  const int64_t d_model = config_.d_model;
  const int64_t inner = config_.num_heads * config_.d_kv;
  const std::string block = str("encoder.block.", index, ".layer.");
  const std::string attention = block + "0.SelfAttention.";
  const std::string dense = block + "1.DenseReluDense.";
  Layer layer;
  layer.attention_norm = source.get(block + "0.layer_norm.weight", {d_model});
  layer.q = Linear(source, attention + "q", d_model, inner, /*has_bias=*/false);
  layer.k = Linear(source, attention + "k", d_model, inner, /*has_bias=*/false);
  layer.v = Linear(source, attention + "v", d_model, inner, /*has_bias=*/false);
  layer.o = Linear(source, attention + "o", inner, d_model, /*has_bias=*/false);
  if (index == 0 || config_.bias_in_each_layer) {
    layer.position_table = source.get(attention + "relative_attention_bias.weight",
                                      {config_.num_buckets, config_.num_heads});
  }
  layer.feed_forward_norm = source.get(block + "1.layer_norm.weight", {d_model});
  const std::string wi = config_.gated ? "wi_0" : "wi";
  layer.wi = Linear(source, dense + wi, d_model, config_.d_ff, /*has_bias=*/false);
  if (config_.gated) {
    layer.gate = Linear(source, dense + "wi_1", d_model, config_.d_ff, /*has_bias=*/false);
  }
  layer.wo = Linear(source, dense + "wo", config_.d_ff, d_model, /*has_bias=*/false, wo_fp32);
  return layer;
}

at::Tensor Umt5Encoder::forward(const at::Tensor& ids, const at::Tensor& valid_len,
                                Attention& attention) const {
  const int64_t batch = ids.size(0);
  const int64_t seq_len = ids.size(1);
  const auto heads = [&](const at::Tensor& x) {
    return x.view({batch, seq_len, config_.num_heads, config_.d_kv}).transpose(1, 2);
  };
  AttentionCall call;
  call.role = AttentionRole::text;
  call.q_layout = TokenLayout::text(seq_len);
  call.kv_layout = TokenLayout::text(seq_len, valid_len);
  call.sm_scale = 1.0;
  const at::Tensor buckets = position_buckets(seq_len);
  at::Tensor x = at::embedding(embedding_, ids);
  for (const Layer& layer : layers_) {
    throw_if_interrupted();
    const at::Tensor normed = norm(x, layer.attention_norm);
    call.q = heads(layer.q(normed));
    call.k = heads(layer.k(normed));
    call.v = heads(layer.v(normed));
    if (layer.position_table.defined()) call.bias = position_bias(layer.position_table, buckets);
    const at::Tensor mixed = attention.run(call).transpose(1, 2).reshape({batch, seq_len, -1});
    x = clamp_fp16(x + layer.o(mixed));
    x = clamp_fp16(x + feed_forward(layer, norm(x, layer.feed_forward_norm)));
    ++call.layer;
  }
  return norm(x, final_norm_);
}

at::Tensor Umt5Encoder::norm(const at::Tensor& x, const at::Tensor& weight) const {
  const at::Tensor variance = ops::widened(x).square().mean(-1, /*keepdim=*/true);
  const at::Tensor scaled = x * at::rsqrt(variance + config_.layer_norm_epsilon);
  return weight * scaled.to(weight.scalar_type());
}

at::Tensor Umt5Encoder::feed_forward(const Layer& layer, const at::Tensor& x) const {
  at::Tensor hidden = activation(config_.activation, layer.wi(x));
  if (layer.gate.defined()) hidden = hidden * layer.gate(x);
  return layer.wo(hidden.to(layer.wo.weight.scalar_type()));
}

at::Tensor Umt5Encoder::position_buckets(int64_t seq_len) const {
  // Half of the buckets are for keys behind the query; of each half, the first half holds exact
  // distances and the rest logarithmic ones up to max_distance.
  const int64_t half = config_.num_buckets / 2;
  const int64_t exact = half / 2;
  const at::Tensor offset = at::arange(-(seq_len - 1), seq_len, at::kLong);  // key minus query
  const at::Tensor distance = offset.abs();
  const double range = std::log(static_cast<double>(config_.max_distance) / exact);
  const at::Tensor steps =
      at::log(distance.clamp_min(1).to(at::kFloat) / exact) / range * (half - exact);
  const at::Tensor far = (steps.to(at::kLong) + exact).clamp_max(half - 1);
  const at::Tensor bucket =
      offset.gt(0).to(at::kLong) * half + at::where(distance < exact, distance, far);
  const at::Tensor position = at::arange(seq_len, at::kLong);
  const at::Tensor index = position.unsqueeze(0) - position.unsqueeze(1) + (seq_len - 1);
  return bucket.index_select(0, index.flatten()).view({seq_len, seq_len}).to(embedding_.device());
}

at::Tensor Umt5Encoder::position_bias(const at::Tensor& table, const at::Tensor& buckets) const {
  return table.t()
      .index_select(1, buckets.flatten())
      .view({1, config_.num_heads, buckets.size(0), buckets.size(1)});
}

at::Tensor Umt5Encoder::encode(const Tokenizer& tokenizer, const std::vector<std::string>& prompts,
                               int64_t max_length, Attention& attention) const {
  const auto count = static_cast<int64_t>(prompts.size());
  at::Tensor out = at::zeros({count, max_length, config_.d_model}, embedding_.options());
  for (int64_t i = 0; i < count; ++i) {
    const std::string where = count == 1 ? "prompt" : str("prompt ", i);
    const std::vector<int32_t> ids =
        tokenizer.encode(prompt_clean(prompts[static_cast<size_t>(i)], where), max_length);
    for (int32_t id : ids) {
      require(id < config_.vocab_size, ErrorCode::bad_data, where, "token id ", id,
              ": the text encoder has ", config_.vocab_size, " tokens");
    }
    if (ids.empty()) continue;
    const auto length = static_cast<int64_t>(ids.size());
    const at::Tensor tokens = at::tensor(ids, at::kLong).view({1, length}).to(embedding_.device());
    out[i].narrow(0, 0, length).copy_(forward(tokens, {}, attention)[0]);
  }
  return out;
}

}  // namespace fovea::models
