#pragma once

#include <cstdint>

#include "kernels/attention/block_sparse_cuda.h"
#include "kernels/common/e4m3.h"

namespace fovea::kernels {

/// Numbers of 8 bits: e4m3 (4 exponent and 3 fraction bits, up to 448) or integers up to 127.
enum class ByteFormat : uint8_t { e4m3, int8 };

/// Places of so many keys in what is transposed, and scales of them: whole sixteens.
constexpr int64_t byte_places(int64_t kv_len) { return (kv_len + 15) / 16 * 16; }

/// Operands of attention in 8-bit numbers; every value is its number times its scale. All arrays
/// are contiguous and begin at multiples of 16 bytes; scales are above 0.
struct EightBitOperands {
  ByteFormat format = ByteFormat::e4m3;  ///< of q and k; v is e4m3
  const void* q = nullptr;               ///< [batch, heads, q_len, dim]
  const float* q_scale = nullptr;        ///< [batch, heads, q_len]
  const void* k = nullptr;               ///< [batch, kv_heads, kv_len, dim]
  const float* k_scale = nullptr;        ///< [batch, kv_heads, byte_places(kv_len)]
  /// Keys of a span, or of 128 from a multiple of 128 on, have scales of their own; else the first
  /// one's is that of all.
  bool scale_by_key = false;
  /// [batch, kv_heads, dim, byte_places(kv_len)], of each 16 keys in the order of `key_of_place`;
  /// numbers of no key are finite.
  const void* v = nullptr;
  const float* v_scale = nullptr;   ///< [batch, kv_heads, dim]
  const float* lse_more = nullptr;  ///< [batch, heads, q_len] is added to lse; null: nothing
};

/// The tile of lists for such attention; spans begin at multiples of 16.
constexpr AttentionTile kEightBitTile = {128, 128};

/// Softmax attention as `CudaAttentionArgs` has it, in 8-bit numbers on compute capability 9.0.
///
/// Of `args` q, k, v, q_int8, k_int8 and more are absent. The weight of a logit, its exponential,
/// is rounded to the nearest n * 2^c, n a number of e4m3, halves to even, and 2^c such that the
/// row's largest weight so far (from the last step of 128 keys to the first) is at most 448 of
/// them, and was 128 to 256 when c was chosen. The divisor is the sum of what they are rounded to.
/// out and lse are else as there. Logits of integers are exact but for their scale; products with
/// weights and the sum of these are summed by 128 keys with 14 bits, and those sums in fp32.
///
/// Answers as `block_sparse_sm90` does.
Status eight_bit_attention_sm90(const CudaAttentionArgs& args, const EightBitOperands& operands,
                                CudaTarget target);

}  // namespace fovea::kernels
