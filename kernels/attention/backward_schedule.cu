#include "kernels/attention/backward_schedule.h"

#include <limits>

#include <cuda_runtime.h>

#include "kernels/common/launch.cuh"

namespace fovea::kernels {
namespace {

constexpr unsigned kAll = 0xffffffff;
constexpr int kWarps = 8;
constexpr int kMostBlocks = BackwardSchedule::kMostBlocks;
constexpr int kMostAdds = BackwardSchedule::kMostAdds;
constexpr int kTileCost = BackwardSchedule::kTileCost;
constexpr int kBalancedWaves = 16;  // the last ones: fewer cost 4 % at density 0.1
constexpr int kDealers = 1024;      // threads
constexpr int kTimeBits = 24;

/// A tile of keys, of all.
struct ColumnTile {
  int number, kv_head, item, part;
  int64_t row;  // of blocks, of the map of its first head of queries
  bool is_one;

  __device__ ColumnTile(const BackwardSchedule& args, int64_t index) {
    number = static_cast<int>(index % args.tiles);
    kv_head = static_cast<int>(index / args.tiles % args.kv_heads);
    item = static_cast<int>(index / args.tiles / args.kv_heads);
    const TileLists& lists = args.columns;
    const QueryTile own = lists.tiles[map(args, 0) * lists.tiles_per_map + number];
    row = own.row, part = own.part, is_one = own.len > 0;
  }
  __device__ int head(const BackwardSchedule& args, int i) const {
    return kv_head * args.heads_per_kv + i;
  }
  __device__ int64_t map(const BackwardSchedule& args, int i) const {
    const TileLists& lists = args.columns;
    return item * lists.batch_stride + head(args, i) * lists.head_stride;
  }
  /// The list of the i-th head of queries of its head.
  __device__ int64_t list(const BackwardSchedule& args, int i) const {
    return map(args, i) * args.columns.rows + row;
  }
};

/// A thread each tile; and nothing has added to any step yet.
__global__ void __launch_bounds__(256) weigh_kernel(const __grid_constant__ BackwardSchedule args) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  if (index < args.all_steps()) args.adds[index] = 0;
  if (index >= args.all_tiles()) return;
  const ColumnTile tile(args, index);
  int weight = tile.is_one ? kTileCost : 0;
  for (int i = 0; tile.is_one && i < args.heads_per_kv; ++i) {
    weight += args.columns.counts[tile.list(args, i)];
  }
  args.weights[index] = weight;
}

struct DealMemory {
  int tiles[kDealers + kMostBlocks], weights[kDealers + kMostBlocks];  // still to be dealt
  int loads[kMostBlocks];                                              // steps of each block so far
  uint4 load_keys[kMostBlocks / 4];                                    // load and block
  uint4 tile_keys[kMostBlocks / 4];                                    // what is lowest is heaviest
  int by_load[kMostBlocks];  // blocks, that with the lowest load first
  int of_warps[kDealers / 32];
};

/// How many of the keys are below one.
__device__ int below(const uint4* keys, int count, uint32_t own) {
  int out = 0;
  for (int i = 0; i < (count + 3) / 4; ++i) {
    const uint4 x = keys[i];
    out += (x.x < own) + (x.y < own) + (x.z < own) + (x.w < own);
  }
  return out;
}

/// Gives a block its tile of a wave; one thread.
__device__ void give_tile(const BackwardSchedule& args, DealMemory& memory, int at, int wave,
                          int block) {
  const int tile = memory.tiles[at];
  args.order[wave * args.blocks + block] = tile;
  args.times[tile] = static_cast<uint32_t>(memory.loads[block]) * args.blocks + block;
  memory.loads[block] += memory.weights[at];
}

/// Deals up to a wave of tiles from `begin` on, the heaviest one to the block with the lowest load;
/// all threads.
__device__ void deal_by_load(const BackwardSchedule& args, DealMemory& memory, int begin, int count,
                             int wave) {
  const int thread = static_cast<int>(threadIdx.x), own = thread % kMostBlocks;
  const bool of_blocks = thread < kMostBlocks;
  const bool of_tiles = !of_blocks && thread < 2 * kMostBlocks;
  uint32_t key = kAll;
  if (of_blocks) {
    if (own < args.blocks) key = static_cast<uint32_t>(memory.loads[own]) << 8 | own;
    reinterpret_cast<uint32_t*>(memory.load_keys)[own] = key;
  } else if (of_tiles) {
    constexpr uint32_t kMost = (1u << kTimeBits) - 2;
    if (own < count) key = (kMost - memory.weights[begin + own]) << 8 | own;
    reinterpret_cast<uint32_t*>(memory.tile_keys)[own] = key;
  }
  __syncthreads();
  int rank = own;  // places without a tile are behind those with one
  if (of_blocks && own < args.blocks) {
    memory.by_load[below(memory.load_keys, args.blocks, key)] = own;
  } else if (of_tiles && own < count) {
    rank = below(memory.tile_keys, count, key);
  }
  __syncthreads();
  if (of_tiles && own < count) {
    give_tile(args, memory, begin + own, wave, memory.by_load[rank]);
  } else if (of_tiles && own < args.blocks) {
    args.order[wave * args.blocks + memory.by_load[own]] = -1;
  }
  __syncthreads();
}

/// Where each thread's tile comes among those to be dealt; `fill` is how many there are then.
__device__ int place_of(DealMemory& memory, bool is_one, int& fill) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const unsigned ones = __ballot_sync(kAll, is_one);
  if (lane == 0) memory.of_warps[warp] = __popc(ones);
  __syncthreads();
  int out = fill + __popc(ones & ((1u << lane) - 1));
  for (int i = 0; i < kDealers / 32; ++i) {
    const int own = memory.of_warps[i];
    if (i < warp) out += own;
    fill += own;
  }
  return out;
}

