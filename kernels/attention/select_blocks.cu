#include "kernels/attention/chosen_blocks.cuh"
#include "kernels/common/launch.cuh"

namespace fovea::kernels {
namespace {

constexpr int kWarps = 4;

/// A warp chooses of one row. Grid: ceil(rows / kWarps).
template <int kOwn>
__global__ void __launch_bounds__(32 * kWarps) select_blocks_kernel(SelectBlocksArgs args) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (row >= args.rows) return;
  choosing::choose_of_row<kOwn>(args, args.scores + row * args.blocks,
                                args.chosen + row * args.blocks);
}

}  // namespace

Status select_blocks_cuda(const SelectBlocksArgs& args, CudaTarget target) {
  if (args.rows == 0 || args.blocks == 0) return {};
  const auto blocks = static_cast<unsigned>((args.rows + kWarps - 1) / kWarps);
  const auto kernel = args.blocks <= 256    ? select_blocks_kernel<8>
                      : args.blocks <= 640  ? select_blocks_kernel<20>
                      : args.blocks <= 1280 ? select_blocks_kernel<40>
                                            : select_blocks_kernel<0>;
  return launch_kernel(kernel, {blocks, 32 * kWarps, 0, target.stream}, args);
}

}  // namespace fovea::kernels
