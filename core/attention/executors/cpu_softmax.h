#pragma once

#include <memory>
#include <optional>
#include <vector>

#include <ATen/core/Tensor.h>

#include "core/attention/executors/partial.h"
#include "core/attention/executors/quantized.h"
#include "core/attention/lower.h"
#include "kernels/attention/block_sparse.h"

namespace fovea {

/// Lists and orders of one softmax on the CPU.
struct SoftmaxLists {
  std::vector<HostLists> items;  ///< one, or one for each item of the batch
  /// int32 [batch or 1, heads or 1, tokens], kv_rows of kv heads; undefined: identity
  at::Tensor q_rows, kv_rows;
};

/// Tensors of one softmax: fp32, fp16 or bf16, of one type, on the CPU, any strides.
struct SoftmaxInputs {
  at::Tensor q;  ///< [batch, heads, q_len, dim], dim up to `kMaxCpuChannels`
  at::Tensor k;  ///< [batch, kv_heads, kv_len, dim]
  at::Tensor v;  ///< [batch, kv_heads, kv_len, value_dim]
  /// fp32 [batch, kv_heads, keys, dim] and [..., value_dim]: keys that come behind the others, from
  /// number `more_begin` on, a multiple of 16; or undefined. Lists and biases count them.
  at::Tensor more_k, more_v;
  int64_t more_begin = 0;
  at::Tensor bias;      ///< [batch or 1, heads or 1, q_len or 1, keys or 1], or undefined
  at::Tensor key_bias;  ///< [batch or 1, heads or 1, keys], or undefined; -inf hides a key
  /// fp32 [batch, heads, q_len], added to lse: what all logits of a row have more; or undefined
  at::Tensor row_bias;
  /// Both or none; where they are there, they are multiplied instead of q and k, which get their
  /// gradients and may be of another type. Not with more keys.
  std::optional<IntegerRows> q_int8, k_int8;
  /// Of the weights, per head or block; values are fp32 then.
  Quantized p = {.unit = ScaleUnit::head};
  /// uint8 [batch, q_len]: rows of 0 have no part in scales of p; undefined: all have.
  at::Tensor counted;
  double sm_scale = 1;
  /// Of k: what of each segment is valid. None: all of them. With `kv_rows` only for
  /// orders that leave padding at the end of its segment.
  std::optional<TokenLayout> padding;

  int64_t keys() const { return more_k.defined() ? more_begin + more_k.size(2) : k.size(2); }
};

constexpr int64_t kMaxCpuChannels = 256;

/// The kernel of kernels/attention/block_sparse.h for each item of a batch. Differentiable once, by
/// q, k, v and the biases, both results: with block_sparse_backward.h. What a bias takes that
/// neither all queries nor all keys share is one fp32 number for each logit of an item.
///
/// workspace  kept by the caller from call to call
/// returns    out in v's type, lse fp32
Partial cpu_softmax(const SoftmaxInputs& inputs, const std::shared_ptr<const SoftmaxLists>& lists,
                    at::Tensor& workspace);

}  // namespace fovea