/// One block.
__global__ void __launch_bounds__(kDealers)
    deal_kernel(const __grid_constant__ BackwardSchedule args) {
  __shared__ DealMemory memory;
  __shared__ int all;
  const int thread = static_cast<int>(threadIdx.x);
  const auto tiles = static_cast<int>(args.all_tiles());
  if (thread == 0) all = 0;
  if (thread < kMostBlocks) memory.loads[thread] = 0;
  __syncthreads();
  int own = 0;
  for (int i = thread; i < tiles; i += kDealers) own += args.weights[i] > 0;
  own = __reduce_add_sync(kAll, own);
  if (thread % 32 == 0) atomicAdd(&all, own);
  __syncthreads();
  const int waves = (all + args.blocks - 1) / args.blocks;
  int fill = 0, wave = 0;
  int next = thread < tiles ? args.weights[thread] : 0;
  for (int first = 0; first < tiles; first += kDealers) {
    const int weight = next, behind = first + kDealers + thread;
    next = behind < tiles ? args.weights[behind] : 0;  // asked for before it is needed
    const int place = place_of(memory, weight > 0, fill);
    if (weight > 0) memory.tiles[place] = first + thread, memory.weights[place] = weight;
    __syncthreads();
    const bool is_last = first + kDealers >= tiles;
    int begin = 0;
    for (; fill - begin >= args.blocks && wave < waves - kBalancedWaves; begin += args.blocks) {
      if (thread < args.blocks) give_tile(args, memory, begin + thread, wave, thread);
      ++wave;
    }
    __syncthreads();
    while (fill - begin >= args.blocks || (is_last && begin < fill)) {
      const int count = min(args.blocks, fill - begin);
      deal_by_load(args, memory, begin, count, wave);
      ++wave, begin += count;
    }
    fill -= begin;  // less than a wave
    if (begin > 0) {
      const bool moves = thread < fill;
      const int tile = moves ? memory.tiles[begin + thread] : 0;
      const int its_weight = moves ? memory.weights[begin + thread] : 0;
      __syncthreads();
      if (moves) memory.tiles[thread] = tile, memory.weights[thread] = its_weight;
    }
    __syncthreads();
  }
  for (int i = wave * args.blocks + thread; i < args.waves * args.blocks; i += kDealers) {
    args.order[i] = -1;
  }
}

