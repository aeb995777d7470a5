#include "core/attention/device_constants.h"

#include <mutex>
#include <unordered_map>

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

namespace fovea {
namespace {

constexpr size_t kMost = 512;

struct Constants {
  std::mutex mutex;
  std::unordered_map<std::string, at::Tensor> tensors;
};

// Never destroyed: at the end of the process memory of the device is gone before this would be.
Constants& constants() {
  static auto* const all = new Constants;
  return *all;
}

}  // namespace

at::Tensor device_constant(const std::string& key, at::Device device,
                           const std::function<at::Tensor()>& make) {
  if (device.is_cpu()) return make();
  // What is kept may meet autograd later.
  const c10::InferenceMode no_inference(false);
  const std::string own = device.str() + " " + key;
  Constants& all = constants();
  const std::lock_guard lock(all.mutex);
  if (const auto found = all.tensors.find(own); found != all.tensors.end()) return found->second;
  at::Tensor made = make().to(device);
  if (all.tensors.size() < kMost) all.tensors.emplace(own, made);
  return made;
}

at::Tensor device_numbers(const std::vector<int64_t>& numbers, at::Device device) {
  return device_constant("numbers " + key_of(numbers), device,
                         [&] { return at::tensor(numbers, at::kLong); });
}

std::string key_of(const std::vector<int64_t>& numbers) {
  return {reinterpret_cast<const char*>(numbers.data()), numbers.size() * sizeof(int64_t)};
}

}  // namespace fovea
