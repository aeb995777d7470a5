#pragma once

#include <cstdint>

#include "kernels/attention/block_sparse.h"

namespace fovea::kernels {

/// The rows of heads as 8-bit integers. With a the largest magnitude of a piece, consecutive
/// positions of an order, its rows get the factor s = a / 127 (1 where a is 0), and x becomes
/// n = x / s rounded to the nearest integer, halves to even. All instruction sets give these bits.
struct QuantizeRowsArgs {
  int64_t batch = 0, heads = 0, len = 0, dim = 0;
  HeadRows x;  ///< [batch, heads, len, dim]; NaN and infinities make the factor of their piece so
  const float* mean = nullptr;  ///< [batch, heads, dim] is subtracted first, in fp32; or null
  RowOrder order;
  /// The piece of (batch, head) are those of map batch * map_batch_stride + head * map_head_stride.
  int64_t maps = 1, num_pieces = 0, map_batch_stride = 0, map_head_stride = 0;
  const int32_t* offsets = nullptr;  ///< [maps, num_pieces + 1] from 0 to len; null: each position
  int8_t* out = nullptr;             ///< [batch, heads, len, dim] by row
  float* scale = nullptr;            ///< [batch, heads, len] by row
};

/// Status invalid when pointers, sizes, orders or pieces contradict each other.
Status check(const QuantizeRowsArgs& args);

/// Computes everything; `isa` must be available.
Status quantize_rows_cpu(const QuantizeRowsArgs& args, const Parallel& parallel, Isa isa);

}  // namespace fovea::kernels
