#pragma once

#include <cstdint>
#include <string>

#include <ATen/core/Tensor.h>

namespace fovea {

/// What numbers become before they are multiplied.
enum class NumberFormat {
  storage,  ///< nothing else
  int8,     ///< integers from -127 to 127
  e4m3,     ///< 8-bit floats of 4 exponent and 3 fraction bits: 2^-9 to 448, no infinity
};

/// The numbers of a head that share one scale; padding has no part in it.
enum class ScaleUnit {
  head,     ///< all of them
  block,    ///< those of one block of the selection: of a tile, where blocks are tiles
  token,    ///< the channels of one token
  channel,  ///< one channel of all tokens; for values only
};

/// How one operand is quantized. With a the largest magnitude of a unit and M = 127 or 448, its
/// scale is s = a / M (1 where a is 0), and x becomes s · n with n = x / s rounded to the nearest
/// number of the format, halves to even, and limited to ±M.
struct Quantized {
  NumberFormat format = NumberFormat::storage;
  ScaleUnit unit = ScaleUnit::block;
  /// With `block`: so many consecutive positions of a block share a scale instead; 0: the block.
  int64_t group = 0;
  bool operator==(const Quantized&) const = default;
};

/// In what numbers a softmax branch is computed. All arithmetic on them is that of the inputs'
/// wide type: fp32, or fp64 where q is; an executor may add up in another order.
///
/// With q', k', v' the quantized operands, the logits of a row are s = sm_scale · q'·k' + bias over
/// all keys that it sees, m is the largest of them, p = exp(s − m), and p' is p quantized as `p`
/// says. Then out = Σ p'·v' / Σ p', a mean of v' whatever the rounding did, and lse = m + ln Σ p'.
/// Rows without a key get 0 and −∞. Queries that are padding have no part in scales, of p neither.
///
/// Gradients go straight through the rounding, and m is a constant. With dx that of x,
/// dv' = Σ p'·dout / Σ p' over the rows and ds = (dout·v' − dout·out + dlse) p / Σ p'; q, k and v
/// get dq', dk' and dv'. Where p is quantized, the ds of a row do not add up to dlse exactly, and
/// with `smooth_k` the keys' mean gets what that leaves.
struct Precision {
  Quantized q, k;  ///< per head, block or token
  Quantized v;     ///< per head, block or channel
  /// Of the softmax's weights. `block`: one scale for each pair of blocks, its largest p is a.
  /// `head` of int8: a is 1. `head` of e4m3: exp(s) is rounded relative to a power of 2. With c the
  /// smallest integer for which exp(m) ≤ 256 · 2^c, p' = n · 2^c · exp(−m), n the number nearest to
  /// exp(s) / 2^c. That leaves exp(s) 4 significant bits whatever m is, unless it is below
  /// 2^(c − 6), where e4m3 has fewer; an executor may round such smaller ones more finely, as one
  /// does that finds the largest logit while keys come.
  Quantized p = {.unit = ScaleUnit::head};
  /// Keys are quantized without their mean over the valid tokens of a head. What is lost,
  /// sm_scale · q·mean, is the same for all keys of a row: no part of s, and added to lse
  /// (SageAttention, Zhang et al., 2025, section 3.2).
  bool smooth_k = false;
  bool operator==(const Precision&) const = default;

  bool is_storage() const;
  /// What is not as it is stored, such as "q int8 per block, k int8 per block, smooth k"; or "".
  std::string describe() const;
};

/// x in a format, as values: x's type, fp32 or fp64.
///
/// amax    broadcasts to x, its type: the largest magnitude of each number's unit
/// returns as x; gradients of x pass as if nothing had been done
at::Tensor quantize(const at::Tensor& x, NumberFormat format, const at::Tensor& amax);

}  // namespace fovea
