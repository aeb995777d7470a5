#include <algorithm>

#include "core/check.h"
#include "models/dit/wan/wan.h"

namespace fovea::models {
namespace {

constexpr int64_t kMaxWidth = 1 << 20;  // far above any published size; keeps products in int64

Json or_null(const std::optional<int64_t>& value) { return value ? Json(*value) : Json(); }

}  // namespace

WanConfig WanConfig::read(Config& config) {
  WanConfig out;
  const auto patch = config.integers("patch_size", {1, 2, 2}, 1, 64);
  if (patch.size() != 3) config.refuse("patch_size", "expected three numbers");
  std::copy(patch.begin(), patch.end(), out.patch_size.begin());
  out.num_attention_heads = config.integer("num_attention_heads", 40, 1, 4096);
  out.attention_head_dim = config.integer("attention_head_dim", 128, 2, 4096);
  if (out.attention_head_dim % 2 != 0) {
    config.refuse("attention_head_dim", "rotary embedding needs an even number");
  }
  out.in_channels = config.integer("in_channels", 16, 1, kMaxWidth);
  // diffusers takes in_channels where out_channels is null or 0
  out.out_channels = config.integer("out_channels", 16, 0, kMaxWidth);
  if (out.out_channels == 0 ||
      (config.json().contains("out_channels") && !config.has("out_channels"))) {
    out.out_channels = out.in_channels;
  }
  out.text_dim = config.integer("text_dim", 4096, 1, kMaxWidth);
  out.freq_dim = config.integer("freq_dim", 256, 2, kMaxWidth);
  out.ffn_dim = config.integer("ffn_dim", 13824, 1, kMaxWidth);
  out.num_layers = config.integer("num_layers", 40, 0, 4096);
  out.cross_attn_norm = config.boolean("cross_attn_norm", true);
  // Every value of qk_norm runs alike in diffusers: RMS norm across all heads.
  config.ignore({"qk_norm"});
  out.eps = config.number("eps", 1e-6);
  if (!(out.eps >= 0 && out.eps < 1)) config.refuse("eps", "expected a number in [0, 1)");
  out.image_dim = config.optional_integer("image_dim", 1, kMaxWidth);
  out.added_kv_proj_dim = config.optional_integer("added_kv_proj_dim", 1, kMaxWidth);
  if (out.added_kv_proj_dim && *out.added_kv_proj_dim != out.inner_dim()) {
    config.refuse("added_kv_proj_dim", str("image tokens are embedded to num_attention_heads x "
                                           "attention_head_dim = ",
                                           out.inner_dim()));
  }
  out.rope_max_seq_len = config.integer("rope_max_seq_len", 1024, 1, 1 << 20);
  out.pos_embed_seq_len = config.optional_integer("pos_embed_seq_len", 1, kMaxWidth);
  return out;
}

Json to_json(const WanConfig& config) {
  return {{"added_kv_proj_dim", or_null(config.added_kv_proj_dim)},
          {"attention_head_dim", config.attention_head_dim},
          {"cross_attn_norm", config.cross_attn_norm},
          {"eps", config.eps},
          {"ffn_dim", config.ffn_dim},
          {"freq_dim", config.freq_dim},
          {"image_dim", or_null(config.image_dim)},
          {"in_channels", config.in_channels},
          {"num_attention_heads", config.num_attention_heads},
          {"num_layers", config.num_layers},
          {"out_channels", config.out_channels},
          {"patch_size", config.patch_size},
          {"pos_embed_seq_len", or_null(config.pos_embed_seq_len)},
          {"qk_norm", "rms_norm_across_heads"},
          {"rope_max_seq_len", config.rope_max_seq_len},
          {"text_dim", config.text_dim}};
}

}  // namespace fovea::models
