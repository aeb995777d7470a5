#include "kernels/ops/layer_norm_modulate.h"
#include "kernels/ops/row.cuh"

namespace fovea::kernels {
namespace {

/// The mean as a sum of two fp32 values, and the variance.
struct Moments {
  float mean_high;
  float mean_low;
  double variance;
};

/// First the mean, rounded to T, so that its distance from values of type T is exact in fp32; then
/// how far the values lie from it on average, which corrects the mean and the variance. A thread
/// adds its few values in S; threads are added in fp64, because an error of the mean shows in full
/// where the output is near zero.
template <typename T, typename S, typename W, typename R>
__device__ inline Moments moments(R& row, int dim) {
  S total[1] = {0};
  row.visit([&](int, float(&value)[W::kPack]) {
#pragma unroll
    for (int j = 0; j < W::kPack; ++j) total[0] += static_cast<S>(value[j]);
  });
  double mean[1] = {static_cast<double>(total[0])};
  block_sum(mean);
  const float high = to_float(from_float<T>(static_cast<float>(mean[0] / dim)));

  S central[2] = {0, 0};
  row.visit([&](int, float(&value)[W::kPack]) {
#pragma unroll
    for (int j = 0; j < W::kPack; ++j) {
      const S distance = static_cast<S>(value[j]) - static_cast<S>(high);
      central[0] += distance;
      central[1] += distance * distance;
    }
  });
  double moment[2] = {static_cast<double>(central[0]), static_cast<double>(central[1])};
  block_sum(moment);
  const double low = moment[0] / dim;
  const double variance = moment[1] / dim - low * low;
  return {high, static_cast<float>(low), variance > 0 || isnan(variance) ? variance : 0};
}

/// One block normalizes and modulates one row. Grid: rows. The row stays in registers up to 8192
/// fp32 or 16384 half elements. Called by layer_norm_modulate_cuda.
template <typename T, typename W>
__global__ void __launch_bounds__(W::kThreads, 1) layer_norm_kernel(LayerNormModulateArgs args) {
  const int64_t row_index = blockIdx.x;
  const int64_t item = row_index / args.rows_per_item;
  const int dim = static_cast<int>(args.dim);
  const T* g_x = static_cast<const T*>(args.x.data) + row_index * args.x.stride;
  T* g_y = static_cast<T*>(args.y.data) + row_index * args.y.stride;

  Row<T, W> row(g_x, dim);
  const Moments m = moments<T, SumType<T>, W>(row, dim);
  float high = m.mean_high, low = m.mean_low, factor = inverse_root(m.variance, args.eps);
  if constexpr (!std::is_same_v<T, float>) {
    // The same for all threads of the block: rare rows whose squares overflow fp32.
    if (!isfinite(m.variance)) {
      const Moments wide = moments<T, double, W>(row, dim);
      high = wide.mean_high, low = wide.mean_low, factor = inverse_root(wide.variance, args.eps);
    }
  }

  row.visit([&](int column, float(&value)[W::kPack]) {
    float r_a[W::kPack], r_b[W::kPack];
#pragma unroll
    for (int j = 0; j < W::kPack; ++j) {
      value[j] = __fmul_rn(__fsub_rn(__fsub_rn(value[j], high), low), factor);
    }
    if (args.weight) {
      load<W::kAligned>(args.weight + column, r_a);
      load<W::kAligned>(args.bias + column, r_b);
#pragma unroll
      for (int j = 0; j < W::kPack; ++j) value[j] = __fadd_rn(__fmul_rn(value[j], r_a[j]), r_b[j]);
    }
    if (args.scale.data) {
      load<W::kAligned>(args.scale.data + item * args.scale.stride + column, r_a);
      load<W::kAligned>(args.shift.data + item * args.shift.stride + column, r_b);
#pragma unroll
      for (int j = 0; j < W::kPack; ++j) {
        value[j] = __fadd_rn(__fmul_rn(value[j], __fadd_rn(1.0f, r_a[j])), r_b[j]);
      }
    }
    store<W::kAligned>(g_y + column, value);
  });
}

}  // namespace

Status layer_norm_modulate_cuda(const LayerNormModulateArgs& args, CudaTarget target) {
  return launch_rows(args, args.num_rows, args.dim, target, [&](cudaStream_t stream) {
    const bool vectors = vectorizable(args.x, args.dim) && vectorizable(args.y, args.dim) &&
                         aligned16(args.weight) && aligned16(args.bias) &&
                         vectorizable(args.scale) && vectorizable(args.shift);
    with_type(args.x.dtype, [&](auto* type) {
      using T = std::remove_pointer_t<decltype(type)>;
      with_walk<T, false>(vectors, args.dim, [&](auto walk, int threads) {
        const auto blocks = static_cast<unsigned>(args.num_rows);
        layer_norm_kernel<T, decltype(walk)><<<blocks, threads, 0, stream>>>(args);
      });
    });
  });
}

}  // namespace fovea::kernels
