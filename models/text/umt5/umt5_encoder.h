#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "core/attention/attention.h"
#include "core/weights.h"
#include "models/common/layers.h"
#include "models/text/tokenizer/tokenizer.h"
#include "models/text/umt5/umt5_config.h"

namespace fovea::models {

/// The encoder of T5 and UMT5: text ids to hidden states.
///
/// Root-mean-square norms, attention without scale and with a learned bias by relative position,
/// feed-forward layers with or without a gate, residuals around both.
///
/// source   Raffel et al., arXiv 1910.10683; Chung et al. (UMT5), arXiv 2304.09151; parameters
/// named
///          as in transformers' UMT5EncoderModel and T5EncoderModel
class Umt5Encoder {
 public:
  /// Takes every parameter from `source`. In an fp16 model `wo` stays fp32, as in transformers.
  /// throws  Error as `ParameterSource::get`
  Umt5Encoder(Umt5Config config, ParameterSource& source);
  /// The encoder in FOLDER/config.json and FOLDER/model.safetensors (or its shards).
  ///
  /// class_name  as for `Umt5Config::read`
  /// throws      Error bad_data naming key or file
  static Umt5Encoder load(const fs::path& folder, WeightOptions options, Report& report,
                          const std::string& class_name = "");

  /// Takes note that a checkpoint with both names of the embedding table has one of them to spare,
  /// so that `WeightFiles::finish` does not call it unused.
  static void ignore_spare(WeightFiles& files);

  /// Hidden states after the final norm.
  ///
  /// ids        int64 [batch, seq_len], on the device of the parameters, below vocab_size
  /// valid_len  int64 [batch] on the same device: tokens that are not padding, which comes last;
  ///            undefined: all
  /// returns    [batch, seq_len, d_model] in the parameters' dtype; rows of padding hold values
  ///            without meaning
  at::Tensor forward(const at::Tensor& ids, const at::Tensor& valid_len,
                     Attention& attention) const;

  /// Embeddings of prompts as WanPipeline makes them (`_get_t5_prompt_embeds`): cleaned, tokenized,
  /// encoded, zeros behind the last token.
  ///
  /// Each prompt is run alone and without its padding: masked keys change nothing in other rows,
  /// and positions are relative.
  ///
  /// returns  [prompts, max_length, d_model] in the parameters' dtype, on their device
  /// throws   Error bad_data or resource as `prompt_clean`, bad_data for an id that the encoder
  /// does
  ///          not have, usage for a max_length without room for a token
  at::Tensor encode(const Tokenizer& tokenizer, const std::vector<std::string>& prompts,
                    int64_t max_length, Attention& attention) const;

  const Umt5Config& config() const { return config_; }

 private:
  struct Layer {
    at::Tensor attention_norm;  // [d_model]
    Linear q, k, v, o;
    at::Tensor position_table;     // [num_buckets, num_heads], or undefined
    at::Tensor feed_forward_norm;  // [d_model]
    Linear wi, gate, wo;           // `gate` multiplies the activation of `wi`; undefined: no gate
  };

  Layer make_layer(ParameterSource& source, int64_t index, bool wo_fp32) const;
  at::Tensor norm(const at::Tensor& x, const at::Tensor& weight) const;
  at::Tensor position_bias(const at::Tensor& table, const at::Tensor& buckets) const;
  at::Tensor position_buckets(int64_t seq_len) const;
  at::Tensor feed_forward(const Layer& layer, const at::Tensor& x) const;

  Umt5Config config_;
  at::Tensor embedding_;  // [vocab_size, d_model]
  std::vector<Layer> layers_;
  at::Tensor final_norm_;  // [d_model]
};

}  // namespace fovea::models
