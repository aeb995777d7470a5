#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/common/isa.h"
#include "kernels/common/status.h"
#include "kernels/common/tensor_view.h"

namespace fovea::kernels {

/// A tensor [batch, heads, rows, channels] whose channels are contiguous. Strides count elements
/// and may be 0 or negative.
struct HeadRows {
  const void* data = nullptr;
  DType dtype = DType::f32;
  int64_t batch_stride = 0, head_stride = 0, row_stride = 0;
};

struct MutableHeadRows {
  void* data = nullptr;
  DType dtype = DType::f32;
  int64_t batch_stride = 0, head_stride = 0, row_stride = 0;
};

/// 8-bit integers with a factor per row: the tensor [batch, heads, rows, channels] is data * scale.
/// Null data means absent.
struct ScaledIntegers {
  const int8_t* data = nullptr;  ///< -127 .. 127
  int64_t batch_stride = 0, head_stride = 0, row_stride = 0;
  const float* scale = nullptr;  ///< [batch, heads, rows], rows contiguous
  int64_t scale_batch_stride = 0, scale_head_stride = 0;
};

/// Position in the order -> row of the tensor: int32 [batch, heads, rows] with strides in elements,
/// 0 where batch items or heads share one order. Null means that positions are rows.
struct RowOrder {
  const int32_t* rows = nullptr;
  int64_t batch_stride = 0, head_stride = 0;
};

/// fp32 values added to the logits; -inf hides a key. Null data means absent.
struct LogitBias {
  const float* data = nullptr;
  int64_t batch_stride = 0, head_stride = 0, row_stride = 0, key_stride = 0;
};

/// Which blocks of keys each block of queries sees: one or more maps in compressed rows. Blocks are
/// ranges of positions (of the orders), of any size, also empty. Arrays with "maps" as their first
/// size are contiguous.
struct BlockLists {
  int64_t maps = 1, num_q_blocks = 0, num_kv_blocks = 0;
  /// The map of (batch, head) is batch * map_batch_stride + head * map_head_stride.
  int64_t map_batch_stride = 0, map_head_stride = 0;
  const int32_t* q_offsets = nullptr;   ///< [maps, num_q_blocks + 1], from 0 to q_len
  const int32_t* kv_offsets = nullptr;  ///< [maps, num_kv_blocks + 1], within 0 .. kv_len
  const int64_t* row_ptr = nullptr;     ///< [maps, num_q_blocks + 1], into the entries
  const int32_t* kv_index = nullptr;    ///< [num_entries], ascending within a row
  int64_t num_entries = 0;
  /// [maps, num_kv_blocks] valid keys at the begin of each block; null means all of them.
  const int32_t* kv_block_len = nullptr;
  /// [num_entries] first word of the entry's bits, or -1 where all its pairs are visible; null
  /// means -1 everywhere.
  const int64_t* bits_offset = nullptr;
  /// Per entry [rows of the block of queries][ceil(keys of the block of keys / 64)] words; bit k %
  /// 64 of word k / 64 says whether the row sees key k.
  const uint64_t* bits = nullptr;
  int64_t num_bit_words = 0;
};

enum class WeightFormat { none, int8, e4m3 };

/// How the softmax' weights are quantized before they meet the values. With p = exp(logit - m), m
/// the row's largest logit, and a the largest p of a unit, p becomes s times the number of the
/// format that is nearest to p / s, halves to even and at most M: s = a / M (1 where a is 0), M =
/// 127 or, of e4m3 (8-bit floats of 4 exponent and 3 fraction bits), 448. Where an entry of the
/// lists is no unit, a is 1, and for e4m3 exp(logit) is rounded to 4 significant bits instead.
struct QuantizedWeights {
  WeightFormat format = WeightFormat::none;
  bool per_entry = false;  ///< an entry of the lists is a unit
  /// [batch, q_len] by row of q, contiguous: rows of 0 have no part in a; null: all have.
  const uint8_t* counted = nullptr;
  // What the forward pass finds and the backward pass reads, unless those bits are all.
  float* row_max = nullptr;  ///< [batch, heads, q_len] by row, contiguous: m / ln 2
  float* largest = nullptr;  ///< a, of (batch, head) from its strides on, for each entry
  int64_t largest_batch_stride = 0, largest_head_stride = 0;  ///< 0 where maps are not shared

