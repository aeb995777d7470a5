#pragma once

#include <optional>
#include <string>

#include <ATen/core/Tensor.h>

#include "core/attention/block_mask.h"
#include "core/attention/call.h"
#include "core/attention/precision.h"
#include "kernels/attention/eight_bit_cuda.h"

// Operands in 8-bit numbers where the call's tensors are: on a GPU, or on the CPU in tests. Nothing
// waits for a GPU.

namespace fovea {

/// Why kernels of eight_bit_cuda.h do not compute in such numbers, or nothing.
std::optional<std::string> why_not_bytes(const Precision& precision, const AttentionCall& call);

/// Whether rows of q or k share scales by blocks.
bool has_block_scales(const Precision& precision);

/// Keys in an order in which all blocks begin at multiples of 16.
struct PaddedKeys {
  BlockAxis blocks;
  at::Tensor valid;  ///< int32 [batch or 1, heads of q or 1, blocks] keys at the begin of each
  at::Tensor rows;   ///< int32 [batch or 1, heads or 1, len] of positions, -1 in between
  int64_t len = 0;
};

/// Nothing where they do already, as far as the host knows.
///
/// rows  int32 [batch or 1, kv_heads or 1, len] of positions, or undefined: as they are
std::optional<PaddedKeys> pad_blocks(const BlockAxis& blocks, const at::Tensor& rows,
                                     const AttentionCall& call);

/// Whether keys of a span have scales of their own, with spans as lists cut blocks.
bool scales_by_key(const Quantized& keys, bool is_listed);

struct ByteOperands {
  at::Tensor q, k, v;                    ///< bytes, see `EightBitOperands`
  at::Tensor q_scale, k_scale, v_scale;  ///< fp32
  at::Tensor lse_more;                   ///< fp32, or undefined
  kernels::ByteFormat format = kernels::ByteFormat::e4m3;
  bool scale_by_key = false;

  kernels::EightBitOperands view() const;
};

struct ByteOperandsOf {
  const AttentionCall& call;
  const Precision& precision;
  const BlockAxis &q_blocks, &kv_blocks;  ///< of the orders
  at::Tensor q_rows, kv_rows;             ///< int32, -1 for none; undefined: as they are
  bool is_listed = false;
  double sm_scale = 1;
};

/// fault  int32 [1] on the tensors' device: becomes 1 where there are no such rows or pieces
ByteOperands make_byte_operands(const ByteOperandsOf& of, const at::Tensor& fault);

}  // namespace fovea
