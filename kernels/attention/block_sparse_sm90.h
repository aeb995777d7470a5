#pragma once

#include <cstdint>

#include "kernels/attention/block_sparse.h"

namespace fovea::kernels {

/// Keys that one tile of queries sees together: `len` rows of k and v from `begin` on.
struct KeySpan {
  int32_t begin = 0;
  int32_t len = 0;  ///< 1 to the tile's keys
};

/// Which keys each tile of queries sees, on the device; null means all of them.
struct TileLists {
  const int32_t* span_ptr = nullptr;  ///< [lists, tiles + 1] into the spans, ascending
  const KeySpan* spans = nullptr;
  /// The list of (batch, head) is batch * batch_stride + head * head_stride.
  int64_t batch_stride = 0, head_stride = 0;
};

/// Softmax attention on compute capability 9.0 in bf16 or fp16: out and lse as of BlockSparseArgs.
/// Rows of q, k, v and out are multiples of 16 bytes apart and begin at such.
struct Sm90Args {
  int64_t batch = 0, heads = 0, kv_heads = 0;  ///< heads is a multiple of kv_heads
  int64_t q_len = 0, kv_len = 0;
  int64_t dim = 0;  ///< of q, k and v: 64 or 128
  HeadRows q, k, v;
  MutableHeadRows out;
  float* lse = nullptr;  ///< [batch, heads, q_len], contiguous; null means not wanted
  TileLists lists;       ///< for tiles of `sm90_tile`
  double sm_scale = 1;   ///< above 0
};

/// What a tile is: so many queries, that see spans of at most so many keys.
struct AttentionTile {
  int queries = 0;
  int keys = 0;
};

/// The tile for dense attention, or for lists.
AttentionTile sm90_tile(int64_t dim, bool dense);

/// Answers `unsupported` with a reason for what it does not cover, `device` for what the driver
/// refused. All work is in the stream; nothing is waited for.
Status block_sparse_sm90(const Sm90Args& args, CudaTarget target);

}  // namespace fovea::kernels
