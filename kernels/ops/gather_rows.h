#pragma once

#include <cstdint>

#include "kernels/attention/block_sparse.h"
#include "kernels/common/status.h"

namespace fovea::kernels {

/// One tensor [batch, heads, rows, dim] of a half type from the rows of another one.
struct GatheredRows {
  HeadRows in;  ///< [batch, in_heads, in_rows, dim]
  MutableHeadRows out;
  int64_t in_heads = 1, heads = 1;  ///< consecutive heads read the same one; in_heads divides them
  int64_t in_rows = 0, rows = 0;
  /// Of heads: the row of `in` for each row; -1: zeros. Null: the same row.
  RowOrder order;
};

constexpr int kMaxGathered = 3;

/// Rows in another order, such as q, k and v in those of a plan: copies of 16 bytes.
struct GatherRowsArgs {
  int64_t batch = 0;
  int64_t dim = 0;  ///< a multiple of 8; rows begin at multiples of 16 bytes, in and out
  int count = 0;
  GatheredRows parts[kMaxGathered];
  int32_t* fault = nullptr;  ///< [1] becomes 1 where there is no such row; zeros are written then
};

/// Status invalid for sizes that contradict each other, unsupported where 16 bytes do not fit.
Status check(const GatherRowsArgs& args);

/// The same on both; arrays are on the side that computes. `args` must have passed check().
void gather_rows_cpu(const GatherRowsArgs& args);
Status gather_rows_cuda(const GatherRowsArgs& args, CudaTarget target);

}  // namespace fovea::kernels
