#pragma once

#include <cstdint>
#include <string>

#include "core/config.h"

namespace fovea::models {

/// Sizes and kinds of a T5 or UMT5 encoder, as `config.json` of transformers' UMT5EncoderModel and
/// T5EncoderModel gives them.
struct Umt5Config {
  int64_t vocab_size = 250112;
  int64_t d_model = 512;
  int64_t d_kv = 64;  ///< head_dim; num_heads * d_kv need not be d_model
  int64_t d_ff = 1024;
  int64_t num_layers = 8;
  int64_t num_heads = 6;
  int64_t num_buckets = 32;    ///< `relative_attention_num_buckets`
  int64_t max_distance = 128;  ///< `relative_attention_max_distance`
  double layer_norm_epsilon = 1e-6;
  std::string activation = "gelu_new";  ///< `dense_act_fn`
  bool gated = true;                    ///< `is_gated_act`
  bool bias_in_each_layer = true;       ///< UMT5; T5 has one table, in its first layer

  /// class_name  the class that model_index.json names, UMT5EncoderModel or T5EncoderModel; empty:
  ///             `model_type` decides
  /// throws      Error bad_data naming the key whose value is malformed or not supported
  static Umt5Config read(Config& config, Report& report, const std::string& class_name = "");
};

/// The keys of transformers' `config.json`, in its order, for a tokenizer with the ids of T5:
/// `<pad>` 0 and `</s>` 1. Without `dtype`, the type that transformers runs in when not
/// told.
Json to_json(const Umt5Config& config);

}  // namespace fovea::models
