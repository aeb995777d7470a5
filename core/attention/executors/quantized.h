#pragma once

#include <ATen/core/Tensor.h>

#include "core/attention/block_mask.h"
#include "core/attention/precision.h"
#include "core/attention/token_order.h"

namespace fovea {

/// What an operand's scales are about: the positions of one side of a selection.
struct OperandSide {
  const TokenOrder& order;
  const TokenLayout& layout;
  const BlockAxis& blocks;

  /// int64 [batch or 1, heads or 1, seq_len]: the piece of each row, of `group` positions of a
  /// block or, where it is 0, of all of it.
  at::Tensor pieces(int64_t heads, at::Device device, int64_t group) const;
};

/// The largest entry of each piece at each of its rows.
///
/// x        [batch, heads, seq_len, columns]
/// piece    as of `OperandSide::pieces`, below `pieces`
/// returns  as x
at::Tensor largest_of_pieces(const at::Tensor& x, const at::Tensor& piece, int64_t pieces);

/// x in the numbers of an operand, as values; padding has no part in a scale.
///
/// x        [batch, heads, seq_len, dim], fp32 or fp64
/// returns  as x
at::Tensor quantized_operand(const at::Tensor& x, const Quantized& how, const OperandSide& side);

/// 8-bit integers with a factor a row: data * scale is the tensor.
struct IntegerRows {
  at::Tensor data;   ///< int8 [batch, heads, seq_len, dim], contiguous
  at::Tensor scale;  ///< fp32 [batch, heads, seq_len], contiguous
};

/// The same for integers, with kernels/attention/quantize_rows.h.
///
/// x     on the CPU, fp32, fp16 or bf16; padding holds `mean`, or 0 without one
/// how   int8 per head, block or token
/// mean  fp32 [batch, heads, 1, dim] is subtracted first, or undefined
IntegerRows integer_rows(const at::Tensor& x, const Quantized& how, const OperandSide& side,
                         const at::Tensor& mean);

}  // namespace fovea
