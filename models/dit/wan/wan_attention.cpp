#include <ATen/ATen.h>

#include "core/ops/modulate.h"
#include "core/ops/norm.h"
#include "core/ops/rope.h"
#include "models/dit/wan/wan.h"

namespace fovea::models {
namespace {

// diffusers takes whatever stands before the last 512 tokens of the context for image tokens.
constexpr int64_t kTextLength = 512;

}  // namespace

WanAttention::WanAttention(ParameterSource& source, const std::string& name,
                           const WanConfig& config, bool cross)
    : heads_(config.num_attention_heads), eps_(config.eps), cross_(cross) {
  const int64_t dim = config.inner_dim();
  q_ = Linear(source, name + ".to_q", dim, dim);
  k_ = Linear(source, name + ".to_k", dim, dim);
  v_ = Linear(source, name + ".to_v", dim, dim);
  out_ = Linear(source, name + ".to_out.0", dim, dim);
  norm_q_ = source.get(name + ".norm_q.weight", {dim});
  norm_k_ = source.get(name + ".norm_k.weight", {dim});
  if (cross && config.added_kv_proj_dim) {
    image_k_ = Linear(source, name + ".add_k_proj", *config.added_kv_proj_dim, dim);
    image_v_ = Linear(source, name + ".add_v_proj", *config.added_kv_proj_dim, dim);
    norm_image_k_ = source.get(name + ".norm_added_k.weight", {dim});
  }
}

// [batch, tokens, dim] → [batch, heads, tokens, head_dim], a view.
at::Tensor WanAttention::split_heads(const at::Tensor& x) const {
  return x.unflatten(2, {heads_, -1}).transpose(1, 2);
}

at::Tensor WanAttention::forward(const Call& call, Attention& attention) const {
  const at::Tensor out =
      cross_ ? cross_attention(call, attention) : self_attention(call, attention);
  return out_(out.transpose(1, 2).flatten(2));
}

at::Tensor WanAttention::self_attention(const Call& call, Attention& attention) const {
  // [batch, tokens, heads, head_dim]
  const at::Tensor q =
      fovea::rms_norm_rope(q_(call.x), norm_q_, call.rope.cos, call.rope.sin, eps_);
  const at::Tensor k =
      fovea::rms_norm_rope(k_(call.x), norm_k_, call.rope.cos, call.rope.sin, eps_);
  return attention.run({.role = AttentionRole::self,
                        .q_layout = call.layout,
                        .kv_layout = call.layout,
                        .q = q.transpose(1, 2),
                        .k = k.transpose(1, 2),
                        .v = split_heads(v_(call.x)),
                        .bias = {},
                        .sm_scale = {},
                        .context = call.step,
                        .layer = call.layer});
}

at::Tensor WanAttention::cross_attention(const Call& call, Attention& attention) const {
  AttentionCall request{.role = AttentionRole::cross,
                        .q_layout = call.layout,
                        .kv_layout = {},
                        .q = split_heads(fovea::rms_norm(q_(call.x), norm_q_, eps_)),
                        .k = {},
                        .v = {},
                        .bias = {},
                        .sm_scale = {},
                        .context = call.step,
                        .layer = call.layer};
  at::Tensor text = call.context;
  at::Tensor image;
  if (image_k_.defined()) {
    const int64_t image_length = text.size(1) - kTextLength;
    image = text.slice(1, 0, image_length);
    text = text.slice(1, image_length);
  }
  request.kv_layout = TokenLayout::text(text.size(1));
  request.k = split_heads(fovea::rms_norm(k_(text), norm_k_, eps_));
  request.v = split_heads(v_(text));
  at::Tensor out = attention.run(request);
  if (image_k_.defined()) {
    request.kv_layout = TokenLayout::extra(image.size(1));
    request.k = split_heads(fovea::rms_norm(image_k_(image), norm_image_k_, eps_));
    request.v = split_heads(image_v_(image));
    out = out + attention.run(request);
  }
  return out;
}

WanBlock::WanBlock(ParameterSource& source, const std::string& name, const WanConfig& config)
    : eps_(config.eps),
      self_(source, name + ".attn1", config, /*cross=*/false),
      cross_(source, name + ".attn2", config, /*cross=*/true),
      up_(source, name + ".ffn.net.0.proj", config.inner_dim(), config.ffn_dim),
      down_(source, name + ".ffn.net.2", config.ffn_dim, config.inner_dim()) {
  const int64_t dim = config.inner_dim();
  if (config.cross_attn_norm) {
    cross_norm_ = LayerNorm(source, name + ".norm2", dim, config.eps, /*keep_fp32=*/true);
  }
  scale_shift_table_ = source.get(name + ".scale_shift_table", {1, 6, dim}, /*keep_fp32=*/true);
}

at::Tensor WanBlock::forward(const WanAttention::Call& call, const at::Tensor& modulation,
                             Attention& attention) const {
  // Rows: shift, scale and gate of self-attention, then of the feed-forward; each [batch, dim].
  const at::Tensor table = scale_shift_table_.transpose(0, 1) + modulation;
  const auto row = [&](int64_t i) { return table.select(0, i); };
  at::Tensor x = call.x;

  at::Tensor y = fovea::layer_norm_modulate(x, row(1), row(0), eps_);
  y = self_.forward({y, {}, call.layout, call.rope, call.step, call.layer}, attention);
  x = fovea::gate_residual(x, y, row(2));

  y = cross_norm_ ? fovea::layer_norm(x, cross_norm_->weight, cross_norm_->bias, eps_) : x;
  x = x +
      cross_.forward({y, call.context, call.layout, call.rope, call.step, call.layer}, attention);

  y = fovea::layer_norm_modulate(x, row(4), row(3), eps_);
  y = down_(at::gelu(up_(y), "tanh"));
  return fovea::gate_residual(x, y, row(5));
}

}  // namespace fovea::models