  /// Whether the largest logits are to be known before a weight is rounded.
  bool needs_largest() const {
    return format == WeightFormat::int8 || (format == WeightFormat::e4m3 && per_entry);
  }
};

/// Keys and values of fp32 behind those of k and v: pooled ones. Null data of k means none.
struct MoreKeys {
  HeadRows k;         ///< [batch, kv_heads, kv_len - begin, dim]
  HeadRows v;         ///< [batch, kv_heads, kv_len - begin, value_dim]
  int64_t own = 0;    ///< rows of the other k and v, which alone have an order
  int64_t begin = 0;  ///< position and row of the first one: a multiple of 16, not below `own`; no
                      ///< list may name what is between
};

/// out = softmax(sm_scale * q k^T + key_bias + bias) v over the listed pairs, and the natural
/// logarithm of the softmax' denominator. Sums are fp32, or exact for integers; out is rounded
/// once. Where the instruction set multiplies bf16, the softmax' weights are rounded to it for the
/// product with bf16 values, whose divisor is the sum of the rounded ones; lse is that of the
/// others. Values of `more` are rounded to bf16 there as well, its keys are not. Quantized weights
/// meet values of fp32; out is divided by their sum, and lse is that of them.
///
/// The softmax is computed step by step (Milakov and Gimelshein 2018, arXiv:1805.02867), tile by
/// tile as in FlashAttention (Dao et al. 2022, arXiv:2205.14135). A row that sees no key gets 0 and
/// lse -inf. NaN in a row of q stays in that row. Rows of k and v that no list names are never
/// used.
struct BlockSparseArgs {
  int64_t batch = 0, heads = 0, kv_heads = 0;  ///< heads is a multiple of kv_heads
  int64_t q_len = 0, kv_len = 0;
  int64_t dim = 0, value_dim = 0;  ///< 1 .. 256 each
  HeadRows q;                      ///< [batch, heads, q_len, dim]
  HeadRows k;                      ///< [batch, kv_heads, kv_len, dim]
  ScaledIntegers q_int8, k_int8;   ///< both or none; where they are there, instead of q and k
  HeadRows v;                      ///< [batch, kv_heads, kv_len, value_dim]
  MoreKeys more;                   ///< the last ones of kv_len; not with integers
  MutableHeadRows out;             ///< [batch, heads, q_len, value_dim], may not overlap the inputs
  float* lse = nullptr;            ///< [batch, heads, q_len], contiguous; null means not wanted
  RowOrder q_order;                ///< of heads; each row once
  RowOrder kv_order;               ///< of kv_heads; a row that comes twice counts twice
  BlockLists lists;
  double sm_scale = 1;
  LogitBias key_bias;  ///< [batch, heads, kv_len] by row of k; row_stride is not used
  LogitBias bias;      ///< [batch, heads, q_len, kv_len] by rows of q and k
  QuantizedWeights weights;
};

/// Rows of k and v.
inline int64_t own_keys(const BlockSparseArgs& args) {
  return args.more.k.data ? args.more.own : args.kv_len;
}

/// How a kernel gets threads: `run` calls task(state, i) once for each i below count, at the same
/// time where it can, and returns when all are done. Without `run` the caller's thread does it all.
struct Parallel {
  using Task = void (*)(void* state, int64_t index);
  void (*run)(void* context, int64_t count, Task task, void* state) = nullptr;
  void* context = nullptr;
  int threads = 1;  ///< how many tasks are worth starting
};

/// Memory of the caller, aligned to 64 bytes; its content does not matter.
struct Workspace {
  void* data = nullptr;
  int64_t bytes = 0;
};

/// Status invalid when pointers, sizes, orders or lists contradict each other (every index is
/// looked at), unsupported for more than 256 channels and for quantized weights of half types.
Status check(const BlockSparseArgs& args);

/// What block_sparse_cpu needs with that many threads; `args` must have passed check().
int64_t attention_workspace_bytes(const BlockSparseArgs& args, int threads);

/// Computes everything; `isa` must be available. The number of threads changes no bit; instruction
/// sets differ in the last bits.
Status block_sparse_cpu(const BlockSparseArgs& args, Workspace workspace, const Parallel& parallel,
                        Isa isa);

}  // namespace fovea::kernels
