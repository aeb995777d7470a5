#pragma once

#include <cstdint>

#include "kernels/attention/eight_bit_cuda.h"
#include "kernels/common/host_device.h"

// q, k and v in the 8-bit numbers of eight_bit_cuda.h. With a the largest magnitude of the numbers
// that share a scale and M = 448 or 127, their scale is s = a / M (1 where a is 0), and x becomes
// the nearest number to x / s, halves to even. NaN and infinities make the scale so. Tensors have a
// half type, 64 or 128 channels, and rows at multiples of 16 bytes. Arrays are on the side that
// computes; both sides give the same bits, but for sums, which differ in the last ones.

namespace fovea::kernels {

/// Rows of a tensor by positions: [batch, heads, len, dim].
struct BytesFrom {
  HeadRows x;  ///< [batch, in_heads, in_rows, dim]
  int64_t batch = 0, in_heads = 1, in_rows = 0, dim = 0;
  int64_t heads = 1, len = 0;  ///< consecutive heads read the same one; in_heads divides them
  /// Of heads: the row of each position; -1: zeros, which count nowhere. Null: the same.
  RowOrder order;
  int32_t* fault = nullptr;  ///< [1] becomes 1 where there is no such row, which is zeros then
};

/// What columns have in common: [batch, heads, dim] each.
struct ColumnStatsArgs {
  BytesFrom from;
  float* largest = nullptr;  ///< the largest magnitudes; null: not wanted
  float* mean = nullptr;     ///< of positions that have a row, 0 of none; null: not wanted
  float* sums = nullptr;     ///< with a mean: [batch, heads, column_chunks(len), dim + 1] workspace
};
constexpr int64_t kChunkRows = 256;
constexpr int64_t column_chunks(int64_t len) { return (len + kChunkRows - 1) / kChunkRows; }

/// Rows that share scales with neighbours.
struct ByteRowsArgs {
  BytesFrom from;
  ByteFormat format = ByteFormat::e4m3;
  /// [batch, mean_heads, dim], consecutive heads have the same; null: none. It is subtracted, or
  /// where `dot` is there, [batch, heads, len], its product with rows times `dot_factor` is
  /// written.
  const float* mean = nullptr;
  int64_t mean_heads = 1;
  float* dot = nullptr;
  float dot_factor = 1;
  /// Pieces of consecutive positions that share a scale: those of (batch, head) are of map batch *
  /// map_batch_stride + head * map_head_stride, [maps, num_pieces + 1] from 0 to len. Null: each
  /// position, or with `largest` all of a head.
  const int32_t* offsets = nullptr;
  int64_t num_pieces = 0, map_batch_stride = 0, map_head_stride = 0;
  float* largest = nullptr;  ///< [batch, heads] workspace
  void* out = nullptr;       ///< [batch, heads, len, dim]
  float* scale = nullptr;    ///< [batch, heads, scale_len]
  int64_t scale_len = 0;     ///< at least len; what is behind len or in no piece stays as it is
};

/// Values, transposed: see `EightBitOperands`. In e4m3.
struct ByteColumnsArgs {
  BytesFrom from;
  const float* largest = nullptr;  ///< [batch, in_heads, dim] of `ColumnStatsArgs`
  bool by_head = false;            ///< channels of a head share a scale
  void* out = nullptr;             ///< [batch, heads, dim, byte_places(len)]
  float* scale = nullptr;          ///< [batch, heads, dim]
};

/// Status unsupported for other channels, invalid where sizes contradict each other.
Status check(const BytesFrom& from);

void column_stats_cpu(const ColumnStatsArgs& args);
void byte_rows_cpu(const ByteRowsArgs& args);
void byte_columns_cpu(const ByteColumnsArgs& args);
Status column_stats_cuda(const ColumnStatsArgs& args, CudaTarget target);
Status byte_rows_cuda(const ByteRowsArgs& args, CudaTarget target);
Status byte_columns_cuda(const ByteColumnsArgs& args, CudaTarget target);

/// The scale of numbers of such a largest magnitude.
FOVEA_HD inline float byte_scale(float largest, ByteFormat format) {
  return largest == 0 ? 1 : largest / (format == ByteFormat::e4m3 ? 448.0f : 127.0f);
}

}  // namespace fovea::kernels
