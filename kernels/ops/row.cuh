#pragma once

// Building blocks of the row kernels in this folder: one block computes one row.

#include <cstdint>
#include <type_traits>

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "kernels/common/status.h"
#include "kernels/common/tensor_view.h"

namespace fovea::kernels {

constexpr int kWarp = 32;
constexpr int kMaxThreads = 512;  // leaves 128 registers to a thread

__device__ inline float to_float(float v) { return v; }
__device__ inline float to_float(__half v) { return __half2float(v); }
__device__ inline float to_float(__nv_bfloat16 v) { return __bfloat162float(v); }

template <typename T>
__device__ inline T from_float(float v) {
  if constexpr (std::is_same_v<T, float>) return v;
  if constexpr (std::is_same_v<T, __half>) return __float2half_rn(v);
  if constexpr (std::is_same_v<T, __nv_bfloat16>) return __float2bfloat16_rn(v);
}

/// kPack neighbouring elements, read and written 16 bytes at a time where they fill as much.
template <typename T, int kPack>
struct alignas(sizeof(T) * kPack < 16 ? sizeof(T) * kPack : 16) Pack {
  T value[kPack];
};

/// kPack elements as fp32. kAligned: the address is a multiple of the pack's alignment.
template <bool kAligned, int kPack, typename T>
__device__ inline void load(const T* from, float (&out)[kPack]) {
  Pack<T, kPack> pack;
  if constexpr (kAligned) {
    pack = *reinterpret_cast<const Pack<T, kPack>*>(from);
  } else {
#pragma unroll
    for (int j = 0; j < kPack; ++j) pack.value[j] = from[j];
  }
#pragma unroll
  for (int j = 0; j < kPack; ++j) out[j] = to_float(pack.value[j]);
}

template <bool kAligned, int kPack, typename T>
__device__ inline void store(T* to, const float (&in)[kPack]) {
  Pack<T, kPack> pack;
#pragma unroll
  for (int j = 0; j < kPack; ++j) pack.value[j] = from_float<T>(in[j]);
  if constexpr (kAligned) {
    *reinterpret_cast<Pack<T, kPack>*>(to) = pack;
  } else {
#pragma unroll
    for (int j = 0; j < kPack; ++j) to[j] = pack.value[j];
  }
}

/// How a kernel walks a row. kVecs packs a thread stay in registers; kVecs = 0 reads the row again
/// in every pass, element by element, and takes any alignment and length. Blocks have at most
/// kThreads threads.
template <int kPackSize, int kVecsPerThread, int kMaxBlock>
struct Walk {
  static constexpr int kPack = kPackSize;
  static constexpr int kVecs = kVecsPerThread;
  static constexpr int kThreads = kMaxBlock;
  static constexpr bool kAligned = kVecs > 0;
};

/// One row of dim elements of type T, as this block's threads see it.
template <typename T, typename W>
class Row {
 public:
  __device__ Row(const T* g_x, int dim) : g_x_(g_x), dim_(dim) {
    if constexpr (W::kVecs > 0) {
#pragma unroll
      for (int k = 0; k < W::kVecs; ++k) {
        if (column(k) < dim_) load<true>(g_x_ + column(k), r_value_[k]);
      }
    }
  }

  /// Calls f(column, values[kPack]) for each pack of this thread.
  template <typename F>
  __device__ void visit(F f) {
    if constexpr (W::kVecs > 0) {
#pragma unroll
      for (int k = 0; k < W::kVecs; ++k) {
        if (column(k) < dim_) f(column(k), r_value_[k]);
      }
    } else {
      for (int c = column(0); c < dim_; c += static_cast<int>(blockDim.x) * W::kPack) {
        float r_value[W::kPack];
        load<false>(g_x_ + c, r_value);
        f(c, r_value);
      }
    }
  }

 private:
  __device__ int column(int k) const {
    return (k * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x)) * W::kPack;
  }

  const T* g_x_;
  int dim_;
  float r_value_[W::kVecs > 0 ? W::kVecs : 1][W::kPack];  // (kVecs, kPack)
};

/// Sums over the block; every thread gets the totals. The order of additions is fixed.
template <int kCount, typename S>
__device__ inline void block_sum(S (&value)[kCount]) {
  __shared__ S s_partial[kMaxThreads / kWarp][kCount];  // (warps, kCount)
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) value[i] += __shfl_xor_sync(~0u, value[i], offset);
  }
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  if (warps == 1) return;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  __syncthreads();  // the previous sum's readers are done with s_partial
  if (threadIdx.x % kWarp == 0) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) s_partial[warp][i] = value[i];
  }
  __syncthreads();  // every warp's partial sum is visible to all
