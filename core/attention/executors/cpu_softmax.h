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
  at::Tensor q;         ///< [batch, heads, q_len, dim], dim up to `kMaxCpuChannels`
  at::Tensor k;         ///< [batch, kv_heads, kv_len, dim]
  at::Tensor v;         ///< [batch, kv_heads, kv_len, value_dim]
  at::Tensor bias;      ///< [batch or 1, heads or 1, q_len or 1, kv_len or 1], or undefined
  at::Tensor key_bias;  ///< [batch or 1, heads or 1, kv_len], or undefined; -inf hides a key
  /// fp32 [batch, heads, q_len], added to all logits of a row, or undefined
  at::Tensor row_bias;
  /// Both or none; where they are there, they are multiplied instead of q and k, which get their
  /// gradients and may be of another type.
  std::optional<IntegerRows> q_int8, k_int8;
  /// Of the weights, per head or block; values are fp32 then.
  Quantized p = {.unit = ScaleUnit::head};
  /// uint8 [batch, q_len]: rows of 0 have no part in scales of p; undefined: all have.
  at::Tensor counted;
  double sm_scale = 1;
  /// Of the keys: what of each segment is valid. None: all of them. With `kv_rows` only for orders
  /// that leave padding at the end of its segment.
  std::optional<TokenLayout> padding;
};

constexpr int64_t kMaxCpuChannels = 256;

/// LibTorch's threads, for kernels.
kernels::Parallel all_threads();

/// The kernel of kernels/attention/block_sparse.h for each item of a batch. Differentiable once, by
/// q, k, v and the biases, both results: with block_sparse_backward.h. What a bias takes that
/// neither all queries nor all keys share is one fp32 number for each logit of an item.
///
/// workspace  kept by the caller from call to call
/// returns    out in v's type, lse fp32
Partial cpu_softmax(const SoftmaxInputs& inputs, const std::shared_ptr<const SoftmaxLists>& lists,
                    at::Tensor& workspace);

}  // namespace fovea
