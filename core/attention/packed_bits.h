#pragma once

#include <cstdint>

#include <ATen/core/Tensor.h>

namespace fovea {

/// Small numbers along the last axis, several in a byte: number j is in byte j div n at bit
/// bits · (j mod n), with n = 8 / bits. How files keep class maps and stored bits.
///
/// values  uint8 or bool [.., count], each below 2^bits
/// bits    1, 2, 4 or 8
/// returns uint8 [.., ceil(count · bits / 8)]; unused bits are 0
at::Tensor pack_bits(const at::Tensor& values, int64_t bits);

/// The inverse.
///
/// packed  uint8 [.., ceil(count · bits / 8)]
/// returns uint8 [.., count]
at::Tensor unpack_bits(const at::Tensor& packed, int64_t bits, int64_t count);

}  // namespace fovea
