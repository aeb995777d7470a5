// Times the kernels of core/ops against their compositions at the sizes of Wan2.1 (1.3B at 81 x 480
// x 832, 14B at 81 x 720 x 1280), on the CPU and, if there is one, on a GPU:
//
//   cmake --build build --target ops_bench && build/tests/ops_bench [cpu|cuda] [divisor of the
//   rows]

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/InferenceMode.h>

#include "core/device.h"
#include "core/ops/modulate.h"
#include "core/ops/norm.h"
#include "core/ops/rope.h"

namespace fovea {
namespace {

/// Median seconds of a call after two calls to warm up.
double seconds(at::Device device, const std::function<at::Tensor()>& call) {
  const int repeats = device.is_cuda() ? 30 : 5;
  std::vector<double> times;
  for (int i = 0; i < repeats + 2; ++i) {
    synchronize(device);
    const auto start = std::chrono::steady_clock::now();
    call();
    synchronize(device);
    const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
    if (i >= 2) times.push_back(time.count());
  }
  std::nth_element(times.begin(), times.begin() + times.size() / 2, times.end());
  return times[times.size() / 2];
}

struct Case {
  const char* name;
  int tensors;  ///< how many tensors of the size of x are read or written at least
  std::function<at::Tensor()> fused;
  std::function<at::Tensor()> composition;
};

void run(at::Device device, int64_t tokens, int64_t dim) {
  const auto half = at::TensorOptions(device).dtype(at::kBFloat16);
  const auto full = at::TensorOptions(device).dtype(at::kFloat);
  const at::Tensor x = at::randn({1, tokens, dim}, half), y = at::randn({1, tokens, dim}, half);
  const at::Tensor weight = at::randn({dim}, half);
  const at::Tensor scale = at::randn({1, dim}, full), shift = at::randn({1, dim}, full);
  const at::Tensor angle = at::randn({tokens, 64}, full), cos = angle.cos(), sin = angle.sin();
  const at::Tensor heads = x.unflatten(2, {dim / 128, 128});
  const std::vector<Case> cases = {
      {"rms_norm", 2, [&] { return rms_norm(x, weight, 1e-6); },
       [&] { return composition::rms_norm(x, weight, 1e-6); }},
      {"rope", 2, [&] { return rope(heads, cos, sin); },
       [&] { return composition::rope(heads, cos, sin); }},
      {"rms_norm_rope", 2, [&] { return rms_norm_rope(x, weight, cos, sin, 1e-6); },
       [&] { return composition::rms_norm_rope(x, weight, cos, sin, 1e-6); }},
      {"layer_norm_modulate", 2, [&] { return layer_norm_modulate(x, scale, shift, 1e-6); },
       [&] { return composition::layer_norm_modulate(x, scale, shift, 1e-6); }},
      {"gate_residual", 3, [&] { return gate_residual(x, y, scale); },
       [&] { return composition::gate_residual(x, y, scale); }},
  };
  for (const Case& c : cases) {
    const double fused = seconds(device, c.fused), plain = seconds(device, c.composition);
    const double gigabytes = 1e-9 * c.tensors * static_cast<double>(x.nbytes());
    std::printf("| %-19s | %6lld x %-4lld | %9.3f | %7.1f | %11.3f | %5.2f |\n", c.name,
                static_cast<long long>(tokens), static_cast<long long>(dim), fused * 1e3,
                gigabytes / fused, plain * 1e3, plain / fused);
    std::fflush(stdout);
  }
}

}  // namespace
}  // namespace fovea

int main(int argc, char** argv) {
  const c10::InferenceMode inference;
  const std::string only = argc > 1 ? argv[1] : "";
  const int64_t divisor = argc > 2 ? std::max(1l, std::atol(argv[2])) : 1;
  for (const std::string device : {"cpu", "cuda:0"}) {
    if ((!only.empty() && only != device) || (device != "cpu" && !at::hasCUDA())) continue;
    std::printf("%s, bf16\n", fovea::device_name(at::Device(device)).c_str());
    std::printf(
        "| op                  | size          | fused ms  | GB/s    | composed ms | ratio |\n");
    std::printf(
        "| ------------------- | ------------- | --------- | ------- | ----------- | ----- |\n");
    fovea::run(at::Device(device), 32760 / divisor, 1536);
    fovea::run(at::Device(device), 75600 / divisor, 5120);
  }
}
