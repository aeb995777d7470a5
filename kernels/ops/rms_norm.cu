#include "kernels/ops/rms_norm.h"
#include "kernels/ops/rope.cuh"

namespace fovea::kernels {
namespace {

struct NoRope {};

/// Sum of squares over the row, divided by dim.
template <typename S, typename W, typename R>
__device__ inline S mean_square(R& row, int dim) {
  S total[1] = {0};
  row.visit([&](int, float(&value)[W::kPack]) {
#pragma unroll
    for (int j = 0; j < W::kPack; ++j)
      total[0] += static_cast<S>(value[j]) * static_cast<S>(value[j]);
  });
  block_sum(total);
  return total[0] / static_cast<S>(dim);
}

/// One block normalizes one row, and rotates its heads if Rope is RotaryTables. Grid: rows. The row
/// stays in registers up to 8192 fp32 or 16384 half elements. Called by rms_norm_cuda and
/// rms_norm_rope_cuda.
template <typename T, typename TWeight, typename W, typename Rope>
__global__ void __launch_bounds__(W::kThreads, 1) rms_norm_kernel(RmsNormArgs args, Rope rope) {
  const int64_t row_index = blockIdx.x;
  const int dim = static_cast<int>(args.dim);
  const T* g_x = static_cast<const T*>(args.x.data) + row_index * args.x.stride;
  T* g_y = static_cast<T*>(args.y.data) + row_index * args.y.stride;
  const TWeight* g_weight = static_cast<const TWeight*>(args.weight.data);

  Row<T, W> row(g_x, dim);
  const SumType<T> mean = mean_square<SumType<T>, W>(row, dim);
  float factor = inverse_root(mean, args.eps);
  if constexpr (!std::is_same_v<T, float>) {
    // The same for all threads of the block: rare rows whose squares overflow fp32.
    if (!isfinite(mean)) factor = inverse_root(mean_square<double, W>(row, dim), args.eps);
  }

  row.visit([&](int column, float(&value)[W::kPack]) {
    float r_weight[W::kPack];
    if (g_weight) load<W::kAligned>(g_weight + column, r_weight);
#pragma unroll
    for (int j = 0; j < W::kPack; ++j) {
      value[j] = __fmul_rn(value[j], factor);
      if (g_weight) value[j] = __fmul_rn(value[j], r_weight[j]);
    }
    if constexpr (std::is_same_v<Rope, RotaryTables>) {
      // Unfused, the normed row is stored in T in between.
#pragma unroll
      for (int j = 0; j < W::kPack; ++j) value[j] = to_float(from_float<T>(value[j]));
      rotate_pack<W>(rope, row_index % rope.seq_len, column, value);
    }
    store<W::kAligned>(g_y + column, value);
  });
}

template <typename Rope>
void launch(const RmsNormArgs& args, const Rope& rope, bool vectors, cudaStream_t stream) {
  vectors = vectors && vectorizable(args.x, args.dim) && vectorizable(args.y, args.dim) &&
            aligned16(args.weight.data);
  constexpr bool kPairs = std::is_same_v<Rope, RotaryTables>;
  with_type(args.x.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    with_walk<T, kPairs>(vectors, args.dim, [&](auto walk, int threads) {
      using W = decltype(walk);
      const auto blocks = static_cast<unsigned>(args.num_rows);
      if (args.weight.dtype == DType::f32) {
        rms_norm_kernel<T, float, W><<<blocks, threads, 0, stream>>>(args, rope);
      } else {
        rms_norm_kernel<T, T, W><<<blocks, threads, 0, stream>>>(args, rope);
      }
    });
  });
}

}  // namespace

Status rms_norm_cuda(const RmsNormArgs& args, CudaTarget target) {
  return launch_rows(args, args.num_rows, args.dim, target,
                     [&](cudaStream_t stream) { launch(args, NoRope{}, true, stream); });
}

Status rms_norm_rope_cuda(const RmsNormRopeArgs& args, CudaTarget target) {
  return launch_rows(args, args.norm.num_rows, args.norm.dim, target, [&](cudaStream_t stream) {
    launch(args.norm, args.rope, vectorizable(args.rope, dtype_bytes(args.norm.x.dtype)), stream);
  });
}

}  // namespace fovea::kernels
