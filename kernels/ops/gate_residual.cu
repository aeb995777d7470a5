#include "kernels/ops/gate_residual.h"
#include "kernels/ops/row.cuh"

namespace fovea::kernels {
namespace {

/// One block computes one row. Grid: rows. Called by gate_residual_cuda.
template <typename T, typename W>
__global__ void __launch_bounds__(W::kThreads, 1) gate_residual_kernel(GateResidualArgs args) {
  const int64_t row_index = blockIdx.x;
  const int64_t item = row_index / args.rows_per_item;
  const int dim = static_cast<int>(args.dim);
  Row<T, W> x(static_cast<const T*>(args.x.data) + row_index * args.x.stride, dim);
  const T* g_y = static_cast<const T*>(args.y.data) + row_index * args.y.stride;
  T* g_out = static_cast<T*>(args.out.data) + row_index * args.out.stride;
  const float* g_gate = args.gate.data + item * args.gate.stride;
  x.visit([&](int column, float(&value)[W::kPack]) {
    float r_y[W::kPack], r_gate[W::kPack];
    load<W::kAligned>(g_y + column, r_y);
    load<W::kAligned>(g_gate + column, r_gate);
#pragma unroll
    for (int j = 0; j < W::kPack; ++j) value[j] = __fadd_rn(value[j], __fmul_rn(r_y[j], r_gate[j]));
    store<W::kAligned>(g_out + column, value);
  });
}

}  // namespace

Status gate_residual_cuda(const GateResidualArgs& args, CudaTarget target) {
  return launch_rows(args, args.num_rows, args.dim, target, [&](cudaStream_t stream) {
    const bool vectors = vectorizable(args.x, args.dim) && vectorizable(args.y, args.dim) &&
                         vectorizable(args.out, args.dim) && vectorizable(args.gate);
    with_type(args.x.dtype, [&](auto* type) {
      using T = std::remove_pointer_t<decltype(type)>;
      with_walk<T, false>(vectors, args.dim, [&](auto walk, int threads) {
        const auto blocks = static_cast<unsigned>(args.num_rows);
        gate_residual_kernel<T, decltype(walk)><<<blocks, threads, 0, stream>>>(args);
      });
    });
  });
}

}  // namespace fovea::kernels
