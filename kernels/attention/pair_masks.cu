#include <cuda_runtime.h>

#include "kernels/attention/pair_seen.h"
#include "kernels/common/launch.cuh"

namespace fovea::kernels {
namespace {

constexpr int kSpan = 32 * kMaskWords;  // most keys of a span
constexpr int kWarps = 8;
constexpr unsigned kAll = 0xffffffff;

// Number `query` of a map's queries sees number `key` of its keys.
__device__ bool sees(const PairMasksArgs& args, int64_t map, int64_t query, int64_t key) {
  SideValues q = q_values(args, map), kv = kv_values(args, map);
  q.data += query, kv.data += key;
  return sees(args, map, q, kv);
}

/// A block looks at the spans of a row of blocks, a thread at one key of each.
/// Grid: maps * rows.
__global__ void __launch_bounds__(kSpan) look_at_pairs_kernel(PairMasksArgs args) {
  const int64_t of_row = blockIdx.x, map = of_row / args.rows;
  const QueryBlock block(args, map, of_row % args.rows);
  const int count = args.counts[of_row];
  for (int i = 0; i < count; ++i) {
    const KeySpan span = args.spans[of_row * args.capacity + i];
    int any = span.begin >= args.kv_len, all = 1;
    if (threadIdx.x < span.len && span.begin < args.kv_len) {
      for (int query = block.begin; query < block.end; ++query) {
        const bool seen = sees(args, map, query, span.begin + threadIdx.x);
        any |= seen, all &= seen;
      }
    }
    any = __syncthreads_or(any);
    all = __syncthreads_and(all);
    if (threadIdx.x == 0) {
      args.seen[of_row * args.capacity + i] = !any ? kSeesNone : all ? kSeesAll : kSeesSome;
    }
  }
}

/// A warp takes spans out of a row of blocks that are not seen, and numbers those that get masks.
/// Grid: ceil(maps * rows / kWarps).
__global__ void __launch_bounds__(32 * kWarps) take_out_kernel(PairMasksArgs args) {
  const int64_t of_row = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (of_row >= args.maps * args.rows) return;
  const uint8_t* seen = args.seen + of_row * args.capacity;
  KeySpan* spans = args.spans + of_row * args.capacity;
  const int count = args.counts[of_row];
  const unsigned before = (1u << lane) - 1;
  int kept = 0, partial = 0;
  for (int first = 0; first < count; first += 32) {
    const int i = first + lane;
    const uint8_t own = i < count ? seen[i] : kSeesNone;
    KeySpan span = i < count ? spans[i] : KeySpan();
    const unsigned stay = __ballot_sync(kAll, own != kSeesNone);
    const unsigned some = __ballot_sync(kAll, own == kSeesSome);
    if (own == kSeesSome) span.mask = 1 + partial + __popc(some & before);
    // All have been read; places are never behind where they were.
    if (own != kSeesNone) spans[kept + __popc(stay & before)] = span;
    kept += __popc(stay), partial += __popc(some);
    __syncwarp();
  }
  if (lane == 0) {
    args.counts[of_row] = kept;
    const QueryBlock block(args, of_row / args.rows, of_row % args.rows);
    args.needed[of_row] = partial * block.tiles(args.tile_queries);
  }
}

/// A block fills the masks of a row of blocks, a thread one key of each. Grid: maps * rows.
__global__ void __launch_bounds__(kSpan) fill_masks_kernel(PairMasksArgs args) {
  const int64_t of_row = blockIdx.x, map = of_row / args.rows;
  const QueryBlock block(args, map, of_row % args.rows);
  const auto tiles = static_cast<int>(block.tiles(args.tile_queries));
  const int rows = tiles * args.tile_queries, own = block.end - block.begin;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int count = args.counts[of_row];
  for (int i = 0; i < count; ++i) {
    KeySpan* const place = args.spans + of_row * args.capacity + i;
    KeySpan span = *place;
    if (span.mask == 0) continue;
    const int64_t number = args.first[of_row] + static_cast<int64_t>(span.mask - 1) * tiles;
    auto* const bytes =
        reinterpret_cast<uint8_t*>(args.masks + number * args.tile_queries * kMaskWords);
    for (int row = 0; row < rows; ++row) {
      const bool seen = row < own && threadIdx.x < span.len &&
                        sees(args, map, block.begin + row, span.begin + threadIdx.x);
      // Of a warp's 32 keys each word holds 8, two of each eight: one byte of it.
      const unsigned keys = __ballot_sync(kAll, seen);
      if (lane < kMaskWords) {
        const unsigned twos = keys >> (2 * lane) & 0x03030303u;
        const unsigned byte = (twos | twos >> 6 | twos >> 12 | twos >> 18) & 0xffu;
        bytes[(row * kMaskWords + lane) * 4 + warp] = static_cast<uint8_t>(byte);
      }
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      span.mask = static_cast<uint32_t>(1 + number);
      *place = span;
    }
  }
}

}  // namespace

Status find_pairs_cuda(const PairMasksArgs& args, CudaTarget target) {
  const int64_t rows = args.maps * args.rows;
  if (rows == 0) return {};
  const Status status = launch_kernel(look_at_pairs_kernel,
                                      {static_cast<unsigned>(rows), kSpan, 0, target.stream}, args);
  if (!status.ok()) return status;
  const auto blocks = static_cast<unsigned>((rows + kWarps - 1) / kWarps);
  return launch_kernel(take_out_kernel, {blocks, 32 * kWarps, 0, target.stream}, args);
}

Status fill_masks_cuda(const PairMasksArgs& args, CudaTarget target) {
  const int64_t rows = args.maps * args.rows;
  if (rows == 0) return {};
  return launch_kernel(fill_masks_kernel, {static_cast<unsigned>(rows), kSpan, 0, target.stream},
                       args);
}

}  // namespace fovea::kernels
