#pragma once

#include <vector>

#include <ATen/core/Tensor.h>

namespace fovea::ops {

/// One tensor [batch, in_heads, rows, dim] of a half type, of which rows are taken.
struct RowsToGather {
  at::Tensor x;
  at::Tensor rows;    ///< int32 [batch or 1, heads or 1, len], -1: zeros; undefined: as they are
  int64_t heads = 0;  ///< of the result, of which consecutive ones read the same; x's divide them
};

/// Up to three tensors in other orders, by one kernel on a GPU: [batch, heads, len, dim] each,
/// contiguous. Differentiable once, where an order takes no row twice.
///
/// fault   int32 [1] on their device: becomes 1 where there is no such row, which is 0 then
/// throws  Error device for channels that are no multiple of 8
std::vector<at::Tensor> gather_rows(const std::vector<RowsToGather>& parts,
                                    const at::Tensor& fault);

/// Where an order takes each of so many rows: int32 [.., count], -1: nowhere.
///
/// rows  int32 [.., len] as in `RowsToGather`
at::Tensor places_of_rows(const at::Tensor& rows, int64_t count);

/// x [batch, heads, ...] added up over consecutive heads: `heads` of them are left, which divide
/// x's. Sums are fp32.
at::Tensor sum_of_heads(const at::Tensor& x, int64_t heads);

/// x, or a copy of it whose channels are contiguous and whose rows begin at multiples of 16 bytes,
/// none of them shared.
at::Tensor with_aligned_rows(const at::Tensor& x);

}  // namespace fovea::ops
