#pragma once

#include <cstdint>

#include "kernels/attention/block_sparse_cuda.h"

namespace fovea::kernels {

/// Gradients of the results of block_sparse_sm90 and _sm80 with respect to q, k and v,
/// deterministic: each tile of queries walks over its keys and each tile of keys over its queries,
/// without additions in global memory. All gradients with 128 channels of dense attention, and of
/// lists with column tiles of 128 and `columns_on_grid` without biases and more keys, come from one
/// kernel of compute capability 9.0, where tiles of keys add to the gradients of queries in global
/// memory, in an order that shapes, lists and the number of multiprocessors give, and timing does
/// not. The weights are computed again from q, k and lse
/// (FlashAttention-2, Dao 2023, arXiv:2307.08691, section 3.1.2). Sums are fp32; weights and
/// gradients of logits are rounded to the type of q for their products. A row that sees no key
/// gives and gets 0. All rows of q, k, v and grad_out hold finite numbers, also those that no list
/// has: what lies beside a tile or a span is multiplied by 0.
struct CudaAttentionBackwardArgs {
  /// As the forward got them, but for rows in another order; `out` and `lse` (both needed) hold its
  /// results and are only read. The bias of keys gets no gradient.
  CudaAttentionArgs forward;
  HeadRows grad_out;                ///< [batch, heads, q_len, dim] of the type of q
  const float* grad_lse = nullptr;  ///< [batch, heads, q_len], contiguous; null means 0
  // Of the type of q; their rows, and those of grad_out, lie as those of q must. Null data means
  // not wanted; grad_k and grad_v come together.
  MutableHeadRows grad_q;  ///< [batch, heads, q_len, dim]
  MutableHeadRows grad_k;  ///< [batch, kv_heads, kv_len, dim]; keys in no tile keep what they hold
  MutableHeadRows grad_v;  ///< the same of v
  /// Of forward.more, wanted where grad_k and grad_v are: [batch, kv_heads, more.len, dim]
  MutableHeadRows grad_more_k, grad_more_v;
  /// forward.lists from the side of the keys: its tiles are of keys, its spans of queries, its
  /// masks say for each key of a tile which queries of a span see it; one side may have some where
  /// the other needs none. Heads of one kv head have the same tiles, the spans of each head are its
  /// own. Without forward.lists not used.
  TileLists columns;
  AttentionTile column_tile;     ///< `queries` keys that see spans of at most `keys` queries
  bool columns_on_grid = false;  ///< all of their spans begin at multiples of column_tile.keys
  float* workspace = nullptr;    ///< of so many bytes as below, aligned to 16
};

/// The tile of `columns` for lists of blocks of such sizes. Both are the same.
AttentionTile sm90_column_tile(int64_t block_q, int64_t block_kv);

/// What the kernels below need; `args` are all but for the workspace.
int64_t sm90_backward_workspace_bytes(const CudaAttentionBackwardArgs& args);
int64_t sm80_backward_workspace_bytes(const CudaAttentionBackwardArgs& args);

/// On compute capability 9.0. Answers `unsupported` with a reason for what it does not cover,
/// `device` for what the driver refused. All work is in the stream; nothing is waited for.
Status block_sparse_backward_sm90(const CudaAttentionBackwardArgs& args, CudaTarget target);

/// The same on compute capability 8.0 and newer.
Status block_sparse_backward_sm80(const CudaAttentionBackwardArgs& args, CudaTarget target);

}  // namespace fovea::kernels
