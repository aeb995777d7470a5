#pragma once

#include "kernels/attention/block_sparse.h"

namespace fovea::kernels {

/// Gradients of block_sparse's results with respect to q, k, v and the biases.
///
/// The probabilities are computed again from q, k and the saved lse, tile by tile, as in
/// FlashAttention-2 (Dao 2023, arXiv:2307.08691, section 3.1.2); a gradient of the lse joins the
/// sums of grad_out * out. Arithmetic is fp32, each gradient is rounded once.
///
/// A row that sees no key gives and gets 0. Keys that no list names get 0, and so does what bits
/// hide. Gradients pass the rounding of quantized weights as if it were not there: those of v are
/// sums of quantized weights, those of logits come from the weights before, and the gradients of a
/// row's logits need not add up to that of its lse.
struct BlockSparseBackwardArgs {
  /// As the forward got them, what it found of quantized weights too; `out` and `lse` (both needed)
  /// hold its results and are only read. Both orders name each row exactly once.
  BlockSparseArgs forward;
  HeadRows grad_out;                ///< [batch, heads, q_len, value_dim]
  const float* grad_lse = nullptr;  ///< [batch, heads, q_len], contiguous; null means 0
  // Null data means not wanted. They may not overlap each other or the inputs.
  MutableHeadRows grad_q;  ///< [batch, heads, q_len, dim]
  MutableHeadRows grad_k;  ///< [batch, kv_heads, kv_len, dim]
  MutableHeadRows grad_v;  ///< [batch, kv_heads, kv_len, value_dim]
  /// fp32, of the forward's `more`; wanted where grad_k and grad_v are
  MutableHeadRows grad_more_k, grad_more_v;
  float* grad_key_bias = nullptr;  ///< [batch, heads, kv_len], contiguous, by row of k
  float* grad_row_bias = nullptr;  ///< [batch, heads, q_len]: sums over the keys, by row of q
  /// [batch, heads, q_len, kv_len], contiguous, by rows of q and k: of every logit. Only pairs of
  /// listed blocks are written.
  float* grad_bias = nullptr;
};

/// What check(BlockSparseArgs) asks, and that the orders are permutations.
Status check(const BlockSparseBackwardArgs& args);

/// What block_sparse_backward_cpu needs with that many threads; `args` must have passed check().
int64_t attention_backward_workspace_bytes(const BlockSparseBackwardArgs& args, int threads);

/// Computes all wanted gradients; `isa` must be available. The number of threads changes no bit;
/// instruction sets differ in the last bits.
Status block_sparse_backward_cpu(const BlockSparseBackwardArgs& args, Workspace workspace,
                                 const Parallel& parallel, Isa isa);

}  // namespace fovea::kernels
