#include "models/nn/multihead_attention.h"

#include <limits>

#include <ATen/ATen.h>
#include <torch/nn/init.h>

#include "core/check.h"

namespace fovea::nn {
namespace {

constexpr const char* kWhere = "multihead attention";

// A mask of LibTorch's module as numbers to add.
at::Tensor addend(const at::Tensor& mask, const at::TensorOptions& options) {
  if (mask.scalar_type() != at::kBool) return mask;
  return at::zeros(mask.sizes(), options)
      .masked_fill(mask, -std::numeric_limits<double>::infinity());
}

}  // namespace

MultiheadAttentionImpl::MultiheadAttentionImpl(MultiheadAttentionOptions given)
    : options(std::move(given)) {
  require(options.num_heads >= 1 && options.embed_dim >= 1 &&
              options.embed_dim % options.num_heads == 0,
          ErrorCode::usage, kWhere, options.embed_dim, " channels for ", options.num_heads,
          " heads");
  reset();
}

void MultiheadAttentionImpl::reset() {
  const int64_t dim = options.embed_dim;
  in_proj_weight = register_parameter("in_proj_weight", at::empty({3 * dim, dim}));
  in_proj_bias =
      register_parameter("in_proj_bias", options.bias ? at::zeros({3 * dim}) : at::Tensor(),
                         /*requires_grad=*/options.bias);
  out_proj = register_module(
      "out_proj", torch::nn::Linear(torch::nn::LinearOptions(dim, dim).bias(options.bias)));
  torch::nn::init::xavier_uniform_(in_proj_weight);
  if (options.bias) torch::nn::init::constant_(out_proj->bias, 0);
  attention_ = std::make_shared<Attention>(options.planner, options.planner_options);
}

// [tokens, batch, embed_dim] -> [batch, heads, tokens, head_dim] of q, k or v
at::Tensor MultiheadAttentionImpl::heads_of(const at::Tensor& x, int64_t part) const {
  const int64_t dim = options.embed_dim;
  require(x.dim() == 3 && x.size(2) == dim, ErrorCode::bad_data, kWhere,
          "expected [tokens, batch, ", dim, "], got ", x.sizes());
  std::optional<at::Tensor> bias;
  if (options.bias) bias = in_proj_bias.narrow(0, part * dim, dim);
  return at::linear(x, in_proj_weight.narrow(0, part * dim, dim), bias)
      .unflatten(2, {options.num_heads, dim / options.num_heads})
      .permute({1, 2, 0, 3});
}

at::Tensor MultiheadAttentionImpl::bias_of(const at::Tensor& key_padding_mask,
                                           const at::Tensor& attn_mask,
                                           at::IntArrayRef sizes) const {
  at::Tensor bias;
  if (key_padding_mask.defined()) {
    require(key_padding_mask.dim() == 2 && key_padding_mask.size(0) == sizes[0] &&
                key_padding_mask.size(1) == sizes[3],
            ErrorCode::bad_data, kWhere, "a key padding mask of shape ", key_padding_mask.sizes());
    bias = addend(key_padding_mask, in_proj_weight.options()).unsqueeze(1).unsqueeze(1);
  }
  if (!attn_mask.defined()) return bias;
  at::Tensor mask = addend(attn_mask, in_proj_weight.options());
  if (mask.dim() == 3 && mask.size(0) == sizes[0] * sizes[1]) {
    mask = mask.unflatten(0, {sizes[0], sizes[1]});
  }
  while (mask.dim() < 4) mask = mask.unsqueeze(0);
  require(mask.size(2) == sizes[2] && mask.size(3) == sizes[3] &&
              (mask.size(0) == 1 || mask.size(0) == sizes[0]),
          ErrorCode::bad_data, kWhere, "an attention mask of shape ", attn_mask.sizes());
  return bias.defined() ? bias + mask : mask;
}

std::tuple<at::Tensor, at::Tensor> MultiheadAttentionImpl::forward(
    const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
    const at::Tensor& key_padding_mask, bool need_weights, const at::Tensor& attn_mask) {
  require(!need_weights, ErrorCode::usage, kWhere, "no weights are computed");
  AttentionCall call{
      .q = heads_of(query, 0), .k = heads_of(key, 1), .v = heads_of(value, 2), .context = context_};
  const int64_t q_len = call.q.size(2), kv_len = call.k.size(2);
  const auto layout_of = [&](int64_t tokens) {
    const bool is_known = options.layout && options.layout->seq_len() == tokens;
    return is_known ? *options.layout : TokenLayout::sequence(tokens);
  };
  call.role = q_len == kv_len ? AttentionRole::self : AttentionRole::cross;
  call.q_layout = layout_of(q_len);
  call.kv_layout = layout_of(kv_len);
  const int64_t sizes[] = {call.q.size(0), options.num_heads, q_len, kv_len};
  call.bias = bias_of(key_padding_mask, attn_mask, sizes);
  const at::Tensor out = attention_->run(call).permute({2, 0, 1, 3}).flatten(2);
  return {out_proj->forward(out), at::Tensor()};
}

}  // namespace fovea::nn