/// Tells the steps of a tile's lists when it comes to them; a warp each tile.
__global__ void __launch_bounds__(32 * kWarps)
    time_kernel(const __grid_constant__ BackwardSchedule args) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (index >= args.all_tiles() || args.weights[index] == 0) return;
  const ColumnTile tile(args, index);
  const auto begin = static_cast<int>(static_cast<int64_t>(tile.number) * args.apart % args.steps);
  auto place = static_cast<uint32_t>(index * args.ranks_of_tile());
  uint32_t time = args.times[index];
  for (int i = 0; i < args.heads_per_kv; ++i) {
    const int64_t row = tile.list(args, i);
    const KeySpan* const list = args.columns.spans + row * args.columns.capacity;
    const int count = args.columns.counts[row];
    int first = 0;
    for (int at = lane; at < count + lane; at += 32) {
      const bool before = at < count && list[at].begin < begin * args.step_queries;
      first += __popc(__ballot_sync(kAll, before));
    }
    if (first == count) first = 0;
    const int64_t head =
        static_cast<int64_t>(tile.item) * args.kv_heads * args.heads_per_kv + tile.head(args, i);
    if (lane == 0) {
      const auto at = static_cast<uint32_t>(row * args.columns.capacity);
      args.lists[index * args.heads_per_kv + i] = {at, count, first, tile.part};
    }
    for (int at = lane; at < count; at += 32) {
      const int64_t step = head * args.steps + list[at].begin / args.step_queries;
      const int nth = at - first + (at < first ? count : 0);
      uint32_t* const entry = args.entries[step * kMostAdds + atomicAdd(args.adds + step, 1)];
      entry[0] = time + nth * args.blocks, entry[1] = place + nth;
    }
    time += count * args.blocks, place += count;
  }
}

/// Orders the tiles that add to a step; a warp each step.
__global__ void __launch_bounds__(32 * kWarps)
    rank_kernel(const __grid_constant__ BackwardSchedule args) {
  constexpr int kStaged = 256;
  __shared__ uint4 staged[kWarps][kStaged / 4];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t step = static_cast<int64_t>(blockIdx.x) * kWarps + warp;
  if (step >= args.all_steps()) return;
  auto* const times = reinterpret_cast<uint32_t*>(staged[warp]);
  const auto* const entries = reinterpret_cast<const uint2*>(args.entries + step * kMostAdds);
  const int count = args.adds[step];
  for (int first = 0; first < count; first += 32) {
    const bool is_one = first + lane < count;
    const uint2 own = is_one ? entries[first + lane] : make_uint2(0, 0);
    int rank = 0;
    for (int begin = 0; begin < count; begin += kStaged) {
      const int here = min(kStaged, count - begin);
      __syncwarp();
      for (int i = lane; i - lane < here; i += 32) {
        times[i] = i < here ? entries[begin + i].x : kAll;
      }
      __syncwarp();
      rank += below(staged[warp], here, own.x);
    }
    if (is_one) args.ranks[own.y] = static_cast<uint16_t>(rank);
  }
}

unsigned blocks_of(int64_t count, int64_t of_block) {
  return static_cast<unsigned>((count + of_block - 1) / of_block);
}

}  // namespace

bool BackwardSchedule::fits() const {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  const int64_t lists = static_cast<int64_t>(batch) * kv_heads * heads_per_kv * columns.rows;
  return blocks <= kMostBlocks && tiles <= kMostAdds && all_steps() <= kMost &&
         lists * columns.capacity <= 2 * kMost && all_tiles() * ranks_of_tile() <= 2 * kMost &&
         waves * (ranks_of_tile() + kTileCost) < int64_t{1} << kTimeBits;
}

Status schedule_backward(const BackwardSchedule& args, CudaTarget target) {
  const int64_t tiles = args.all_tiles(), steps = args.all_steps();
  const auto start = [&](auto kernel, unsigned blocks, unsigned threads) {
    return launch_kernel(kernel, {blocks, threads, 0, target.stream}, args);
  };
  Status status = start(weigh_kernel, blocks_of(std::max(tiles, steps), 256), 256);
  if (status.ok()) status = start(deal_kernel, 1, kDealers);
  if (status.ok()) status = start(time_kernel, blocks_of(tiles, kWarps), 32 * kWarps);
  return status.ok() ? start(rank_kernel, blocks_of(steps, kWarps), 32 * kWarps) : status;
}

}  // namespace fovea::kernels
