#pragma once

#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

// What power a GPU takes while something runs, as the driver's management library (NVML, loaded if
// it is there) tells. That library also tells a clock, which is not the true one: under a load that
// told 1.86 GHz a kernel's own clocks came at 1.61 to 1.67 GHz (docs/tuning-sm90.md).

namespace fovea::bench {

/// Of the first GPU.
class PowerMeter {
 public:
  PowerMeter() {
    void* const library = dlopen("libnvidia-ml.so.1", RTLD_NOW);
    if (library == nullptr) return;
    const auto start = reinterpret_cast<int (*)()>(dlsym(library, "nvmlInit_v2"));
    const auto device_of = reinterpret_cast<int (*)(unsigned, void**)>(
        dlsym(library, "nvmlDeviceGetHandleByIndex_v2"));
    fields_ = reinterpret_cast<Fields>(dlsym(library, "nvmlDeviceGetFieldValues"));
    if (start == nullptr || device_of == nullptr || fields_ == nullptr || start() != 0) return;
    if (device_of(0, &device_) != 0) device_ = nullptr;
  }

  /// Watts while `run` does, asked for again and again: the median of the later half, when the
  /// clock has come to what the load allows. 0 where nobody tells.
  double watts_during(const std::function<void()>& run) const {
    std::vector<double> watts;
    std::atomic<bool> is_done = false;
    std::thread asks([&] {
      while (device_ != nullptr && !is_done) {
        Field power;
        if (fields_(device_, 1, &power) == 0 && power.status == 0) {
          watts.push_back(1e-3 * power.value);
        }
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
      }
    });
    run();
    is_done = true;
    asks.join();
    if (watts.empty()) return 0;
    const auto begin = watts.begin() + static_cast<std::ptrdiff_t>(watts.size() / 2);
    const auto half = begin + (watts.end() - begin) / 2;
    std::nth_element(begin, half, watts.end());
    return *half;
  }

 private:
  // As nvml.h has it.
  struct Field {
    unsigned id = 186, scope = 0;  // NVML_FI_DEV_POWER_INSTANT, in mW
    int64_t time = 0, latency = 0;
    int type = 0, status = 0;
    union {
      unsigned value;
      uint64_t bits = 0;
    };
  };
  using Fields = int (*)(void* device, int count, Field* fields);

  void* device_ = nullptr;
  Fields fields_ = nullptr;
};

}  // namespace fovea::bench
