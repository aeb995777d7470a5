#pragma once

#include <cstdint>

#include "kernels/attention/block_sparse_backward.h"
#include "kernels/attention/work_layout.h"

namespace fovea::kernels {

constexpr int64_t kPairUnits = 16;  ///< 256 keys meet a tile of queries at a time
constexpr int64_t kPairKeys = kPairUnits * kUnit;
constexpr int64_t kPairStride = kPairKeys + kUnit;

/// A worker's buffers for a tile of queries, all fp32.
struct BackwardTileMemory {
  float q[kTileRows * kRowStride];         ///< queries times the scale, base 2
  float grad_out[kTileRows * kRowStride];  ///< gradients of the output
  float q_panels[kTileRows * kMaxDim];     ///< the same, [panels][kTileRows][16]
  float grad_out_panels[kTileRows * kMaxDim];
  float grad_q[kTileRows * kRowStride];  ///< sums of dS k
  float p[kTileRows * kPairStride];      ///< base-2 logits, then probabilities
  float ds[kTileRows * kPairStride];     ///< gradients of the probabilities, then of the logits
  float lse_high[kTileRows];             ///< base-2 lse, as a sum of two floats
  float lse_low[kTileRows];
  float delta[kTileRows];     ///< rows' sums of grad_out * out, less the gradient of the lse
  float row_sums[kTileRows];  ///< of dS
  // Of quantized weights: what logits are relative to, and what makes weights probabilities.
  float row_max[kTileRows];
  float inverse_sum[kTileRows];
};

/// Where things are in the workspace. The keys are cut into chunks, one task each: it holds its
/// keys' gradients and passes all queries, to whose gradients it adds in the order of the chunks.
/// (batch, kv head) pairs are computed in waves. Counts of floats are of one pair or one worker.
struct BackwardLayout {
  int64_t chunk_keys = 0, chunks = 0;
  int64_t q_width = 0, value_width = 0;  ///< channels in whole units
  int64_t wave_heads = 0;                ///< (batch, kv head) pairs of a wave
  int64_t tiles = 0;                     ///< most tiles of any head
  int64_t worker_bytes = 0;
  int64_t tile_starts_at = 0, done_at = 0, delta_at = 0, grad_q_at = 0, workers_at = 0, bytes = 0;
};

BackwardLayout backward_layout(const BlockSparseBackwardArgs& args, int threads);

}  // namespace fovea::kernels
