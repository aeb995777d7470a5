#include <cuda_runtime.h>

#include "kernels/attention/listed_keys.h"
#include "kernels/common/launch.cuh"

namespace fovea::kernels {
namespace {

constexpr int kWarps = 8;
constexpr unsigned kAll = 0xffffffff;

// Sum of `value` over this lane and those before it.
template <typename T>
__device__ T inclusive_sum(T value, int lane) {
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const T before = __shfl_up_sync(kAll, value, step);
    if (lane >= step) value += before;
  }
  return value;
}

/// Of what lanes have `own` of each: what those before this one have, and all.
struct Share {
  int before, all;
};
__device__ Share share_of(int own, int lane) {
  if (!__any_sync(kAll, own > 1)) {
    const unsigned ones = __ballot_sync(kAll, own == 1);
    return {__popc(ones & ((1u << lane) - 1)), __popc(ones)};
  }
  const int sum = inclusive_sum(own, lane);
  return {sum - own, __shfl_sync(kAll, sum, 31)};
}

/// A warp cuts the blocks of queries of a map.
__device__ void cut_queries(const TileListsArgs& args, int64_t map, int lane) {
  QueryTile* tiles = args.tiles + map * args.tiles_per_map;
  int64_t done = 0;
  for (int64_t first = 0; first < args.num_q_blocks; first += 32) {
    const int64_t row = first + lane;
    const bool is_one = row < args.num_q_blocks;
    const Positions block = is_one ? tiled_rows(args, map, row) : Positions();
    const auto own = static_cast<int>(block.pieces(args.tile_queries));
    const Share share = share_of(own, lane);
    for (int i = 0; i < own; ++i) {
      const int64_t place = done + share.before + i;
      if (place >= args.tiles_per_map) {
        *args.fault = 1;
        break;
      }
      const int at = block.begin + i * args.tile_queries;
      tiles[place] = {at, min(args.tile_queries, block.end - at), static_cast<int32_t>(row), i};
    }
    done += share.all;
  }
  for (int64_t place = done + lane; place < args.tiles_per_map; place += 32) tiles[place] = {};
}

/// A warp's list of a row of blocks; each lane has one of 32 blocks that follow one another.
struct SpanRow {
  const TileListsArgs& args;
  int64_t of_row;
  int lane;
  KeySpan* out = args.spans + of_row * args.capacity;
  int64_t done = 0;

  __device__ void add(const Positions& keys) {
    const auto own = static_cast<int>(keys.pieces(args.span_keys));
    const Share share = share_of(own, lane);
    for (int i = 0; i < own; ++i) {
      const int64_t place = done + share.before + i;
      if (place >= args.capacity) {
        *args.fault = 1;
        break;
      }
      const int at = keys.begin + i * args.span_keys;
      out[place] = {at, static_cast<uint32_t>(min(args.span_keys, keys.end - at))};
    }
    done += share.all;
  }
  __device__ void finish() {
    if (lane == 0) args.counts[of_row] = static_cast<int32_t>(min(done, args.capacity));
  }
};

/// The same of packed steps.
struct PackedRow {
  const TileListsArgs& args;
  int64_t of_row;
  int lane;
  PackedSpan* out = args.packed + of_row * args.capacity;
  const uint32_t most = args.span_keys;
  int64_t done = 0;
  uint32_t fill = 0;         // keys of the step at hand
  int spans = 0, steps = 0;  // of that step, before it
  bool is_cut = false;

  __device__ void add(const Positions& keys) {
    const auto len = static_cast<uint32_t>(keys.end - keys.begin);
    if (is_cut || __all_sync(kAll, len == 0)) return;
    // More than 2^30 keys are a mistake, and sums of 32 bits no place for them.
    is_cut = __reduce_add_sync(kAll, len >> 8) > 1u << 22;
    if (is_cut) return;
    const uint32_t sum = inclusive_sum(len, lane), all = __shfl_sync(kAll, sum, 31);
    const unsigned here = __ballot_sync(kAll, len > 0 && fill + sum - len < most);
    if (spans + __popc(here) > kMostPacked) end_step();
    // From the begin of the step at hand on.
    const uint32_t first = fill + sum - len, last = first + len;
    const int own = len == 0 ? 0 : static_cast<int>((last - 1) / most - first / most + 1);
    const Share share = share_of(own, lane);
    is_cut = done + share.all > args.capacity;
    if (is_cut) return;
    uint32_t row = first % most, behind = 0;
    for (int i = 0; i < own; ++i) {
      const uint32_t piece = min(most - row, len - behind);
      out[done + share.before + i] = {keys.begin + static_cast<int>(behind), piece, row,
                                      row + piece == most};
      behind += piece, row = 0;
    }
    done += share.all;
    const uint32_t begin = (fill + all) / most * most;  // of the step at hand now
    const int own_spans = __popc(__ballot_sync(kAll, len > 0 && last > begin));
    spans = begin == 0 ? spans + own_spans : own_spans;
    steps += static_cast<int>(begin / most);
    fill = fill + all - begin;
  }
  __device__ void finish() {
    if (fill > 0 && !is_cut) end_step();
    if (lane != 0) return;
    args.counts[of_row] = is_cut ? 0 : steps;
    if (is_cut) *args.fault = 1;
  }
  __device__ void end_step() {
    __syncwarp();  // another lane may have written the span
    if (lane == 0) out[done - 1].ends_step = 1;
    ++steps, fill = 0, spans = 0;
  }
};

/// A warp lists the keys of a row of blocks. The memory's answers for some groups of blocks are
/// waited for together.
template <typename Row>
__device__ void list_keys(Row list) {
  constexpr int kGroups = 4;
  const TileListsArgs& args = list.args;
  const int64_t map = list.of_row / args.num_q_blocks, row = list.of_row % args.num_q_blocks;
  for (int level = 0; level <= args.num_summaries; ++level) {
    for (int64_t first = list.lane; first < args.num_kv_blocks + list.lane; first += 32 * kGroups) {
      int classes[kGroups];
#pragma unroll
      for (int i = 0; i < kGroups; ++i) {
        const int64_t block = first + 32 * i;
        classes[i] = block < args.num_kv_blocks ? class_of(args, map, row, block) : -1;
      }
#pragma unroll
      for (int i = 0; i < kGroups; ++i) {
        list.add(classes[i] < 0 ? Positions()
                                : listed_keys(args, map, first + 32 * i, classes[i], level));
      }
    }
  }
  list.finish();
}

/// Each warp has a map to cut the queries of, or a row. Grid: ceil((maps + maps * rows) / kWarps).
template <typename Row>
__global__ void __launch_bounds__(32 * kWarps)
    tile_lists_kernel(const __grid_constant__ TileListsArgs args) {
  const int64_t number = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (number < args.maps) {
    cut_queries(args, number, lane);
  } else if (number - args.maps < args.maps * args.num_q_blocks) {
    list_keys(Row{args, number - args.maps, lane});
  }
}

}  // namespace

Status tile_lists_cuda(const TileListsArgs& args, CudaTarget target) {
  if (args.maps == 0) return {};
  const int64_t warps = args.maps * (1 + args.num_q_blocks);
  const auto blocks = static_cast<unsigned>((warps + kWarps - 1) / kWarps);
  const Grid grid = {blocks, 32 * kWarps, 0, target.stream};
  return args.packed != nullptr ? launch_kernel(tile_lists_kernel<PackedRow>, grid, args)
                                : launch_kernel(tile_lists_kernel<SpanRow>, grid, args);
}

}  // namespace fovea::kernels
