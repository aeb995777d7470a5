#pragma once

#include <ATen/core/Tensor.h>

namespace fovea {

/// Random numbers by counting: the number of a counter is always the same, on every device, and
/// nothing is read by the host.
///
/// counter  int64, any shape
/// seed     another one gives other numbers
/// bound    int64, broadcasts to counter, 1 to 2^31
/// returns  int64 as counter, 0 to bound - 1, the high bits of splitmix64 (Steele et al., 2014)
///          scaled down
at::Tensor random_below(const at::Tensor& counter, int64_t seed, const at::Tensor& bound);

}  // namespace fovea
