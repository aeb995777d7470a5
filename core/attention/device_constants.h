#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

namespace fovea {

/// What the host knows as a tensor on a device. For a GPU it is made and copied once for each key,
/// and kept as long as the process lives: later calls neither copy nor wait, and may be captured in
/// a CUDA graph. Beyond a few hundred keys all new ones are made for each call.
///
/// key      says all that `make` depends on
/// make     the tensor on the CPU
/// returns  not to be written to
at::Tensor device_constant(const std::string& key, at::Device device,
                           const std::function<at::Tensor()>& make);
/// The same of numbers: int64 [n].
at::Tensor device_numbers(const std::vector<int64_t>& numbers, at::Device device);
/// Numbers as a part of a key.
std::string key_of(const std::vector<int64_t>& numbers);

}  // namespace fovea
