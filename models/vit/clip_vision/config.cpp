#include "core/check.h"
#include "models/vit/clip_vision/activation.h"
#include "models/vit/clip_vision/clip_vision.h"

namespace fovea::models {
namespace {

/// Keys that change nothing in inference, and those of transformers' base class.
void ignore_other_keys(Config& config) {
  config.ignore({"model_type",
                 "architectures",
                 "attention_dropout",
                 "dropout",
                 "initializer_factor",
                 "initializer_range",
                 "projection_dim",
                 "torch_dtype",
                 "dtype",
                 "transformers_version",
                 "return_dict",
                 "output_hidden_states",
                 "output_attentions",
                 "use_cache",
                 "is_decoder",
                 "is_encoder_decoder",
                 "id2label",
                 "label2id",
                 "problem_type",
                 "chunk_size_feed_forward",
                 "add_cross_attention",
                 "cross_attention_hidden_size",
                 "tie_encoder_decoder",
                 "tie_word_embeddings",
                 "pruned_heads",
                 "finetuning_task",
                 "torchscript",
                 "use_bfloat16",
                 "tf_legacy_loss",
                 "task_specific_params",
                 "tokenizer_class",
                 "prefix",
                 "bos_token_id",
                 "eos_token_id",
                 "pad_token_id",
                 "sep_token_id",
                 "decoder_start_token_id"});
}

/// Sampling options that older versions of transformers wrote into every configuration.
void ignore_sampling_keys(Config& config) {
  config.ignore({"bad_words_ids",
                 "begin_suppress_tokens",
                 "diversity_penalty",
                 "do_sample",
                 "early_stopping",
                 "encoder_no_repeat_ngram_size",
                 "exponential_decay_length_penalty",
                 "forced_bos_token_id",
                 "forced_eos_token_id",
                 "length_penalty",
                 "max_length",
                 "min_length",
                 "no_repeat_ngram_size",
                 "num_beam_groups",
                 "num_beams",
                 "num_return_sequences",
                 "output_scores",
                 "remove_invalid_values",
                 "repetition_penalty",
                 "return_dict_in_generate",
                 "suppress_tokens",
                 "temperature",
                 "top_k",
                 "top_p",
                 "typical_p"});
}

ClipVisionConfig read_tower(Config& config, Report& report) {
  constexpr int64_t kMaxWidth = 1 << 16;
  constexpr int64_t kMaxImage = 16'384;
  ClipVisionConfig tower;
  tower.hidden_size = config.integer("hidden_size", 768, 1, kMaxWidth);
  tower.intermediate_size = config.integer("intermediate_size", 3072, 1, 1 << 20);
  // hidden_states[-2] needs a layer.
  tower.num_hidden_layers = config.integer("num_hidden_layers", 12, 1, 1024);
  tower.num_attention_heads = config.integer("num_attention_heads", 12, 1, tower.hidden_size);
  if (tower.hidden_size % tower.num_attention_heads != 0) {
    config.refuse("num_attention_heads",
                  str("expected a divisor of hidden_size ", tower.hidden_size));
  }
  tower.num_channels = config.integer("num_channels", 3, 3, 3);
  tower.image_size = config.integer("image_size", 224, 1, kMaxImage);
  tower.patch_size = config.integer("patch_size", 32, 1, kMaxImage);
  if (tower.patch_size > tower.image_size) {
    config.refuse("patch_size", str("expected at most image_size ", tower.image_size));
  }
  tower.hidden_act = config.text("hidden_act", "quick_gelu");
  if (!is_activation(tower.hidden_act)) {
    config.refuse("hidden_act", "not supported, expected one of " + activation_names());
  }
  tower.layer_norm_eps = config.number("layer_norm_eps", 1e-5);
  ignore_other_keys(config);
  ignore_sampling_keys(config);
  config.finish(report);
  return tower;
}

}  // namespace

ClipVisionConfig ClipVisionConfig::read(const Config& given, Report& report) {
  Config config(given.json(), given.where());
  const std::string type = config.text("model_type", "clip_vision_model");
  if (type != "clip" && type != "clip_vision_model") {
    config.refuse("model_type", "expected clip_vision_model or clip");
  }
  if (type == "clip" && config.has("vision_config")) {
    const Json& tower = config.json()["vision_config"];
    if (!tower.is_object()) config.refuse("vision_config", "expected an object");
    Config inner(tower, config.where() + ": vision_config");
    return read_tower(inner, report);
  }
  return read_tower(config, report);
}

}  // namespace fovea::models
