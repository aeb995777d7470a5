// That the emulator finds what a GPU would hang at, or get wrong now and then.
#include <array>
#include <string>

#include <gtest/gtest.h>

#include "kernels/common/launch.cuh"
#include "kernels/common/mma.cuh"
#include "kernels/common/tma.cuh"
#include "kernels/common/tma.h"
#include "kernels/common/wgmma.cuh"
#include "tests/kernels/device_array.h"

namespace fovea::kernels {
namespace {

using emulator::Timing;

template <typename Kernel, typename... Arguments>
std::string fault_of(Kernel* kernel, unsigned threads, const Arguments&... arguments) {
  try {
    EXPECT_TRUE(launch_kernel(kernel, {1, threads, 64 * 1024}, arguments...).ok());
  } catch (const emulator::Fault& fault) {
    return fault.what();
  }
  return "";
}

CUtensorMap map_of(const float* data) {
  TensorMapSpec spec;
  spec.data = data, spec.type = CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
  spec.size = {32, 8, 1, 1, 1}, spec.stride = {128, 1024, 1024, 1024};
  spec.box = {32, 8, 1, 1, 1}, spec.swizzle = Swizzle::none;
  CUtensorMap map;
  EXPECT_TRUE(make_tensor_map(spec, &map).ok());
  return map;
}

// What a kernel with one copy does wrong.
struct Copy {
  int x = 0;                    // where it begins
  uint32_t expected = 8 * 128;  // bytes
  bool waits = true;
};

__global__ void copy_kernel(const __grid_constant__ CUtensorMap map, Copy how, float* out) {
  __shared__ uint64_t barrier;
  char* const box = ptx::dynamic_memory();
  if (threadIdx.x == 0) {
    ptx::barrier_init(&barrier, 1);
    ptx::fence_barrier_init();
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    ptx::arrive_expect(&barrier, how.expected);
    tma::load(box, map, {how.x, 0, 0, 0, 0}, &barrier, tma::evict_first());
  }
  if (how.waits) ptx::wait(&barrier, 0);
  out[threadIdx.x] = reinterpret_cast<const float*>(box)[threadIdx.x];
  ptx::wait(&barrier, 0);
}

TEST(Emulator, FindsFaultsOfCopies) {
  const DeviceArray<float> data(std::vector<float>(256, 3)), out(std::vector<float>(32));
  const CUtensorMap map = map_of(data.data());
  for (const Timing timing : {Timing::early, Timing::late, Timing::any}) {
    emulator::set_timing(timing, 1);
    EXPECT_EQ(fault_of(copy_kernel, 32, map, Copy{}, out.data()), "");
    EXPECT_EQ(out.read(), std::vector<float>(32, 3));
  }
  EXPECT_NE(fault_of(copy_kernel, 32, map, Copy{.x = 3}, out.data()).find("no multiple of 16"),
            std::string::npos);
  EXPECT_NE(fault_of(copy_kernel, 32, map, Copy{.expected = 2048}, out.data())
                .find("all threads wait: 32 for a barrier of copies (first thread 0)"),
            std::string::npos);
  emulator::set_timing(Timing::late, 1);
  EXPECT_EQ(fault_of(copy_kernel, 32, map, Copy{.waits = false}, out.data()), "");
  EXPECT_TRUE(std::isnan(out.read()[0])) << "read before the copy";
}

// Each thread copies four bytes, and another one reads them.
__global__ void thread_copies_kernel(const float* from, bool waits, float* out) {
  __shared__ uint64_t barrier;
  auto* const numbers = reinterpret_cast<float*>(ptx::dynamic_memory());
  if (threadIdx.x == 0) ptx::barrier_init(&barrier, 32);
  numbers[threadIdx.x] = -1;
  __syncthreads();
  mma::copy4(ptx::shared_address(numbers + threadIdx.x), from + threadIdx.x, true);
  mma::arrive_with_copies(&barrier);
  if (waits) ptx::wait(&barrier, 0);
  out[threadIdx.x] = numbers[31 - threadIdx.x];
  ptx::wait(&barrier, 0);
}

TEST(Emulator, ArrivesWhenCopiesOfThreadsAreThere) {
  const DeviceArray<float> from(std::vector<float>(32, 3)), out(std::vector<float>(32));
  for (const Timing timing : {Timing::early, Timing::late, Timing::any}) {
    emulator::set_timing(timing, 1);
    EXPECT_EQ(fault_of(thread_copies_kernel, 32, from.data(), true, out.data()), "");
    EXPECT_EQ(out.read(), std::vector<float>(32, 3));
  }
  emulator::set_timing(Timing::late, 1);
  EXPECT_EQ(fault_of(thread_copies_kernel, 32, from.data(), false, out.data()), "");
  EXPECT_EQ(out.read()[0], -1) << "read before the copies";
}

// Blocks in falling order.
__global__ void turns_kernel(int32_t* counter, int32_t* out) {
  const int turn = static_cast<int>(gridDim.x - 1 - blockIdx.x);
  if (threadIdx.x == 0) {
    ptx::wait_for_turn(counter, turn);
    out[turn] = static_cast<int>(blockIdx.x);
    ptx::pass_turn(counter);
  }
}

TEST(Emulator, RunsBlocksThatWaitForOneAnother) {
  const int processors = emulator::processors();
  const auto run = [&](unsigned blocks) {
    const DeviceArray<int32_t> counter(std::vector<int32_t>(1, 0)),
        out(std::vector<int32_t>(blocks, 0));
    std::string fault;
    try {
      EXPECT_TRUE(launch_kernel(turns_kernel, {blocks, 32}, counter.data(), out.data()).ok());
    } catch (const emulator::Fault& found) {
      fault = found.what();
    }
    if (fault.empty()) {
      for (unsigned i = 0; i < blocks; ++i) {
        EXPECT_EQ(out.read()[i], static_cast<int>(blocks - 1 - i));
      }
    }
    return fault;
  };
  emulator::set_processors(4);
  EXPECT_EQ(run(4), "");
  // The fifth one never begins.
  EXPECT_NE(run(5).find("all threads wait: 1 for other blocks (first thread 0)"),
            std::string::npos);
  emulator::set_processors(processors);
}

__global__ void product_kernel(bool waits, float* out) {
  char* const memory = ptx::dynamic_memory();
  for (int i = threadIdx.x; i < 4096; i += 128) {
    reinterpret_cast<__nv_bfloat16*>(memory)[i] = __float2bfloat16(1);
  }
  __syncthreads();
  const wgmma::Matrix ones = wgmma::k_major(ptx::shared_address(memory));
  float c[16];
  for (float& x : c) x = -1;
  wgmma::fence();
  wgmma::multiply<wgmma::Type::bf16>(c, ones, ones, 0);
  wgmma::commit();
  if (waits) wgmma::wait<0>();
  out[threadIdx.x] = c[0];
  wgmma::wait<0>();
}

TEST(Emulator, FindsProductsThatNobodyWaitsFor) {
  const DeviceArray<float> out(std::vector<float>(128));
  for (const bool waits : {true, false}) {
    emulator::set_timing(Timing::late, 1);
    EXPECT_EQ(fault_of(product_kernel, 128, waits, out.data()), "");
    EXPECT_EQ(out.read() == std::vector<float>(128, 16), waits);
  }
}

__global__ void diverged_kernel() {
  if (threadIdx.x < 16) __syncwarp();
  __shfl_sync(0xffffffff, 1, 0);
}
__global__ void barrier_kernel() {
  if (threadIdx.x < 32) {
    ptx::named_sync(1, 64);
  } else {
    ptx::named_sync(1, 96);
  }
}
__global__ void arrivals_kernel() {
  __shared__ uint64_t barrier;
  if (threadIdx.x == 0) {
    ptx::barrier_init(&barrier, 2);
    ptx::arrive_expect(&barrier, 16);
    ptx::arrive(&barrier);
    ptx::arrive(&barrier);
  }
}
__global__ void left_stores_kernel(float* out) {
  char* const memory = ptx::dynamic_memory();
  if (threadIdx.x != 0) return;
  ptx::bulk_store(out, memory, 16);
  ptx::bulk_commit();
}

TEST(Emulator, FindsFaultsOfThreads) {
  const auto has = [](const std::string& text, const char* part) {
    EXPECT_NE(text.find(part), std::string::npos) << text;
  };
  has(fault_of(diverged_kernel, 32), "a warp is at __s");
  has(fault_of(barrier_kernel, 64), "is taken for one of");
  has(fault_of(arrivals_kernel, 32), "more arrives than is awaited");
  const DeviceArray<float> out(std::vector<float>(4));
  emulator::set_timing(Timing::late, 1);
  has(fault_of(left_stores_kernel, 32, out.data()), "ends before its stores have been read");
}

__global__ void read_behind_kernel(const float* data, float* out) {
  out[threadIdx.x] = data[threadIdx.x];
}

TEST(EmulatorDeathTest, MemoryEnds) {
  const DeviceArray<float> data(std::vector<float>(32)), out(std::vector<float>(64));
  EXPECT_EQ(fault_of(read_behind_kernel, 32, data.data(), out.data()), "");
  EXPECT_DEATH(fault_of(read_behind_kernel, 64, data.data(), out.data()), "");
}

// A lane says that a slot is free while others of its warp have not read it yet.
__global__ void race_kernel(int* out) {
  __shared__ uint64_t full, empty;
  __shared__ int slot;
  if (threadIdx.x == 0) {
    ptx::barrier_init(&full, 1);
    ptx::barrier_init(&empty, 1);
  }
  __syncthreads();
  if (threadIdx.x >= 32) {
    for (uint32_t i = 0; i < 8; ++i) {
      ptx::wait(&empty, (i & 1) ^ 1);
      if (threadIdx.x == 32) slot = static_cast<int>(i), ptx::arrive(&full);
      __syncwarp();
    }
  } else {
    for (uint32_t i = 0; i < 8; ++i) {
      ptx::wait(&full, i & 1);
      if (threadIdx.x == 0) ptx::arrive(&empty);
      if (slot != static_cast<int>(i)) atomicAdd(out, 1);
    }
  }
}

TEST(Emulator, FindsRacesBetweenLanes) {
  const DeviceArray<int> wrong(std::vector<int>{0});
  int hangs = 0;
  for (uint32_t seed = 0; seed < 20; ++seed) {
    emulator::set_timing(Timing::any, seed);
    hangs += !fault_of(race_kernel, 64, wrong.data()).empty();
  }
  EXPECT_GT(hangs + wrong.read()[0], 0);
}

}  // namespace
}  // namespace fovea::kernels
