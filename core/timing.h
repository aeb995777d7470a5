#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include <c10/core/Device.h>

// Times of work on a device, for programs that measure.

namespace fovea {

/// Milliseconds of one call; of a GPU by its own clock (events in the current stream), what of the
/// call runs on the host included where the GPU waits for it.
///
/// least_ms  so long calls are repeated one after the other, once to warm up, for what ran before
///           decides the clock of a GPU, and once to be measured; 0: one call
double milliseconds_of(c10::Device device, const std::function<void()>& call, double least_ms = 0);

/// Milliseconds of several calls in turns, so that what else the machine does meets them all: in
/// this order in the first round, in the opposite one in the second, and so on.
///
/// returns  [calls][rounds]
/// throws   Error when a stop is asked for
std::vector<std::vector<double>> time_in_turns(c10::Device device,
                                               const std::vector<std::function<void()>>& calls,
                                               int64_t rounds, double least_ms = 0);

/// The value in the middle, or the mean of the two there; 0 of none.
double median_of(std::vector<double> values);

/// Bytes of a GPU that a call takes of LibTorch's allocator beyond what is taken before it; 0 on
/// the CPU. Resets what `peak_device_bytes` gives.
int64_t peak_bytes_of(c10::Device device, const std::function<void()>& call);

}  // namespace fovea
