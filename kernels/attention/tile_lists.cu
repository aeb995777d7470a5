#include <cuda_runtime.h>

#include "kernels/attention/listed_keys.h"
#include "kernels/common/launch.cuh"

namespace fovea::kernels {
namespace {

constexpr int kWarps = 8;
constexpr unsigned kAll = 0xffffffff;

// Sum of `value` over this lane and those before it.
__device__ int inclusive_sum(int value, int lane) {
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const int before = __shfl_up_sync(kAll, value, step);
    if (lane >= step) value += before;
  }
  return value;
}

/// A warp cuts the blocks of queries of a map. Grid: maps.
__global__ void __launch_bounds__(32) cut_queries_kernel(TileListsArgs args) {
  const int64_t map = blockIdx.x;
  const int lane = threadIdx.x;
  const int32_t* offsets = args.q_offsets + (args.q_maps == 1 ? 0 : map) * (args.num_q_blocks + 1);
  QueryTile* tiles = args.tiles + map * args.tiles_per_map;
  int64_t done = 0;
  for (int64_t first = 0; first < args.num_q_blocks; first += 32) {
    const int64_t row = first + lane;
    const bool is_one = row < args.num_q_blocks;
    const Positions block = is_one ? block_of(offsets, row, args.q_len, args.fault) : Positions();
    const auto own = static_cast<int>(block.pieces(args.tile_queries));
    const int sum = inclusive_sum(own, lane);
    for (int i = 0; i < own; ++i) {
      const int64_t place = done + sum - own + i;
      if (place >= args.tiles_per_map) {
        *args.fault = 1;
        break;
      }
      const int at = block.begin + i * args.tile_queries;
      tiles[place] = {at, min(args.tile_queries, block.end - at), static_cast<int32_t>(row), i};
    }
    done += __shfl_sync(kAll, sum, 31);
  }
  for (int64_t place = done + lane; place < args.tiles_per_map; place += 32) tiles[place] = {};
}

/// A warp lists the keys of a row of blocks. Grid: ceil(maps * rows / kWarps).
__global__ void __launch_bounds__(32 * kWarps) list_keys_kernel(TileListsArgs args) {
  const int64_t of_row = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (of_row >= args.maps * args.num_q_blocks) return;
  const int64_t map = of_row / args.num_q_blocks, row = of_row % args.num_q_blocks;
  KeySpan* spans = args.spans + of_row * args.capacity;
  int64_t done = 0;
  for (int level = 0; level <= args.num_summaries; ++level) {
    for (int64_t first = 0; first < args.num_kv_blocks; first += 32) {
      const int64_t index = first + lane;
      const Positions keys =
          index < args.num_kv_blocks ? listed_keys(args, map, row, index, level) : Positions();
      const auto own = static_cast<int>(keys.pieces(args.span_keys));
      const int sum = inclusive_sum(own, lane);
      for (int i = 0; i < own; ++i) {
        const int64_t place = done + sum - own + i;
        if (place >= args.capacity) {
          *args.fault = 1;
          break;
        }
        const int at = keys.begin + i * args.span_keys;
        spans[place] = {at, static_cast<uint32_t>(min(args.span_keys, keys.end - at))};
      }
      done += __shfl_sync(kAll, sum, 31);
    }
  }
  if (lane == 0) args.counts[of_row] = static_cast<int32_t>(min(done, args.capacity));
}

}  // namespace

Status tile_lists_cuda(const TileListsArgs& args, CudaTarget target) {
  const int64_t rows = args.maps * args.num_q_blocks;
  if (args.maps == 0) return {};
  const Status status = launch_kernel(
      cut_queries_kernel, {static_cast<unsigned>(args.maps), 32, 0, target.stream}, args);
  if (rows == 0 || !status.ok()) return status;
  const auto blocks = static_cast<unsigned>((rows + kWarps - 1) / kWarps);
  return launch_kernel(list_keys_kernel, {blocks, 32 * kWarps, 0, target.stream}, args);
}

}  // namespace fovea::kernels
