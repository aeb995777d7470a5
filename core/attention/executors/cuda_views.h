#pragma once

#include <ATen/core/Tensor.h>

#include "core/ops/launch.h"
#include "kernels/attention/block_sparse.h"

// Tensors as the kernels of GPUs are told about them.

namespace fovea {

/// Of an axis of which there is one 0, so that all share it.
inline int64_t stride_of(const at::Tensor& x, int64_t axis) {
  return x.size(axis) == 1 ? 0 : x.stride(axis);
}

/// x  [batch, heads, rows, dim]
inline kernels::HeadRows view_of(const at::Tensor& x) {
  return {x.const_data_ptr(), ops::kernel_dtype(x.scalar_type()), x.stride(0), x.stride(1),
          x.stride(2)};
}
inline kernels::MutableHeadRows written_view_of(const at::Tensor& x) {
  return {x.mutable_data_ptr(), ops::kernel_dtype(x.scalar_type()), x.stride(0), x.stride(1),
          x.stride(2)};
}

/// rows  int32 [batch or 1, heads or 1, len], or undefined
inline kernels::RowOrder order_of(const at::Tensor& rows) {
  if (!rows.defined()) return {};
  return {rows.const_data_ptr<int32_t>(), stride_of(rows, 0), stride_of(rows, 1)};
}

}  // namespace fovea
