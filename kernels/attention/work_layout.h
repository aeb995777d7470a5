#pragma once

#include <cstdint>

#include "kernels/attention/block_sparse.h"

namespace fovea::kernels {

/// K is packed in units of this many keys, V in panels of this many channels.
constexpr int64_t kUnit = 16;
constexpr int64_t kMaxDim = 256;
constexpr int64_t kTileRows = 128;
constexpr int64_t kStepUnits = 32;  ///< 512 keys enter the softmax at a time
constexpr int64_t kStepKeys = kStepUnits * kUnit;
/// Distances of rows in a worker's buffers, constant so that they become displacements, and off
/// powers of two so that rows do not compete for the same lines of the cache.
constexpr int64_t kRowStride = kMaxDim + kUnit;
constexpr int64_t kLogitStride = kStepKeys + kUnit;

/// A worker's buffers. `q` and `logits` hold 32-bit units: a number of fp32, two of bf16, or
/// four 8-bit integers.
struct WorkerMemory {
  float q[kTileRows * kRowStride];         ///< queries; those of fp32 times the scale
  float q_wide[kTileRows * kRowStride];    ///< of bf16 the same as fp32, for keys of fp32
  float out[kTileRows * kRowStride];       ///< sums of p v
  float logits[kTileRows * kLogitStride];  ///< base-2 logits, then probabilities
  float q_scale[kTileRows];                ///< of integers: what makes their products base-2 logits
  int32_t q_offset[kTileRows];             ///< of integers: what the offset of the keys adds
  float row_max[kTileRows];
  float row_sum[kTileRows];
  float row_weight[kTileRows];  ///< the same of the weights as they are multiplied with values
  float rescale[kTileRows];     ///< what the sums so far are worth under the new maximum
};

/// Where things are in the workspace. (batch, kv head) pairs are packed and computed in waves, so
/// that long sequences of many heads do not need all their keys packed at once.
struct WorkLayout {
  /// Of one (batch, kv head): packed K, factors of its rows, packed V. What is packed in fewer than
  /// 32 bits a number leaves the rest unused.
  int64_t key_floats = 0, scale_floats = 0, value_floats = 0;
  int64_t wave_heads = 0;   ///< (batch, kv head) pairs of a wave
  int64_t tiles = 0;        ///< most tiles of any head
  int64_t tops_floats = 0;  ///< of one worker: the largest logit of each row for each entry
  int64_t tile_starts_at = 0, packed_at = 0, workers_at = 0, tops_at = 0, bytes = 0;

  int64_t pair_floats() const { return key_floats + scale_floats + value_floats; }
};

/// Tiles of the blocks of queries: blocks longer than a tile are split evenly.
constexpr int64_t tiles_of(int64_t rows) { return (rows + kTileRows - 1) / kTileRows; }

/// Index of the first tile of each block of queries: starts [maps, num_q_blocks + 1].
void count_tiles(const BlockLists& lists, int32_t* starts);

/// Most tiles of any map.
int64_t most_tiles(const BlockLists& lists);

constexpr int64_t aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }

/// Whether the processor has `isa` and the workspace is aligned and has `bytes` bytes.
Status check_run(const Workspace& workspace, int64_t bytes, Isa isa);

WorkLayout work_layout(const BlockSparseArgs& args, int threads);

}  // namespace fovea::kernels
