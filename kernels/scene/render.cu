#include <cuda_runtime.h>

#include "kernels/scene/render.h"
#include "kernels/scene/shade.h"

namespace fovea::kernels {
namespace {

constexpr int kTileWidth = 8;  // a warp draws 8 x 4 pixels: they mostly meet the same solids
constexpr int kTileHeight = 16;
constexpr int kBlocks = 6;  // on a multiprocessor at least: up to 80 registers a thread, no spills

/// One thread draws one pixel. Grid: tiles of all pictures. Called by render_cuda.
__global__ void __launch_bounds__(kTileWidth* kTileHeight, kBlocks) render_kernel(RenderArgs args) {
  __shared__ ScenePose s_pose;
  const int tiles_x = (args.width + kTileWidth - 1) / kTileWidth;
  const int tiles_y = (args.height + kTileHeight - 1) / kTileHeight;
  const int tiles = tiles_x * tiles_y;
  const int64_t picture = blockIdx.x / tiles;
  const int tile = static_cast<int>(blockIdx.x % tiles);
  const int thread = static_cast<int>(threadIdx.y) * kTileWidth + static_cast<int>(threadIdx.x);
  const auto* g_words = reinterpret_cast<const uint32_t*>(args.poses + picture);
  auto* s_words = reinterpret_cast<uint32_t*>(&s_pose);
  for (int i = thread; i < static_cast<int>(sizeof(ScenePose) / sizeof(uint32_t));
       i += kTileWidth * kTileHeight)
    s_words[i] = g_words[i];
  __syncthreads();  // the pose is complete

  const int x = tile % tiles_x * kTileWidth + static_cast<int>(threadIdx.x);
  const int y = tile / tiles_x * kTileHeight + static_cast<int>(threadIdx.y);
  if (x >= args.width || y >= args.height) return;
  const Bytes3 pixel = scene::pixel_of(s_pose, {args.height, args.width, args.samples, x, y});
  uint8_t* g_out = args.out + ((picture * args.height + y) * args.width + x) * 3;
#pragma unroll
  for (int c = 0; c < 3; ++c) g_out[c] = pixel.value[c];
}

}  // namespace

Status render_cuda(const RenderArgs& args, CudaTarget target) {
  if (const Status status = check(args); !status.ok()) return status;
  if (args.num_pictures == 0) return {};
  const int64_t tiles = static_cast<int64_t>((args.width + kTileWidth - 1) / kTileWidth) *
                        ((args.height + kTileHeight - 1) / kTileHeight);
  if (args.num_pictures * tiles > INT32_MAX)
    return {StatusCode::unsupported, "more than 2^31 - 1 tiles of pixels"};
  const auto status_of = [](cudaError_t error) {
    return error == cudaSuccess ? Status{} : Status{StatusCode::device, cudaGetErrorString(error)};
  };
  if (const Status status = status_of(cudaSetDevice(target.device)); !status.ok()) return status;
  const auto blocks = static_cast<unsigned>(args.num_pictures * tiles);
  render_kernel<<<blocks, dim3(kTileWidth, kTileHeight), 0,
                  static_cast<cudaStream_t>(target.stream)>>>(args);
  return status_of(cudaGetLastError());
}

}  // namespace fovea::kernels