#pragma unroll
  for (int i = 0; i < kCount; ++i) value[i] = 0;
  for (int w = 0; w < warps; ++w) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) value[i] += s_partial[w][i];
  }
}

/// Type that sums are formed in: fp64 costs no time next to fp32 data, but would next to half
/// types.
template <typename T>
using SumType = std::conditional_t<std::is_same_v<T, float>, double, float>;

/// 1 / sqrt(mean + eps) to about half a unit in the last place: an fp32 estimate and one Newton
/// step whose residual keeps the digits that fp32 would drop. In fp64 where fp32 overflows.
__device__ inline float inverse_root(double mean, double eps) {
  const double sum = mean + eps;
  if (!(sum < 3.0e38)) return static_cast<float>(1.0 / sqrt(sum));
  const float high = static_cast<float>(sum);
  const float low = static_cast<float>(sum - static_cast<double>(high));
  const float root = __frcp_rn(__fsqrt_rn(high));
  if (isinf(root)) return root;  // sum is 0
  const float product = __fmul_rn(high, root);
  const float product_low = __fmaf_rn(high, root, -product);
  float residual = __fmaf_rn(-product, root, 1.0f);  // 1 - sum * root^2
  residual = __fmaf_rn(-product_low, root, residual);
  residual = __fmaf_rn(-__fmul_rn(low, root), root, residual);
  return __fmaf_rn(__fmul_rn(0.5f, residual), root, root);
}

inline bool aligned16(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}

/// Whether all rows of x start on 16-byte boundaries and consist of whole packs.
inline bool vectorizable(ConstRows x, int64_t dim) {
  const int64_t bytes = dtype_bytes(x.dtype);
  return aligned16(x.data) && x.stride * bytes % 16 == 0 && dim * bytes % 16 == 0;
}
inline bool vectorizable(Rows x, int64_t dim) {
  return vectorizable(ConstRows{x.data, x.dtype, x.stride}, dim);
}
inline bool vectorizable(ConstChannels x) {
  return !x.data || (aligned16(x.data) && x.stride % 4 == 0);
}

/// Calls f(Walk, threads) with the way to walk rows of dim elements of type T.
///
/// vectors     rows and vectors are aligned to 16 bytes
/// kPairs      packs hold whole pairs (dim is even)
template <typename T, bool kPairs, typename F>
void with_walk(bool vectors, int64_t dim, F f) {
  constexpr int kPack = 16 / sizeof(T);
  const int64_t packs = dim / kPack;
  const auto threads = [](int64_t n, int per_thread) {
    return static_cast<int>((n + per_thread * kWarp - 1) / (per_thread * kWarp) * kWarp);
  };
  // Few packs a thread for short rows, so that every warp has work; more for long ones, so that
  // blocks stay at 512 threads up to 8192 fp32 elements.
  if (vectors && packs <= 64) return f(Walk<kPack, 1, 64>{}, threads(packs, 1));
  if (vectors && packs <= 512) return f(Walk<kPack, 2, 256>{}, threads(packs, 2));
  if (vectors && packs <= 4 * kMaxThreads)
    return f(Walk<kPack, 4, kMaxThreads>{}, threads(packs, 4));
  constexpr int kNarrow = kPairs ? 2 : 1;
  const int64_t narrow_packs = dim / kNarrow;
  f(Walk<kNarrow, 0, 256>{}, narrow_packs < 256 ? threads(narrow_packs, 1) : 256);
}

/// Calls f with a null pointer of the CUDA type that `dtype` names.
template <typename F>
void with_type(DType dtype, F f) {
  switch (dtype) {
    case DType::f32:
      return f(static_cast<float*>(nullptr));
    case DType::f16:
      return f(static_cast<__half*>(nullptr));
    case DType::bf16:
      return f(static_cast<__nv_bfloat16*>(nullptr));
  }
}

inline Status status_of(cudaError_t error) {
  if (error == cudaSuccess) return {};
  return {StatusCode::device, cudaGetErrorString(error)};
}

/// Checks, selects the device, launches and asks for the launch's error.
template <typename Args, typename F>
Status launch_rows(const Args& args, int64_t num_rows, int64_t dim, CudaTarget target, F launch) {
  if (const Status status = check(args); !status.ok()) return status;
  if (num_rows == 0 || dim == 0) return {};
  if (const Status status = status_of(cudaSetDevice(target.device)); !status.ok()) return status;
  launch(static_cast<cudaStream_t>(target.stream));
  return status_of(cudaGetLastError());
}

}  // namespace fovea::kernels
