#pragma once

#include "kernels/attention/block_sparse.h"

// What planners look at: sums of the rows of blocks, and the softmax between groups of rows, block
// by block.

namespace fovea::kernels {

/// Sums of rows over blocks of positions, all heads of a row after each other.
struct BlockSumsArgs {
  int64_t batch = 0, heads = 0, dim = 0;
  int64_t rows = 0;  ///< of x
  HeadRows x;        ///< [batch, heads, rows, dim]
  RowOrder order;    ///< [batch, heads, rows]
  /// [batch, heads, blocks + 1] positions; a block that ends before it begins is empty
  const int32_t* offsets = nullptr;
  int64_t offsets_batch_stride = 0, offsets_head_stride = 0;  ///< 0 where they are shared
  int64_t blocks = 0;
  const bool* valid = nullptr;    ///< [batch, rows]: rows that count; null: all
  const float* centre = nullptr;  ///< [batch, heads, dim], subtracted from each row; null: nothing
  float* sum = nullptr;           ///< [batch, heads, blocks, dim], or null: not wanted
  float* directions = nullptr;    ///< the same of rows divided by their lengths, or null
};

/// Of groups of `phases` rows each, (query group g).(key group h) = scale * sum over p of
/// q[q_rows[p][g]] . k[k_rows[p][h]]: the logits of a softmax of each group of queries over all
/// groups of keys, whose weights are added, or compared, over blocks of groups.
struct BlockSharesArgs {
  int64_t heads = 0, kv_heads = 0;  ///< heads is a multiple of kv_heads
  int64_t q_len = 0, kv_len = 0, dim = 0;
  HeadRows q;  ///< [heads, q_len, dim], dim 1 .. 256; batch_stride is not used
  HeadRows k;  ///< [kv_heads, kv_len, dim]
  int64_t phases = 1, q_groups = 0, kv_groups = 0;
  const int32_t* q_rows = nullptr;   ///< [phases, q_groups]
  const int32_t* kv_rows = nullptr;  ///< [phases, kv_groups]
  int64_t q_blocks = 0, kv_blocks = 0;
  const int32_t* q_offsets = nullptr;   ///< [q_blocks + 1], ascending groups
  const int32_t* kv_offsets = nullptr;  ///< [kv_blocks + 1]
  const float* q_weight = nullptr;      ///< [q_groups] what a group's shares count; null: 1
  const float* kv_weight = nullptr;     ///< [kv_groups] factor of a group's exponential; null: 1
  double scale = 1;
  /// Of a pair of blocks the largest share of any pair of groups instead of their sum.
  bool largest = false;
  float* shares = nullptr;  ///< [heads, q_blocks, kv_blocks]
};

/// Status invalid when pointers, sizes, orders or offsets contradict each other (every index is
/// looked at), unsupported for more than 256 channels of shares.
Status check(const BlockSumsArgs& args);
Status check(const BlockSharesArgs& args);

/// Computes everything in fp32; `isa` must be available. The number of threads changes no bit;
/// instruction sets differ in the last bits.
Status block_sums_cpu(const BlockSumsArgs& args, const Parallel& parallel, Isa isa);
/// The same on a GPU but for the last bits, the same ones in every run; rows that are not there do
/// not count. Unsupported where rows are no 16-byte packs of up to 256 channels.
Status block_sums_cuda(const BlockSumsArgs& args, CudaTarget target);

/// What block_shares_cpu needs with that many threads; `args` must have passed check().
int64_t block_shares_workspace_bytes(const BlockSharesArgs& args, int threads);
Status block_shares_cpu(const BlockSharesArgs& args, Workspace workspace, const Parallel& parallel,
                        Isa isa);
/// What block_shares_cuda needs, of any content: per head up to (kv_blocks + kv_groups / 21) *
/// q_groups floats, for as many heads as 256 MiB hold, at least one.
int64_t block_shares_cuda_workspace_bytes(const BlockSharesArgs& args, CudaTarget target);
/// The same on a GPU of compute capability 8.0 or newer but for the last bits, the same ones in
/// every run, with q and k of bf16 or fp16 as they are multiplied there, their sums in fp32. All
/// pointers lead to the device, where no index is trusted: a row that is not there counts as zeros,
/// and offsets that do not ascend give any shares. Unsupported for fp32 and where rows are no
/// 16-byte packs of up to 256 channels.
Status block_shares_cuda(const BlockSharesArgs& args, Workspace workspace, CudaTarget target);

}  // namespace fovea::kernels
