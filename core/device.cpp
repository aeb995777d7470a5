#include "core/device.h"

#include <dlfcn.h>
#include <sched.h>
#include <sys/resource.h>

#include <algorithm>

#include <ATen/ATen.h>
#include <ATen/DeviceAccelerator.h>
#include <ATen/Parallel.h>

#include "core/check.h"

namespace fovea {
namespace {

// The one driver call that LibTorch has no face for; the library is loaded already when it is
// asked.
std::string cuda_device_name(int index) {
  void* driver = ::dlopen("libcuda.so.1", RTLD_LAZY);
  if (driver == nullptr) return "unknown";
  const auto get = reinterpret_cast<int (*)(int*, int)>(::dlsym(driver, "cuDeviceGet"));
  const auto get_name =
      reinterpret_cast<int (*)(char*, int, int)>(::dlsym(driver, "cuDeviceGetName"));
  char name[128] = "unknown";
  int device = 0;
  if (get != nullptr && get_name != nullptr && get(&device, index) == 0) {
    get_name(name, sizeof name, device);
  }
  ::dlclose(driver);
  return name;
}

}  // namespace

c10::Device parse_device(const std::string& text) {
  if (text == "cpu") return c10::Device(c10::kCPU);
  const bool indexed = text.rfind("cuda:", 0) == 0 && text.size() > 5 && text.size() <= 8 &&
                       text.find_first_not_of("0123456789", 5) == std::string::npos;
  require(text == "cuda" || indexed, ErrorCode::usage, "--device",
          "expected cpu, cuda or cuda:N, got '", text, "'");
  require(at::detail::getCUDAHooks().hasCUDA() || at::hasCUDA(), ErrorCode::device, text,
          "no usable NVIDIA GPU: either no driver or no device is visible to this process");
  const int index = indexed ? std::stoi(text.substr(5)) : 0;
  const int count = at::detail::getCUDAHooks().getNumGPUs();
  require(index < count, ErrorCode::device, text, "this machine shows ", count,
          " GPU(s), numbered from 0");
  return c10::Device(c10::kCUDA, static_cast<c10::DeviceIndex>(index));
}

c10::ScalarType parse_dtype(const std::string& text) {
  if (text == "fp32") return c10::kFloat;
  if (text == "bf16") return c10::kBFloat16;
  if (text == "fp16") return c10::kHalf;
  if (text == "fp64") return c10::kDouble;
  throw Error(ErrorCode::usage, "--dtype",
              str("expected fp32, bf16, fp16 or fp64, got '", text, "'"));
}

std::string dtype_name(c10::ScalarType dtype) {
  switch (dtype) {
    case c10::kFloat:
      return "fp32";
    case c10::kBFloat16:
      return "bf16";
    case c10::kHalf:
      return "fp16";
    case c10::kDouble:
      return "fp64";
    default:
      return c10::toString(dtype);
  }
}

void set_num_threads(int num_threads, int processes) {
  if (num_threads == 0) {
    cpu_set_t set;
    CPU_ZERO(&set);
    const int cores = ::sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
    num_threads = std::max(1, cores / processes);
  }
  require(num_threads >= 1 && num_threads <= 1024, ErrorCode::usage, "--threads",
          "expected 0 (all cores) to 1024, got ", num_threads);
  at::set_num_threads(num_threads);
}

int64_t peak_host_bytes() {
  struct rusage usage {};
  ::getrusage(RUSAGE_SELF, &usage);
  return static_cast<int64_t>(usage.ru_maxrss) * 1024;  // Linux counts KiB
}

int64_t peak_device_bytes(c10::Device device) {
  if (!device.is_cuda()) return 0;
  const auto stats = at::accelerator::getDeviceStats(device.index());
  return stats.allocated_bytes[static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE)]
      .peak;
}

std::string device_name(c10::Device device) {
  if (device.is_cuda()) return str(device.str(), " (", cuda_device_name(device.index()), ")");
  return str("cpu (", at::get_cpu_capability(), ", ", at::get_num_threads(), " threads)");
}

void synchronize(c10::Device device) {
  if (device.is_cuda()) at::accelerator::synchronizeDevice(device.index());
}

}  // namespace fovea
