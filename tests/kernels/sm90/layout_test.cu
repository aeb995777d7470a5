// Where the copy engine and the matrix units of compute capability 9.0a put numbers. All data are
// small integers, so that results are exact and every misplaced number shows.
#include <cstdint>
#include <functional>
#include <random>
#include <vector>

#include <cuda_fp8.h>
#include <gtest/gtest.h>

#include "kernels/common/e4m3.h"
#include "kernels/common/fragment.cuh"
#include "kernels/common/launch.cuh"
#include "kernels/common/tma.cuh"
#include "kernels/common/tma.h"
#include "kernels/common/wgmma.cuh"
#include "tests/kernels/gpu_test.h"

namespace fovea::kernels {
namespace {

using wgmma::Type;

class Sm90Layout : public WithIntegers<Sm90Test> {};

std::vector<__nv_bfloat16> as_bf16(const std::vector<int>& values) {
  std::vector<__nv_bfloat16> out;
  for (const int x : values) out.push_back(__float2bfloat16(static_cast<float>(x)));
  return out;
}

// [rows, columns] as tensors of the copy engine: (64, rows, columns / 64, 1, 1). Boxes have all
// panels, or so many.
CUtensorMap panels(const __nv_bfloat16* data, uint64_t rows, uint64_t columns, uint32_t box_rows,
                   uint32_t box_panels = 0) {
  TensorMapSpec spec;
  spec.data = data;
  spec.size = {64, rows, columns / 64, 1, 1};
  spec.stride = {columns * 2, 128, rows * columns * 2, rows * columns * 2};
  spec.box = {64, box_rows, box_panels > 0 ? box_panels : static_cast<uint32_t>(columns / 64), 1,
              1};
  CUtensorMap map;
  const Status status = make_tensor_map(spec, &map);
  EXPECT_TRUE(status.ok()) << status.message;
  return map;
}

// Dynamic shared memory behind other variables begins at a multiple of 1024 only as far as we see
// to it.
[[maybe_unused]] __device__ char* aligned_memory() {
  char* const memory = ptx::dynamic_memory();
  return memory + (1024 - ptx::shared_address(memory) % 1024) % 1024;
}
constexpr int kSharedBytes = 200 * 1024;

template <typename Kernel, typename... Arguments>
void launch(Kernel* kernel, int blocks, int threads, const Arguments&... arguments) {
  const Status status = launch_kernel(
      kernel, {static_cast<unsigned>(blocks), static_cast<unsigned>(threads), kSharedBytes},
      arguments...);
  ASSERT_TRUE(status.ok()) << status.message;
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
}

// A barrier for the one thread that loads.
[[maybe_unused]] __device__ void make_barrier(uint64_t* barrier) {
  if (threadIdx.x == 0) {
    ptx::barrier_init(barrier, 1);
    ptx::fence_barrier_init();
  }
  __syncthreads();
}

// ---- 1. What a copied box looks like in shared memory -------------------------------------------

__global__ void __launch_bounds__(128, 1)
    copy_box(const __grid_constant__ CUtensorMap map, tma::Corner corner, int bytes, char* out) {
#ifdef FOVEA_SM90A
  __shared__ uint64_t barrier;
  char* const box = aligned_memory();
  make_barrier(&barrier);
  if (threadIdx.x == 0) {
    ptx::arrive_expect(&barrier, bytes);
    tma::load(box, map, corner, &barrier, tma::evict_first());
  }
  ptx::wait(&barrier, 0);
  for (int i = threadIdx.x; i < bytes; i += blockDim.x) out[i] = box[i];
#endif
}

TEST_F(Sm90Layout, BoxesAreSwizzledAndZeroOutside) {
  constexpr int kRows = 100, kColumns = 128, kBox = 64;
  const std::vector<int> values = integers(kRows * kColumns, 100);
  const DeviceArray<__nv_bfloat16> data(as_bf16(values));
  const CUtensorMap map = panels(data.data(), kRows, kColumns, kBox);
  for (const int first : {0, 3, -5, 70, 200}) {
    const int bytes = kBox * kColumns * 2;
    const DeviceArray<char> out(std::vector<char>(bytes, 0x55));
    launch(copy_box, 1, 128, map, tma::Corner{0, first, 0, 0, 0}, bytes, out.data());
    const std::vector<char> box = out.read();
    const auto* numbers = reinterpret_cast<const __nv_bfloat16*>(box.data());
    for (int r = 0; r < kBox; ++r) {
      for (int c = 0; c < kColumns; ++c) {
        const int unit = c % 64 / 8;
        const int place = c / 64 * kBox * 64 + r * 64 + (unit ^ (r % 8)) * 8 + c % 8;
        const int row = first + r;
        const bool inside = row >= 0 && row < kRows;
        ASSERT_EQ(__bfloat162float(numbers[place]), inside ? values[row * kColumns + c] : 0)
            << "row " << r << ", column " << c << " of the box at " << first;
      }
    }
  }
}

// Boxes of one panel each at any row of it, one behind the other: as one copy of all rows would be.
__global__ void __launch_bounds__(128, 1)
    copy_piece(const __grid_constant__ CUtensorMap map, const __grid_constant__ CUtensorMap rest,
               int3 rows, char* out) {
#ifdef FOVEA_SM90A
  __shared__ uint64_t barrier;
  char* const panels = aligned_memory();  // (2, 160, 64) bf16
  constexpr int kPanel = 160 * 128;
  make_barrier(&barrier);
  for (int i = threadIdx.x; i < 2 * kPanel; i += blockDim.x) panels[i] = 0x55;
  ptx::fence_async_proxy();
  __syncthreads();
  const int from = rows.x, to = rows.y, height = rows.z;
  if (threadIdx.x == 0) ptx::arrive_expect(&barrier, 2 * (height + 8) * 128);
  __syncthreads();
  // By lanes side by side, as kernels do it.
  if (threadIdx.x < 4) {
    const int panel = threadIdx.x % 2;
    const bool is_rest = threadIdx.x >= 2;
    char* const place = panels + panel * kPanel + (to + (is_rest ? height : 0)) * 128;
    tma::load(place, is_rest ? rest : map, {0, from + (is_rest ? height : 0), panel, 0, 0},
              &barrier, tma::evict_last());
  }
  ptx::wait(&barrier, 0);
  for (int i = threadIdx.x; i < 2 * kPanel; i += blockDim.x) out[i] = panels[i];
#endif
}

TEST_F(Sm90Layout, BoxesBeginAtAnyRow) {
  constexpr int kRows = 200, kPanelRows = 160;
  const std::vector<int> values = integers(kRows * 128, 100);
  const DeviceArray<__nv_bfloat16> data(as_bf16(values));
  const CUtensorMap rest = panels(data.data(), kRows, 128, 8, 1);
  for (const int height : {1, 2, 3, 4, 7, 8, 16, 31, 32, 64, 128}) {
    const CUtensorMap map = panels(data.data(), kRows, 128, height, 1);
    for (const int to : {0, 1, 3, 5, 8, 14, 23}) {
      const int from = to * 2 + 1;
      const DeviceArray<char> out(std::vector<char>(2 * kPanelRows * 128));
      launch(copy_piece, 1, 128, map, rest, make_int3(from, to, height), out.data());
      const std::vector<char> got = out.read();
      const auto* numbers = reinterpret_cast<const __nv_bfloat16*>(got.data());
      for (int r = 0; r < kPanelRows; ++r) {
        const bool is_there = r >= to && r < to + height + 8;
        for (int c = 0; c < 128; ++c) {
          const int place = (c / 64 * kPanelRows + r) * 64 + (c % 64 / 8 ^ r % 8) * 8 + c % 8;
          if (is_there) {
            ASSERT_EQ(__bfloat162float(numbers[place]), values[(from + r - to) * 128 + c])
                << "row " << r << ", column " << c << " of " << height << " rows at " << to;
          } else {
            ASSERT_EQ(got[2 * place], 0x55) << "row " << r << " of " << height << " at " << to;
          }
        }
      }
    }
  }
}

TEST_F(Sm90Layout, BoxesOfGridsComeRowByRow) {
  // [frames, height, width, 64]; a box of 2 x 4 x 8 tokens that hangs over two edges.
  constexpr int kFrames = 3, kHeight = 6, kWidth = 10;
  const std::vector<int> values = integers(kFrames * kHeight * kWidth * 64, 100);
  const DeviceArray<__nv_bfloat16> data(as_bf16(values));
  TensorMapSpec spec;
  spec.data = data.data();
  spec.size = {64, kWidth, kHeight, kFrames, 1};
  spec.stride = {128, 128 * kWidth, 128 * kWidth * kHeight, 128 * kWidth * kHeight * kFrames};
  spec.box = {64, 8, 4, 2, 1};
  CUtensorMap map;
  ASSERT_TRUE(make_tensor_map(spec, &map).ok());
  const int bytes = 64 * 128;
  const DeviceArray<char> out(std::vector<char>(bytes, 0x55));
  launch(copy_box, 1, 128, map, tma::Corner{0, 4, 3, 1, 0}, bytes, out.data());
  const std::vector<char> box = out.read();
  const auto* numbers = reinterpret_cast<const __nv_bfloat16*>(box.data());
  for (int r = 0; r < 64; ++r) {
    const int x = 4 + r % 8, y = 3 + r / 8 % 4, t = 1 + r / 32;
    for (int c = 0; c < 64; ++c) {
      const bool inside = x < kWidth && y < kHeight && t < kFrames;
      const int at = ((t * kHeight + y) * kWidth + x) * 64 + c;
      ASSERT_EQ(__bfloat162float(numbers[r * 64 + (c / 8 ^ r % 8) * 8 + c % 8]),
                inside ? values[at] : 0)
          << "token " << r << ", channel " << c;
    }
  }
}

// ---- 2. Products of what lies in shared memory, 3. of what a product left in registers ----------

// S = Q Kᵀ [64, N], and O = S V [64, 128], S as bf16. Q [64, 128], K and V [N, 128].
template <int kN>
__global__ void __launch_bounds__(128, 1)
    two_products(const __grid_constant__ CUtensorMap q_map,
                 const __grid_constant__ CUtensorMap map_k,
                 const __grid_constant__ CUtensorMap map_v, float* g_s, float* g_o) {
#ifdef FOVEA_SM90A
  __shared__ uint64_t barrier;
  char* const s_q = aligned_memory();  // (2, 64, 64) bf16
  char* const s_k = s_q + 64 * 256;    // (2, kN, 64)
  char* const s_v = s_k + kN * 256;
  make_barrier(&barrier);
  if (threadIdx.x == 0) {
    ptx::arrive_expect(&barrier, (64 + 2 * kN) * 256);
    tma::load(s_q, q_map, {}, &barrier, tma::evict_first());
    tma::load(s_k, map_k, {}, &barrier, tma::evict_last());
    tma::load(s_v, map_v, {}, &barrier, tma::evict_last());
  }
  ptx::wait(&barrier, 0);
  float s[kN / 2], o[64];
  const uint32_t q = ptx::shared_address(s_q), k = ptx::shared_address(s_k);
  wgmma::fence();
#pragma unroll
  for (int step = 0; step < 8; ++step) {
    const int inside = step % 4 * wgmma::kStepBytes;
    wgmma::multiply<Type::bf16>(s, wgmma::k_major(q + step / 4 * 64 * 128 + inside),
                                wgmma::k_major(k + step / 4 * kN * 128 + inside), step > 0);
  }
  wgmma::commit();
  wgmma::wait<0>();
  wgmma::pin(s);
  uint32_t p[kN / 16][4];
#pragma unroll
  for (int step = 0; step < kN / 16; ++step) fragment::to_operand<Type::bf16>(s, step, p[step]);
  wgmma::fence();
#pragma unroll
  for (int step = 0; step < kN / 16; ++step) {
    const uint32_t v = ptx::shared_address(s_v) + step * 16 * 128;
    wgmma::multiply<Type::bf16, true>(o, p[step], wgmma::n_major(v, kN * 128), step > 0);
  }
  wgmma::commit();
  wgmma::wait<0>();
  const int thread = threadIdx.x;
#pragma unroll
  for (int i = 0; i < kN / 2; ++i) {
    const int row = fragment::first_row(thread) + i / 2 % 2 * 8;
    g_s[row * kN + fragment::column(thread, i)] = s[i];
  }
#pragma unroll
  for (int i = 0; i < 64; ++i) {
    const int row = fragment::first_row(thread) + i / 2 % 2 * 8;
    g_o[row * 128 + fragment::column(thread, i)] = o[i];
  }
#endif
}

template <int kN>
void check_two_products(const std::function<std::vector<int>(size_t, int)>& integers) {
  // |S| <= 128 is exact in bf16, sums of N of them times 1 are in fp32.
  const std::vector<int> q = integers(64 * 128, 1), k = integers(kN * 128, 1);
  const std::vector<int> v = integers(kN * 128, 3);
  const DeviceArray<__nv_bfloat16> g_q(as_bf16(q)), g_k(as_bf16(k)), g_v(as_bf16(v));
  const DeviceArray<float> g_s(std::vector<float>(64 * kN, -1e9f));
  const DeviceArray<float> g_o(std::vector<float>(64 * 128, -1e9f));
  launch(two_products<kN>, 1, 128, panels(g_q.data(), 64, 128, 64), panels(g_k.data(), kN, 128, kN),
         panels(g_v.data(), kN, 128, kN), g_s.data(), g_o.data());
  const std::vector<float> s = g_s.read(), o = g_o.read();
  std::vector<int> exact(64 * kN, 0);
  for (int r = 0; r < 64; ++r) {
    for (int n = 0; n < kN; ++n) {
      for (int d = 0; d < 128; ++d) exact[r * kN + n] += q[r * 128 + d] * k[n * 128 + d];
      ASSERT_EQ(s[r * kN + n], exact[r * kN + n]) << "N " << kN << ", S " << r << ", " << n;
    }
    for (int d = 0; d < 128; ++d) {
      int sum = 0;
      for (int n = 0; n < kN; ++n) sum += exact[r * kN + n] * v[n * 128 + d];
      ASSERT_EQ(o[r * 128 + d], sum) << "N " << kN << ", O " << r << ", " << d;
    }
  }
}

TEST_F(Sm90Layout, ProductsOfSharedMemoryAndOfRegisters) {
  const auto draw = [this](size_t count, int largest) { return integers(count, largest); };
  check_two_products<32>(draw);
  check_two_products<64>(draw);
  check_two_products<80>(draw);
  check_two_products<96>(draw);
  check_two_products<128>(draw);
  check_two_products<160>(draw);
  check_two_products<176>(draw);
  check_two_products<192>(draw);
}

// Sᵀ = K Qᵀ [64, N], and G = Kᵀ Sᵀ [64, N], S as bf16 through shared memory. Q [N, 64], K [64, 64].
template <int kN>
__global__ void __launch_bounds__(128, 1)
    product_of_columns(const __grid_constant__ CUtensorMap q_map,
                       const __grid_constant__ CUtensorMap map_k, float* g_out) {
#ifdef FOVEA_SM90A
  __shared__ uint64_t barrier;
  char* const s_k = aligned_memory();  // (64, 64) bf16
  char* const s_q = s_k + 64 * 128;    // (kN, 64)
  char* const s_s = s_q + kN * 128;    // (kN, 64)
  make_barrier(&barrier);
  if (threadIdx.x == 0) {
    ptx::arrive_expect(&barrier, (64 + kN) * 128);
    tma::load(s_k, map_k, {}, &barrier, tma::evict_last());
    tma::load(s_q, q_map, {}, &barrier, tma::evict_last());
  }
  ptx::wait(&barrier, 0);
  const int thread = threadIdx.x;
  float s[kN / 2], out[kN / 2];
  const uint32_t q = ptx::shared_address(s_q), k = ptx::shared_address(s_k);
  wgmma::fence();
#pragma unroll
  for (int step = 0; step < 4; ++step) {
    const int inside = step * wgmma::kStepBytes;
    wgmma::multiply<Type::bf16>(s, wgmma::k_major(k + inside), wgmma::k_major(q + inside),
                                step > 0);
  }
  wgmma::commit();
  wgmma::wait<0>();
  wgmma::pin(s);
  uint32_t p[kN / 16][4];
#pragma unroll
  for (int step = 0; step < kN / 16; ++step) fragment::to_operand<Type::bf16>(s, step, p[step]);
  fragment::store_transposed(p, ptx::shared_address(s_s), thread);
  ptx::fence_async_proxy();
  __syncthreads();
  wgmma::fence();
#pragma unroll
  for (int step = 0; step < 4; ++step) {
    const uint32_t of_s = ptx::shared_address(s_s) + step * wgmma::kStepBytes;
    wgmma::multiply<Type::bf16, false, true>(out, wgmma::k_major(k + step * 2048),
                                             wgmma::k_major(of_s), step > 0);
  }
  wgmma::commit();
  wgmma::wait<0>();
#pragma unroll
  for (int i = 0; i < kN / 2; ++i) {
    const int row = fragment::first_row(thread) + i / 2 % 2 * 8;
    g_out[row * kN + fragment::column(thread, i)] = out[i];
  }
#endif
}

template <int kN>
void check_product_of_columns(const std::vector<int>& q, const std::vector<int>& k) {
  const DeviceArray<__nv_bfloat16> g_q(as_bf16(q)), g_k(as_bf16(k));
  const DeviceArray<float> g_out(std::vector<float>(64 * kN, -1e9f));
  launch(product_of_columns<kN>, 1, 128, panels(g_q.data(), kN, 64, kN),
         panels(g_k.data(), 64, 64, 64), g_out.data());
  const std::vector<float> out = g_out.read();
  for (int n = 0; n < kN; ++n) {
    std::vector<int> sums(64, 0);
    for (int key = 0; key < 64; ++key) {
      int s = 0;
      for (int d = 0; d < 64; ++d) s += k[key * 64 + d] * q[n * 64 + d];
      for (int d = 0; d < 64; ++d) sums[d] += k[key * 64 + d] * s;
    }
    for (int d = 0; d < 64; ++d) {
      ASSERT_EQ(out[d * kN + n], sums[d]) << "N " << kN << ", row " << d << ", column " << n;
    }
  }
}

TEST_F(Sm90Layout, ProductsOfTransposedMatrices) {
  const std::vector<int> k = integers(64 * 64, 1);
  check_product_of_columns<64>(integers(64 * 64, 1), k);
  check_product_of_columns<80>(integers(80 * 64, 1), k);
}

// ---- 4. The same in 8-bit numbers: S in e4m3 or in integers, values transposed and permuted
// ------

constexpr int kKeys8 = 64;

// S = Q Kᵀ [64, 64], O = S Vᵀ' [64, 64]; Q, K [64, 128] and Vt [64 channels, 64 places] in bytes,
// here as 16-bit numbers of half the length, as the copy engine does not look into them.
template <Type kType>
__global__ void __launch_bounds__(128, 1)
    two_products_of_bytes(const __grid_constant__ CUtensorMap q_map,
                          const __grid_constant__ CUtensorMap k_map,
                          const __grid_constant__ CUtensorMap vt_map, float* g_s, float* g_o) {
#ifdef FOVEA_SM90A
  __shared__ uint64_t barrier;
  char* const s_q = aligned_memory();  // (64, 128) bytes
  char* const s_k = s_q + 64 * 128;    // (64, 128)
  char* const s_v = s_k + 64 * 128;    // (64, 128), of which 64 are used
  make_barrier(&barrier);
  if (threadIdx.x == 0) {
    ptx::arrive_expect(&barrier, 3 * 64 * 128);
    tma::load(s_q, q_map, {}, &barrier, tma::evict_first());
    tma::load(s_k, k_map, {}, &barrier, tma::evict_first());
    tma::load(s_v, vt_map, {}, &barrier, tma::evict_first());
  }
  ptx::wait(&barrier, 0);
  wgmma::Accumulator<kType> c[32];
  float s[32], o[32];
  wgmma::fence();
#pragma unroll
  for (int step = 0; step < 4; ++step) {
    const int inside = step * wgmma::kStepBytes;
    wgmma::multiply<kType>(c, wgmma::k_major(ptx::shared_address(s_q) + inside),
                           wgmma::k_major(ptx::shared_address(s_k) + inside), step > 0);
  }
  wgmma::commit();
  wgmma::wait<0>();
#pragma unroll
  for (int i = 0; i < 32; ++i) s[i] = static_cast<float>(c[i]);
  uint32_t p[2][4];
#pragma unroll
  for (int step = 0; step < 2; ++step) fragment::to_operand_e4m3(s, step, p[step]);
  wgmma::fence();
#pragma unroll
  for (int step = 0; step < 2; ++step) {
    const uint32_t v = ptx::shared_address(s_v) + step * wgmma::kStepBytes;
    wgmma::multiply<Type::e4m3>(o, p[step], wgmma::k_major(v), step > 0);
  }
  wgmma::commit();
  wgmma::wait<0>();
  const int thread = threadIdx.x;
#pragma unroll
  for (int i = 0; i < 32; ++i) {
    const int row = fragment::first_row(thread) + i / 2 % 2 * 8;
    g_s[row * kKeys8 + fragment::column(thread, i)] = s[i];
    g_o[row * 64 + fragment::column(thread, i)] = o[i];
  }
#endif
}

std::vector<uint8_t> as_bytes(const std::vector<int>& values, Type type) {
  std::vector<uint8_t> out;
  for (const int x : values) {
    const __nv_fp8_e4m3 small(static_cast<float>(x));
    out.push_back(type == Type::s8 ? static_cast<uint8_t>(static_cast<int8_t>(x)) : small.__x);
  }
  return out;
}

template <Type kType>
void check_bytes(const std::function<std::vector<int>(size_t, int)>& integers) {
  std::vector<int> q = integers(64 * 128, 1);
  const std::vector<int> k = integers(kKeys8 * 128, 1);
  // e4m3 holds integers to 16: of each query 12 channels count.
  for (size_t i = 0; i < q.size(); ++i) q[i] = i % 128 % 11 == 0 ? q[i] : 0;
  const std::vector<int> v = integers(kKeys8 * 64, 2);  // [key, channel]
  std::vector<int> vt(64 * 128, 0);                     // [channel, place], 64 places of padding
  for (int channel = 0; channel < 64; ++channel) {
    for (int place = 0; place < kKeys8; ++place) {
      const int key = place / 16 * 16 + key_of_place(place % 16);
      vt[channel * 128 + place] = v[key * 64 + channel];
    }
  }
  const DeviceArray<uint8_t> g_q(as_bytes(q, kType)), g_k(as_bytes(k, kType));
  const DeviceArray<uint8_t> g_vt(as_bytes(vt, Type::e4m3));
  const auto map = [](const DeviceArray<uint8_t>& x) {
    return panels(reinterpret_cast<const __nv_bfloat16*>(x.data()), 64, 64, 64);
  };
  const DeviceArray<float> g_s(std::vector<float>(64 * kKeys8, -1e9f));
  const DeviceArray<float> g_o(std::vector<float>(64 * 64, -1e9f));
  launch(two_products_of_bytes<kType>, 1, 128, map(g_q), map(g_k), map(g_vt), g_s.data(),
         g_o.data());
  const std::vector<float> s = g_s.read(), o = g_o.read();
  for (int r = 0; r < 64; ++r) {
    std::vector<int> exact(kKeys8, 0);
    for (int n = 0; n < kKeys8; ++n) {
      for (int d = 0; d < 128; ++d) exact[n] += q[r * 128 + d] * k[n * 128 + d];
      ASSERT_EQ(s[r * kKeys8 + n], exact[n]) << "S " << r << ", " << n;
    }
    for (int d = 0; d < 64; ++d) {
      int sum = 0;
      for (int n = 0; n < kKeys8; ++n) sum += exact[n] * v[n * 64 + d];
      ASSERT_EQ(o[r * 64 + d], sum) << "O " << r << ", " << d;
    }
  }
}

TEST_F(Sm90Layout, ProductsOfBytes) {
  const auto draw = [this](size_t count, int largest) { return integers(count, largest); };
  check_bytes<Type::e4m3>(draw);
  check_bytes<Type::s8>(draw);
}

// ---- 5. Results through shared memory to global memory ------------------------------------------

__global__ void __launch_bounds__(128, 1)
    store_result(const __grid_constant__ CUtensorMap map, int first_row) {
#ifdef FOVEA_SM90A
  char* const box = aligned_memory();  // (2, 64, 64) bf16
  float c[64];
#pragma unroll
  for (int i = 0; i < 64; ++i) {
    const int row = fragment::first_row(threadIdx.x) + i / 2 % 2 * 8;
    c[i] = static_cast<float>((row * 5 + fragment::column(threadIdx.x, i) * 3) % 251);
  }
  fragment::store<Type::bf16>(c, ptx::shared_address(box), 64 * 128, threadIdx.x);
  ptx::fence_async_proxy();
  __syncthreads();
  if (threadIdx.x == 0) {
    tma::store(map, {0, first_row, 0, 0, 0}, box);
    ptx::bulk_commit();
    ptx::bulk_wait<0>();
  }
#endif
}

TEST_F(Sm90Layout, ResultsAreStoredByRow) {
  constexpr int kRows = 100;
  const DeviceArray<__nv_bfloat16> out(as_bf16(std::vector<int>(kRows * 128, -1)));
  launch(store_result, 1, 128, panels(out.data(), kRows, 128, 64), 50);
  const std::vector<__nv_bfloat16> values = out.read();
  for (int r = 0; r < kRows; ++r) {
    for (int c = 0; c < 128; ++c) {
      const int expected = r < 50 ? -1 : ((r - 50) * 5 + c * 3) % 251;
      ASSERT_EQ(__bfloat162float(values[r * 128 + c]), expected) << r << ", " << c;
    }
  }
}

// ---- 6. Sums in global memory -------------------------------------------------------------------

__global__ void __launch_bounds__(128, 1) add_tile(float* out) {
#ifdef FOVEA_SM90A
  auto* const tile = reinterpret_cast<float*>(aligned_memory());
  for (int i = threadIdx.x; i < 1024; i += 128) tile[i] = static_cast<float>(i + blockIdx.x);
  ptx::fence_async_proxy();
  __syncthreads();
  if (threadIdx.x == 0) {
    ptx::bulk_add(out, tile, 4096);
    ptx::bulk_commit();
    ptx::bulk_wait<0>();
  }
#endif
}

TEST_F(Sm90Layout, TilesAreAdded) {
  constexpr int kBlocks = 50;
  const DeviceArray<float> out(std::vector<float>(1024, 7));
  launch(add_tile, kBlocks, 128, out.data());
  const std::vector<float> sums = out.read();
  for (int i = 0; i < 1024; ++i) {
    ASSERT_EQ(sums[i], 7 + kBlocks * i + kBlocks * (kBlocks - 1) / 2) << i;
  }
}

}  // namespace
}  // namespace fovea::kernels
