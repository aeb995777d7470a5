#include "models/text/umt5/umt5_config.h"

#include "core/check.h"
#include "models/vit/clip_vision/activation.h"

namespace fovea::models {
namespace {

constexpr int64_t kMaxWidth = 1 << 20;
constexpr int64_t kMaxVocabulary = 1 << 28;
constexpr int64_t kMaxHeads = 1 << 14;
constexpr int64_t kMaxLayers = 1 << 12;
constexpr int64_t kMaxDistance = 1 << 24;

// transformers knows some keys by two names; the general one wins where both are there.
int64_t read_size(Config& config, const char* key, const char* general, int64_t fallback,
                  int64_t high) {
  const int64_t value = config.integer(key, fallback, 1, high);
  return config.integer(general, value, 1, high);
}

bool is_umt5(Config& config, const std::string& class_name) {
  const std::string type = config.text("model_type", "umt5");
  if (class_name == "UMT5EncoderModel") return true;
  if (class_name == "T5EncoderModel") return false;
  require(class_name.empty(), ErrorCode::bad_data, config.where(), "class '",
          printable(class_name, 80), "' is not supported");
  if (type != "umt5" && type != "t5") config.refuse("model_type", "expected 'umt5' or 't5'");
  return type == "umt5";
}

// "gated-gelu" or "relu"; `dense_act_fn` and `is_gated_act`, which saved files hold as well, win.
void read_feed_forward(Config& config, Umt5Config& out) {
  const std::string kind =
      config.text("feed_forward_proj", out.bias_in_each_layer ? "gated-gelu" : "relu");
  const size_t dash = kind.find('-');
  out.gated = kind.substr(0, dash) == "gated";
  out.activation = dash == std::string::npos ? kind : kind.substr(dash + 1);
  if (dash != std::string::npos && (!out.gated || out.activation.find('-') != std::string::npos)) {
    config.refuse("feed_forward_proj", "expected 'gated-NAME' or 'NAME'");
  }
  if (kind == "gated-gelu") out.activation = "gelu_new";
  const char* key = config.has("dense_act_fn") ? "dense_act_fn" : "feed_forward_proj";
  out.activation = config.text("dense_act_fn", out.activation);
  out.gated = config.boolean("is_gated_act", out.gated);
  if (!is_activation(out.activation)) {
    config.refuse(key, str("expected one of ", activation_names()));
  }
}

void ignore_other_keys(Config& config) {
  // Training, generation, the decoder, and what transformers notes about the file.
  config.ignore({"architectures",
                 "bos_token_id",
                 "chunk_size_feed_forward",
                 "classifier_dropout",
                 "decoder_start_token_id",
                 "dropout_rate",
                 "dtype",
                 "eos_token_id",
                 "id2label",
                 "initializer_factor",
                 "is_encoder_decoder",
                 "label2id",
                 "max_length",
                 "n_positions",
                 "num_decoder_layers",
                 "output_attentions",
                 "output_hidden_states",
                 "output_past",
                 "pad_token_id",
                 "problem_type",
                 "return_dict",
                 "scalable_attention",
                 "scale_decoder_outputs",
                 "task_specific_params",
                 "tie_word_embeddings",
                 "tokenizer_class",
                 "torch_dtype",
                 "transformers_version",
                 "use_cache"});
  for (const char* key : {"is_decoder", "add_cross_attention"}) {
    if (config.boolean(key, false)) config.refuse(key, "only encoders are supported");
  }
  if (config.has("quantization_config")) {
    config.refuse("quantization_config", "quantized files are not supported");
  }
}

}  // namespace

Umt5Config Umt5Config::read(Config& config, Report& report, const std::string& class_name) {
  Umt5Config out;
  out.bias_in_each_layer = is_umt5(config, class_name);
  const bool t5 = !out.bias_in_each_layer;
  out.vocab_size = config.integer("vocab_size", t5 ? 32128 : 250112, 1, kMaxVocabulary);
  out.d_model = read_size(config, "d_model", "hidden_size", 512, kMaxWidth);
  out.d_kv = read_size(config, "d_kv", "head_dim", 64, kMaxWidth);
  out.d_ff = config.integer("d_ff", t5 ? 2048 : 1024, 1, kMaxWidth);
  out.num_heads = read_size(config, "num_heads", "num_attention_heads", t5 ? 8 : 6, kMaxHeads);
  out.num_layers = config.integer("num_layers", t5 ? 6 : 8, 0, kMaxLayers);
  out.num_layers = config.integer("num_hidden_layers", out.num_layers, 0, kMaxLayers);
  // Python divides by zero below 4.
  out.num_buckets = config.integer("relative_attention_num_buckets", 32, 4, kMaxWidth);
  out.max_distance = config.integer("relative_attention_max_distance", 128, 1, kMaxDistance);
  if (out.max_distance <= out.num_buckets / 4) {
    config.refuse(
        "relative_attention_max_distance",
        str("expected more than a quarter of relative_attention_num_buckets, ", out.num_buckets));
  }
  out.layer_norm_epsilon = config.number("layer_norm_epsilon", 1e-6);
  read_feed_forward(config, out);
  ignore_other_keys(config);
  config.finish(report);
  return out;
}

Json to_json(const Umt5Config& config) {
  const bool umt5 = config.bias_in_each_layer;
  const bool gated_gelu = config.gated && config.activation == "gelu_new";
  const std::string kind = gated_gelu     ? "gated-gelu"
                           : config.gated ? "gated-" + config.activation
                                          : config.activation;
  return {{"architectures", {umt5 ? "UMT5EncoderModel" : "T5EncoderModel"}},
          {"classifier_dropout", 0.0},
          {"d_ff", config.d_ff},
          {"d_kv", config.d_kv},
          {"d_model", config.d_model},
          {"decoder_start_token_id", 0},
          {"dense_act_fn", config.activation},
          {"dropout_rate", 0.1},
          {"eos_token_id", 1},
          {"feed_forward_proj", kind},
          {"initializer_factor", 1.0},
          {"is_decoder", false},
          {"is_encoder_decoder", true},
          {"is_gated_act", config.gated},
          {"layer_norm_epsilon", config.layer_norm_epsilon},
          {"model_type", umt5 ? "umt5" : "t5"},
          {"num_decoder_layers", config.num_layers},
          {"num_heads", config.num_heads},
          {"num_layers", config.num_layers},
          {"pad_token_id", 0},
          {"relative_attention_max_distance", config.max_distance},
          {"relative_attention_num_buckets", config.num_buckets},
          {"tie_word_embeddings", true},
          {"use_cache", true},
          {"vocab_size", config.vocab_size}};
}

}  // namespace fovea::models
