#include "kernels/ops/rope.cuh"

namespace fovea::kernels {
namespace {

/// One block rotates one row (all heads of a token). Grid: rows. Called by rope_cuda.
template <typename T, typename W>
__global__ void __launch_bounds__(W::kThreads, 1) rope_kernel(RopeArgs args) {
  const int64_t row_index = blockIdx.x;
  const T* g_x = static_cast<const T*>(args.x.data) + row_index * args.x.stride;
  T* g_y = static_cast<T*>(args.y.data) + row_index * args.y.stride;
  const int64_t position = row_index % args.rope.seq_len;
  Row<T, W> row(g_x, static_cast<int>(args.dim));
  row.visit([&](int column, float(&value)[W::kPack]) {
    rotate_pack<W>(args.rope, position, column, value);
    store<W::kAligned>(g_y + column, value);
  });
}

}  // namespace

Status rope_cuda(const RopeArgs& args, CudaTarget target) {
  return launch_rows(args, args.num_rows, args.dim, target, [&](cudaStream_t stream) {
    const bool vectors = vectorizable(args.x, args.dim) && vectorizable(args.y, args.dim) &&
                         vectorizable(args.rope, dtype_bytes(args.x.dtype));
    with_type(args.x.dtype, [&](auto* type) {
      using T = std::remove_pointer_t<decltype(type)>;
      with_walk<T, true>(vectors, args.dim, [&](auto walk, int threads) {
        const auto blocks = static_cast<unsigned>(args.num_rows);
        rope_kernel<T, decltype(walk)><<<blocks, threads, 0, stream>>>(args);
      });
    });
  });
}

}  // namespace fovea::kernels
