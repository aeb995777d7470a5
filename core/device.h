#pragma once

#include <cstdint>
#include <string>

#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>

namespace fovea {

/// "cpu", "cuda" (index 0) or "cuda:N".
///
/// throws  Error usage for another text, device (within 2 s) when no GPU, driver or kernel image
///         for it is there
c10::Device parse_device(const std::string& text);

/// "fp32", "bf16", "fp16", "fp64". throws Error usage for another text
c10::ScalarType parse_dtype(const std::string& text);
std::string dtype_name(c10::ScalarType dtype);

/// Threads for LibTorch's CPU operators and our own loops; 0 = all cores this process may use,
/// shared evenly with the other ones of `processes` on this machine.
void set_num_threads(int num_threads, int processes = 1);

/// Peak resident bytes of this process so far.
int64_t peak_host_bytes();
/// Peak bytes allocated on `device` by LibTorch's allocator; 0 on CPU.
int64_t peak_device_bytes(c10::Device device);

/// Human name, such as "cpu (AVX2, 2 threads)" or "cuda:0 (NVIDIA H200)".
std::string device_name(c10::Device device);

/// Waits until all work queued on `device` is done, so that wall times are true; nothing on CPU.
void synchronize(c10::Device device);

}  // namespace fovea
