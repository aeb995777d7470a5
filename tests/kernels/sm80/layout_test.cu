// Where copies, ldmatrix and mma.sync put numbers. All data are small integers, so that results are
// exact and every misplaced number shows.
#include <cstdint>
#include <cstring>
#include <random>
#include <set>
#include <vector>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/attention/launch_sm80.cuh"
#include "kernels/common/fragment.cuh"
#include "kernels/common/launch.cuh"
#include "kernels/common/mma.cuh"
#include "tests/kernels/gpu_test.h"

namespace fovea::kernels {
namespace {

using mma::Type;

class Sm80Layout : public WithIntegers<Sm80Test> {};

std::vector<uint16_t> as_halves(const std::vector<int>& values, Type type) {
  std::vector<uint16_t> out;
  for (const int x : values) {
    const auto number = static_cast<float>(x);
    out.push_back(type == Type::bf16 ? __bfloat16_as_ushort(__float2bfloat16(number))
                                     : __half_as_ushort(__float2half(number)));
  }
  return out;
}

std::vector<int8_t> as_bytes(const std::vector<int>& values) {
  return std::vector<int8_t>(values.begin(), values.end());
}

// ---- 1. Rows whose units change places; on the host ---------------------------------------------

template <int kBytes>
void check_mixed_rows() {
  using Rows = mma::MixedRows<kBytes>;
  std::set<int> places;
  for (int row = 0; row < 64; ++row) {
    for (int unit = 0; unit < Rows::kUnits; ++unit) {
      const int place = Rows::place(row, unit);
      ASSERT_EQ(place % 16, 0);
      ASSERT_EQ(place / kBytes, row);
      places.insert(place);
      ASSERT_EQ(128 + place, Rows::behind(128 + Rows::place(row, unit % 2), unit / 2 * 2));
    }
  }
  EXPECT_EQ(places.size(), 64u * Rows::kUnits);
  // ldmatrix: eight rows of one unit; they are read at once where they lie in different banks.
  for (int row = 0; row < 64; row += 8) {
    for (int unit = 0; unit < Rows::kUnits; ++unit) {
      std::set<int> banks;
      for (int i = 0; i < 8; ++i) banks.insert(Rows::place(row + i, unit) / 16 % 8);
      ASSERT_EQ(banks.size(), 8u) << kBytes << " bytes, row " << row << ", unit " << unit;
    }
  }
  // Copies: units that follow each other.
  for (int piece = 0; piece < 64 * Rows::kUnits; piece += 8) {
    std::set<int> banks;
    for (int i = piece; i < piece + 8; ++i) {
      banks.insert(Rows::place(i / Rows::kUnits, i % Rows::kUnits) / 16 % 8);
    }
    ASSERT_EQ(banks.size(), 8u) << kBytes << " bytes, piece " << piece;
  }
}

TEST(MixedRows, LieInDifferentBanks) {
  check_mixed_rows<32>();
  check_mixed_rows<64>();
  check_mixed_rows<96>();
  check_mixed_rows<128>();
  check_mixed_rows<192>();
  check_mixed_rows<256>();
  check_mixed_rows<512>();
}

TEST(RingSlots, FitTheDevice) {
  constexpr int kKilo = 1024;
  const sm80::SharedMemory a100{163 * kKilo, 164 * kKilo, kKilo};
  const sm80::SharedMemory ada{99 * kKilo, 100 * kKilo, kKilo};
  const sm80::SharedMemory h200{227 * kKilo, 228 * kKilo, kKilo};
  using Wide = sm80::ForwardShape<128, 128>;
  constexpr int kFixed = sizeof(sm80::ForwardMemory<Wide>);
  EXPECT_EQ(sm80::ring_slots(a100, 2, kFixed, Wide::kSlotBytes), 3);
  EXPECT_EQ(sm80::ring_slots(ada, 2, kFixed, Wide::kSlotBytes), 4);  // one block a multiprocessor
  EXPECT_EQ(sm80::ring_slots(h200, 2, kFixed, Wide::kSlotBytes), 5);
  EXPECT_EQ(sm80::ring_slots({48 * kKilo, 64 * kKilo, 0}, 2, kFixed, Wide::kSlotBytes), 0);
  EXPECT_EQ(sm80::ring_slots(h200, 1, kKilo, kKilo), sm80::kMostSlots);
  using Widest = sm80::ForwardShape<256, 128>;
  EXPECT_EQ(sm80::ring_slots(ada, 1, sizeof(sm80::ForwardMemory<Widest>), Widest::kSlotBytes), 2);
}

// ---- 2. Products of what was copied -------------------------------------------------------------

constexpr int kKeys = 32, kDim = 64;

// kCount rows of kBytes, from memory to where MixedRows says; those from `len` on are zeros.
template <int kBytes>
__device__ void copy_rows(char* to, const void* from, int count, int len) {
  using Rows = mma::MixedRows<kBytes>;
  for (int i = threadIdx.x; i < count * Rows::kUnits; i += 32) {
    const int row = i / Rows::kUnits, unit = i % Rows::kUnits;
    mma::copy16(ptx::shared_address(to) + Rows::place(row, unit),
                static_cast<const char*>(from) + i * 16, row < len);
  }
  mma::commit_copies();
}

// S = Q Kᵀ [16, kKeys] and O = S V [16, kDim], S in 16-bit numbers; Q [16, kDim], K and V
// [kKeys, kDim], of which V's last row counts as zeros.
template <Type kType>
__global__ void __launch_bounds__(32) two_products(const uint16_t* q, const uint16_t* k,
                                                   const uint16_t* v, float* s_out, float* o_out) {
  using Rows = mma::MixedRows<kDim * 2>;
  __shared__ __align__(128) char q_rows[16 * kDim * 2];
  __shared__ __align__(128) char k_rows[kKeys * kDim * 2];
  __shared__ __align__(128) char v_rows[kKeys * kDim * 2];
  for (int i = threadIdx.x; i < kKeys * kDim * 2; i += 32) v_rows[i] = 0x55;
  __syncwarp();
  copy_rows<kDim * 2>(q_rows, q, 16, 16);
  copy_rows<kDim * 2>(k_rows, k, kKeys, kKeys);
  copy_rows<kDim * 2>(v_rows, v, kKeys, kKeys - 1);
  const int lane = threadIdx.x;
  const uint32_t of_q = ptx::shared_address(q_rows) + Rows::place(lane % 16, lane / 16);
  const uint32_t of_k =
      ptx::shared_address(k_rows) + Rows::place(lane / 16 * 8 + lane % 8, lane / 8 % 2);
  const uint32_t of_v = ptx::shared_address(v_rows) + Rows::place(lane % 16, lane / 16);
  float s[kKeys / 2] = {}, o[kDim / 2] = {};
  mma::wait_copies<1>();
  __syncwarp();
#pragma unroll
  for (int step = 0; step < kDim / 16; ++step) {
    uint32_t a[4];
    mma::load_matrices(Rows::behind(of_q, 2 * step), a);
#pragma unroll
    for (int keys = 0; keys < kKeys / 16; ++keys) {
      uint32_t b[4];
      mma::load_matrices(Rows::behind(of_k, 2 * step) + keys * 16 * kDim * 2, b);
      mma::multiply<kType>(s, 8 * keys, a, b[0], b[1]);
      mma::multiply<kType>(s, 8 * keys + 4, a, b[2], b[3]);
    }
  }
  mma::wait_copies<0>();
  __syncwarp();
#pragma unroll
  for (int step = 0; step < kKeys / 16; ++step) {
    uint32_t p[4];
    fragment::to_operand<kType>(s, step, p);
#pragma unroll
    for (int channels = 0; channels < kDim / 16; ++channels) {
      uint32_t b[4];
      mma::load_transposed(Rows::behind(of_v, 2 * channels) + step * 16 * kDim * 2, b);
      mma::multiply<kType>(o, 8 * channels, p, b[0], b[1]);
      mma::multiply<kType>(o, 8 * channels + 4, p, b[2], b[3]);
    }
  }
#pragma unroll
  for (int i = 0; i < kKeys / 2; ++i) {
    const int row = fragment::first_row(lane) + i / 2 % 2 * 8;
    s_out[row * kKeys + fragment::column(lane, i)] = s[i];
  }
#pragma unroll
  for (int i = 0; i < kDim / 2; ++i) {
    const int row = fragment::first_row(lane) + i / 2 % 2 * 8;
    o_out[row * kDim + fragment::column(lane, i)] = o[i];
  }
}

template <Type kType>
void check_two_products(const std::vector<int>& q, const std::vector<int>& k,
                        const std::vector<int>& v) {
  const DeviceArray<uint16_t> g_q(as_halves(q, kType)), g_k(as_halves(k, kType));
  const DeviceArray<uint16_t> g_v(as_halves(v, kType));
  const DeviceArray<float> g_s(std::vector<float>(16 * kKeys, -1e9f));
  const DeviceArray<float> g_o(std::vector<float>(16 * kDim, -1e9f));
  ASSERT_TRUE(launch_kernel(two_products<kType>, {1, 32}, g_q.data(), g_k.data(), g_v.data(),
                            g_s.data(), g_o.data())
                  .ok());
  const std::vector<float> s = g_s.read(), o = g_o.read();
  for (int r = 0; r < 16; ++r) {
    std::vector<int> exact(kKeys, 0);
    for (int n = 0; n < kKeys; ++n) {
      for (int d = 0; d < kDim; ++d) exact[n] += q[r * kDim + d] * k[n * kDim + d];
      ASSERT_EQ(s[r * kKeys + n], exact[n]) << "S " << r << ", " << n;
    }
    for (int d = 0; d < kDim; ++d) {
      int sum = 0;
      for (int n = 0; n < kKeys - 1; ++n) sum += exact[n] * v[n * kDim + d];
      ASSERT_EQ(o[r * kDim + d], sum) << "O " << r << ", " << d;
    }
  }
}

TEST_F(Sm80Layout, ProductsOfHalves) {
  // S is at most 64 * 2 * 2 = 256: exact in both types.
  const std::vector<int> q = integers(16 * kDim, 2), k = integers(kKeys * kDim, 2);
  const std::vector<int> v = integers(kKeys * kDim, 3);
  check_two_products<Type::bf16>(q, k, v);
  check_two_products<Type::f16>(q, k, v);
}

// S = Q Kᵀ [16, kKeys] of integers; rows of 128 bytes.
__global__ void __launch_bounds__(32)
    product_of_bytes(const int8_t* q, const int8_t* k, int32_t* s_out) {
  using Rows = mma::MixedRows<128>;
  __shared__ __align__(128) char q_rows[16 * 128];
  __shared__ __align__(128) char k_rows[kKeys * 128];
  copy_rows<128>(q_rows, q, 16, 16);
  copy_rows<128>(k_rows, k, kKeys, kKeys);
  const int lane = threadIdx.x;
  const uint32_t of_q = ptx::shared_address(q_rows) + Rows::place(lane % 16, lane / 16);
  const uint32_t of_k =
      ptx::shared_address(k_rows) + Rows::place(lane / 16 * 8 + lane % 8, lane / 8 % 2);
  int32_t s[kKeys / 2] = {};
  mma::wait_copies<0>();
  __syncwarp();
#pragma unroll
  for (int step = 0; step < 4; ++step) {
    uint32_t a[4];
    mma::load_matrices(Rows::behind(of_q, 2 * step), a);
#pragma unroll
    for (int keys = 0; keys < kKeys / 16; ++keys) {
      uint32_t b[4];
      mma::load_matrices(Rows::behind(of_k, 2 * step) + keys * 16 * 128, b);
      mma::multiply(s, 8 * keys, a, b[0], b[1]);
      mma::multiply(s, 8 * keys + 4, a, b[2], b[3]);
    }
  }
#pragma unroll
  for (int i = 0; i < kKeys / 2; ++i) {
    const int row = fragment::first_row(lane) + i / 2 % 2 * 8;
    s_out[row * kKeys + fragment::column(lane, i)] = s[i];
  }
}

TEST_F(Sm80Layout, ProductsOfBytes) {
  const std::vector<int> q = integers(16 * 128, 127), k = integers(kKeys * 128, 127);
  const DeviceArray<int8_t> g_q(as_bytes(q)), g_k(as_bytes(k));
  const DeviceArray<int32_t> g_s(std::vector<int32_t>(16 * kKeys, -1));
  ASSERT_TRUE(launch_kernel(product_of_bytes, {1, 32}, g_q.data(), g_k.data(), g_s.data()).ok());
  const std::vector<int32_t> s = g_s.read();
  for (int r = 0; r < 16; ++r) {
    for (int n = 0; n < kKeys; ++n) {
      int exact = 0;
      for (int d = 0; d < 128; ++d) exact += q[r * 128 + d] * k[n * 128 + d];
      ASSERT_EQ(s[r * kKeys + n], exact) << r << ", " << n;
    }
  }
}

// ---- 3. Copies of four bytes --------------------------------------------------------------------

__global__ void copy_some(const float* from, int begin, float* out) {
  __shared__ float values[32];
  const int i = threadIdx.x;
  values[i] = -1;
  __syncwarp();
  mma::copy4(ptx::shared_address(values + i), from + i - begin, i >= begin);
  mma::commit_copies();
  mma::wait_copies<0>();
  __syncwarp();
  out[i] = values[31 - i];
}

TEST_F(Sm80Layout, CopiesOfWordsAreZeroWhereThereIsNone) {
  const DeviceArray<float> from(std::vector<float>(32, 7)), out(std::vector<float>(32, -2));
  ASSERT_TRUE(launch_kernel(copy_some, {1, 32}, from.data(), 5, out.data()).ok());
  const std::vector<float> values = out.read();
  for (int i = 0; i < 32; ++i) EXPECT_EQ(values[i], 31 - i >= 5 ? 7 : 0) << i;
}

}  // namespace
}  // namespace fovea::kernels
