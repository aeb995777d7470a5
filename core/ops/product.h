#pragma once

#include <ATen/core/Tensor.h>

// Products of fp32 matrices on the CPU, and sums, whose bits depend neither on the number of
// threads nor on the rest of a batch, which LibTorch's do. All are differentiable, and so are their
// gradients, which are the same functions.

namespace fovea::ops {

/// a·b like at::matmul.
///
/// a        [..., rows, inner] any strides, fp32 on the CPU like b
/// b        [..., inner, columns]; the leading dimensions broadcast
/// returns  [..., rows, columns]
at::Tensor product(const at::Tensor& a, const at::Tensor& b);

/// Of the rows of each block xᵀ·y.
///
/// x, y     [batch, heads, len, dim] and [batch, heads, len, other_dim]
/// offsets  int64 on the CPU [batch or 1, heads or 1, blocks + 1], ascending from 0 to len
/// returns  [batch, heads, blocks, dim, other_dim]
at::Tensor product_of_blocks(const at::Tensor& x, const at::Tensor& y, const at::Tensor& offsets);

/// The rows of each block times the block's matrix.
///
/// x         [batch, heads, len, dim]
/// matrices  [batch, heads, blocks, dim, other_dim]
/// returns   [batch, heads, len, other_dim]
at::Tensor rows_times_blocks(const at::Tensor& x, const at::Tensor& matrices,
                             const at::Tensor& offsets);

// Functions of each number. LibTorch takes vectors of them, and the rest of each thread's share one
// by one, with other bits; what is not fp32 on the CPU is left to it.
at::Tensor exp(const at::Tensor& x);
at::Tensor log(const at::Tensor& x);
at::Tensor elu_plus_one(const at::Tensor& x);

/// x summed over the dimensions in which `sizes` broadcasts to its shape; what is not fp32 on the
/// CPU by LibTorch.
at::Tensor sum_to_shape(const at::Tensor& x, at::IntArrayRef sizes);

/// x broadcast to `sizes`; its gradient is `sum_to_shape`.
at::Tensor spread(const at::Tensor& x, at::IntArrayRef sizes);

/// [batch, kv_heads, ...] as [batch, heads, ...]: consecutive heads get the same.
at::Tensor spread_heads(const at::Tensor& x, int64_t heads);

}  // namespace fovea::ops
