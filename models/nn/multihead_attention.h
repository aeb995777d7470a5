#pragma once

#include <memory>
#include <optional>
#include <string>
#include <tuple>

#include <torch/nn/cloneable.h>
#include <torch/nn/modules/common.h>
#include <torch/nn/modules/container/any.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/pimpl.h>

#include "core/attention/attention.h"

namespace fovea::nn {

struct MultiheadAttentionOptions {
  int64_t embed_dim = 0;
  int64_t num_heads = 1;  ///< divides embed_dim
  bool bias = true;
  std::string planner = "dense";
  Json planner_options = Json::object();
  /// What the tokens of sequences of its length are; others are plain sequences.
  std::optional<TokenLayout> layout;
};

/// `torch::nn::MultiheadAttention` with a plan: parameters of the same names and shapes, so that
/// saved modules load, and sequences first, as there. Self-attention, as many queries as keys, is
/// planned; the rest is dense. There is no dropout, and no weights are returned: nothing computes
/// them.
class MultiheadAttentionImpl : public torch::nn::Cloneable<MultiheadAttentionImpl> {
 public:
  /// throws  Error usage for sizes that do not divide, an unknown planner or option
  explicit MultiheadAttentionImpl(MultiheadAttentionOptions options);

  /// query             [q_len, batch, embed_dim]
  /// key, value        [kv_len, batch, embed_dim]
  /// key_padding_mask  bool [batch, kv_len], true hides a key; or undefined
  /// attn_mask         bool, true hides a pair, or numbers to add: [q_len, kv_len] or
  ///                   [batch · num_heads, q_len, kv_len]; or undefined
  /// returns           [q_len, batch, embed_dim], and an undefined tensor
  /// throws            Error usage when weights are asked for, bad_data for other shapes
  std::tuple<at::Tensor, at::Tensor> forward(const at::Tensor& query, const at::Tensor& key,
                                             const at::Tensor& value,
                                             const at::Tensor& key_padding_mask = {},
                                             bool need_weights = false,
                                             const at::Tensor& attn_mask = {});
  void reset() override;

  /// Tells the planner that the network is evaluated once more.
  void next_step() { ++context_.step; }
  const Attention& attention() const { return *attention_; }

  MultiheadAttentionOptions options;
  at::Tensor in_proj_weight;  ///< [3 · embed_dim, embed_dim]
  at::Tensor in_proj_bias;    ///< [3 · embed_dim]
  torch::nn::Linear out_proj = nullptr;

 protected:
  FORWARD_HAS_DEFAULT_ARGS({3, torch::nn::AnyValue(at::Tensor())}, {4, torch::nn::AnyValue(false)},
                           {5, torch::nn::AnyValue(at::Tensor())})

 private:
  at::Tensor heads_of(const at::Tensor& x, int64_t part) const;
  at::Tensor bias_of(const at::Tensor& key_padding_mask, const at::Tensor& attn_mask,
                     at::IntArrayRef sizes) const;

  std::shared_ptr<Attention> attention_;  // what the planner remembers is a clone's own
  StepContext context_;
};
TORCH_MODULE(MultiheadAttention);

}  // namespace fovea::nn
