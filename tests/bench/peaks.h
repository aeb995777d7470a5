#pragma once

// Times, threads, and the rate of multiply-adds in registers that kernels are measured against.

#include <algorithm>
#include <cstdint>
#include <ctime>
#include <functional>
#include <thread>
#include <vector>

#include <ATen/Parallel.h>

#include "kernels/attention/block_sparse.h"

namespace fovea::kernels {

/// With one thread its time on a core, which leaves out what other programs take of it.
inline double seconds(const std::function<void()>& call) {
  const auto now = [] {
    timespec time{};
    clock_gettime(at::get_num_threads() == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &time);
    return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
  };
  const double start = now();
  call();
  return now() - start;
}

/// Fresh threads for each call: at::parallel_for runs serially in files compiled without OpenMP,
/// and a pool that waits busily would slow the other side down.
inline void run_on_threads(void*, int64_t count, Parallel::Task task, void* state) {
  std::vector<std::thread> threads;
  for (int64_t i = 1; i < count; ++i) threads.emplace_back(task, state, i);
  task(state, 0);
  for (std::thread& thread : threads) thread.join();
}

// Products on registers alone. The sums begin with different values, which the empty assembly
// hides: the compiler would otherwise compute one sum for all of them.
#define FOVEA_RATE_LOOP(name, width, features, step)                                        \
  __attribute__((target(features), noinline)) inline float name(int64_t rounds) {           \
    typedef float Vector __attribute__((vector_size(width * 4)));                           \
    Vector s0 = {}, s1 = {}, s2 = {}, s3 = {}, s4 = {}, s5 = {}, s6 = {}, s7 = {}, s8 = {}; \
    Vector s9 = {}, a = 1.0f - Vector{}, b = 1e-3f - Vector{};                              \
    asm volatile("" : "+x"(s0), "+x"(s1), "+x"(s2), "+x"(s3), "+x"(s4), "+x"(a));           \
    asm volatile("" : "+x"(s5), "+x"(s6), "+x"(s7), "+x"(s8), "+x"(s9), "+x"(b));           \
    for (int64_t n = 0; n < rounds; ++n) {                                                  \
      s0 = step(s0), s1 = step(s1), s2 = step(s2), s3 = step(s3), s4 = step(s4);            \
      s5 = step(s5), s6 = step(s6), s7 = step(s7), s8 = step(s8), s9 = step(s9);            \
    }                                                                                       \
    return (s0 + s1 + s2 + s3 + s4 + s5 + s6 + s7 + s8 + s9)[0];                            \
  }
#if defined(__x86_64__)
typedef short Words __attribute__((vector_size(64)));
typedef int Quads __attribute__((vector_size(64)));
#define FOVEA_FMA_STEP(sum) (sum * a + b)
#define FOVEA_BF16_STEP(sum) ((Vector)__builtin_ia32_dpbf16ps_v16sf(sum, (Words)a, (Words)b))
#define FOVEA_INT8_STEP(sum) ((Vector)__builtin_ia32_vpdpbusd_v16si((Quads)sum, (Quads)a, (Quads)b))
FOVEA_RATE_LOOP(fma_loop_16, 16, "avx512f", FOVEA_FMA_STEP)
FOVEA_RATE_LOOP(bf16_loop, 16, "avx512f,avx512bw,avx512bf16", FOVEA_BF16_STEP)
FOVEA_RATE_LOOP(int8_loop, 16, "avx512f,avx512bw,avx512vnni", FOVEA_INT8_STEP)
FOVEA_RATE_LOOP(fma_loop_8, 8, "avx2,fma", FOVEA_FMA_STEP)
#endif
FOVEA_RATE_LOOP(fma_loop_4, 4, "sse2", FOVEA_FMA_STEP)
constexpr int64_t kSums = 10;

/// How fast products of two kinds are, GF/s of all threads together.
struct Peaks {
  double fp32 = 0, bf16 = 0, int8 = 0;
};

/// With `flops` a round and sum.
inline double rate(float (*kernel)(int64_t), int64_t flops, int threads) {
  constexpr int64_t kRounds = 10'000'000;
  const auto loop = [](void* state, int64_t) {
    volatile float kept = (*static_cast<float (**)(int64_t)>(state))(kRounds);
    (void)kept;
  };
  double best = 0;
  for (int i = 0; i < 20; ++i) {
    const double time = seconds([&] { run_on_threads(nullptr, threads, loop, &kernel); });
    best = std::max(best, 1e-9 * static_cast<double>(kSums * flops * kRounds * threads) / time);
  }
  return best;
}

/// Of what the kernels use with this instruction set.
inline Peaks measure_peaks(Isa isa, int threads) {
  Peaks peaks;
#if defined(__x86_64__)
  if (isa == Isa::avx2) peaks.fp32 = rate(fma_loop_8, 16, threads);
  if (isa >= Isa::avx512) peaks.fp32 = rate(fma_loop_16, 32, threads);
  if (isa >= Isa::avx512_vnni) peaks.int8 = rate(int8_loop, 128, threads);
  if (isa >= Isa::avx512_bf16) peaks.bf16 = rate(bf16_loop, 64, threads);
#endif
  if (isa == Isa::baseline) peaks.fp32 = rate(fma_loop_4, 8, threads);
  if (peaks.bf16 == 0) peaks.bf16 = peaks.fp32;
  if (peaks.int8 == 0) peaks.int8 = peaks.fp32;
  return peaks;
}

}  // namespace fovea::kernels
