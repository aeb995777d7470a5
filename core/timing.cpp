#include "core/timing.h"

#include <algorithm>
#include <chrono>

#include <ATen/DeviceAccelerator.h>
#include <c10/core/Event.h>

#include "core/device.h"
#include "core/interrupt.h"

namespace fovea {
namespace {

constexpr double kMostRuns = 1e6;

double milliseconds_of_runs(c10::Device device, const std::function<void()>& call, int64_t runs) {
  if (device.is_cuda()) {
    const c10::Stream stream = at::accelerator::getCurrentStream(device.index());
    c10::Event begin(device.type(), c10::EventFlag::BACKEND_DEFAULT);
    c10::Event end(device.type(), c10::EventFlag::BACKEND_DEFAULT);
    begin.record(stream);
    for (int64_t i = 0; i < runs; ++i) call();
    end.record(stream);
    end.synchronize();
    return begin.elapsedTime(end);
  }
  const auto start = std::chrono::steady_clock::now();
  for (int64_t i = 0; i < runs; ++i) call();
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start)
      .count();
}

}  // namespace

double milliseconds_of(c10::Device device, const std::function<void()>& call, double least_ms) {
  synchronize(device);
  if (least_ms <= 0) return milliseconds_of_runs(device, call, 1);
  call();  // starts libraries
  const double once = std::max(milliseconds_of_runs(device, call, 1), least_ms / kMostRuns);
  const auto runs = std::max<int64_t>(1, static_cast<int64_t>(least_ms / once));
  milliseconds_of_runs(device, call, runs);
  return milliseconds_of_runs(device, call, runs) / static_cast<double>(runs);
}

std::vector<std::vector<double>> time_in_turns(c10::Device device,
                                               const std::vector<std::function<void()>>& calls,
                                               int64_t rounds, double least_ms) {
  std::vector<std::vector<double>> times(calls.size());
  for (int64_t round = 0; round < rounds; ++round) {
    for (size_t i = 0; i < calls.size(); ++i) {
      throw_if_interrupted();
      const size_t now = round % 2 == 0 ? i : calls.size() - 1 - i;
      times[now].push_back(milliseconds_of(device, calls[now], least_ms));
    }
  }
  return times;
}

double median_of(std::vector<double> values) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  const size_t half = values.size() / 2;
  return values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2;
}

int64_t peak_bytes_of(c10::Device device, const std::function<void()>& call) {
  if (!device.is_cuda()) {
    call();
    return 0;
  }
  synchronize(device);
  const auto bytes = [&] {
    return at::accelerator::getDeviceStats(device.index())
        .allocated_bytes[static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE)];
  };
  at::accelerator::resetPeakStats(device.index());
  const int64_t before = bytes().current;
  call();
  synchronize(device);
  return bytes().peak - before;
}

}  // namespace fovea
