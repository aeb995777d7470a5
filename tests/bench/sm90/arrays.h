#pragma once

#include <cstdint>
#include <cstdio>
#include <functional>
#include <random>
#include <vector>

#include <cuda_runtime.h>

namespace fovea::kernels {

/// Arrays of random numbers on the device, given back at the end.
class Arrays {
 public:
  ~Arrays() {
    for (void* x : all_) cudaFree(x);
  }
  template <typename T>
  T* take(int64_t size, const std::function<T(float)>& of_normal) {
    std::normal_distribution<float> normal;
    std::vector<T> drawn(1'000'003);  // each of them used some times
    for (T& value : drawn) value = of_normal(normal(random_));
    size_t next = 0;
    return make<T>(size, [&] { return drawn[next++ % drawn.size()]; });
  }
  /// Of what `value` gives, one after the other.
  template <typename T, typename F>
  T* make(int64_t size, F value) {
    std::vector<T> values(static_cast<size_t>(size));
    for (T& x : values) x = value();
    void* out = nullptr;
    if (cudaMalloc(&out, size * sizeof(T)) != cudaSuccess) std::printf("out of memory\n");
    cudaMemcpy(out, values.data(), size * sizeof(T), cudaMemcpyHostToDevice);
    all_.push_back(out);
    return static_cast<T*>(out);
  }

 private:
  std::mt19937 random_{1};
  std::vector<void*> all_;
};

}  // namespace fovea::kernels
