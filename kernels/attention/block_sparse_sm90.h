#pragma once

#include <cstdint>

#include "kernels/attention/block_sparse.h"
#include "kernels/attention/tile_lists.h"

namespace fovea::kernels {

/// What a tile is: so many queries, that see spans of at most so many keys.
struct AttentionTile {
  int queries = 0;
  int keys = 0;
  bool operator==(const AttentionTile&) const = default;
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
  TileLists lists;       ///< of tiles and spans of at most `tile`; each row of q in one tile
  AttentionTile tile;    ///< that of `sm90_tile`, for lists
  double sm_scale = 1;   ///< above 0
};

/// The tile for lists of blocks of such sizes, which it divides where it can.
AttentionTile sm90_tile(int64_t block_q, int64_t block_kv);

/// Answers `unsupported` with a reason for what it does not cover, `device` for what the driver
/// refused. All work is in the stream; nothing is waited for.
Status block_sparse_sm90(const Sm90Args& args, CudaTarget target);

}  // namespace fovea::kernels
