#pragma once

#include <cstdint>

#include "kernels/attention/block_sparse.h"
#include "kernels/attention/tile_lists.h"

namespace fovea::kernels {

/// What a tile is: so many queries, that see spans of at most so many keys, or packed steps of so
/// many.
struct AttentionTile {
  int queries = 0;
  int keys = 0;
  bool is_packed = false;
  bool operator==(const AttentionTile&) const = default;
};

/// fp32 values added to the logits of all queries of a head; -inf hides a key. Null data means
/// absent.
struct KeyBias {
  const float* data = nullptr;  ///< [batch, heads, keys], keys contiguous
  int64_t batch_stride = 0, head_stride = 0;
  int32_t begin = 0;  ///< position of the first key that has one; those before have 0
};

/// Softmax attention of the GPU in bf16 or fp16 over listed spans of keys:
/// out = softmax(sm_scale * q k^T + key_bias) v, and the natural logarithm of the softmax'
/// denominator. A row that sees no key gets 0 and -inf. Sums are fp32, the weights are rounded to
/// the type of v for their product with it. Rows of q, k, v and out are multiples of 16 bytes apart
/// and begin at such.
struct CudaAttentionArgs {
  int64_t batch = 0, heads = 0, kv_heads = 0;  ///< heads is a multiple of kv_heads
  int64_t q_len = 0, kv_len = 0;               ///< kv_len without `more`
  int64_t dim = 0;                             ///< of q, k and v
  HeadRows q, k, v;                            ///< of one type, bf16 or fp16
  /// Both or none; where they are there, instead of q and k: logits are those of data * scale, of
  /// which the sums of integers are exact. Not with `more`.
  ScaledIntegers q_int8, k_int8;
  /// Of the same type: keys and values with the positions from `begin` on, which is not below
  /// kv_len. Spans lie on one side. Null data of k means none.
  struct MoreKeys {
    HeadRows k, v;
    int32_t begin = 0, len = 0;
  } more;
  MutableHeadRows out;
  RowOrder out_order;    ///< of heads: row of out and lse for each row of q; null: the same
  float* lse = nullptr;  ///< [batch, heads, q_len], contiguous; null means not wanted
  TileLists lists;       ///< of tiles and spans of at most `tile`; each row of q in one tile
  AttentionTile tile;    ///< that of `sm90_tile`, `sm90_packed_tile` or `sm80_tile`, for lists
  KeyBias key_bias;      ///< for lists
  double sm_scale = 1;   ///< above 0
  /// [1] 0, and 0 again when the call is done; not of two calls at a time. Tiles of lists go to
  /// whoever is ready for one; null: in turns.
  int32_t* next_tile = nullptr;
};

/// The tile for lists of blocks of such sizes, which it divides where it can. Both are the same.
AttentionTile sm90_tile(int64_t block_q, int64_t block_kv);
AttentionTile sm80_tile(int64_t block_q, int64_t block_kv);

/// The tile for packed lists on compute capability 9.0, for blocks of keys of any sizes. They have
/// no masks and biases. Any `keys` of 128, 160 or 176 are taken.
AttentionTile sm90_packed_tile();

/// On compute capability 9.0. Answers `unsupported` with a reason for what it does not cover,
/// `device` for what the driver refused. All work is in the stream; nothing is waited for.
Status block_sparse_sm90(const CudaAttentionArgs& args, CudaTarget target);

/// The same on compute capability 8.0 and newer, for 32, 64, 96, 128 and 256 channels; with
/// integers for 64 and 128.
Status block_sparse_sm80(const CudaAttentionArgs& args, CudaTarget target);

}  // namespace fovea::kernels
