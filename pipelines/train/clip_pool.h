#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "core/progress.h"
#include "pipelines/train/train_config.h"

namespace fovea::pipelines {

/// What a pool holds of its clips: one row a clip, and its caption.
struct PooledClips {
  at::Tensor rows;  ///< [clips, ...]
  std::vector<std::string> captions;
};

/// The clips of one bucket that a process holds: those of its columns (see ClipBucket).
///
/// Which clips a step sees depends on the seed, the step and the column alone: not on the number
/// of processes, and not on when the run was interrupted.
class ClipPool {
 public:
  /// Makes the clips of these numbers; called with as many as the process has columns.
  using Maker = std::function<PooledClips(const std::vector<int64_t>& numbers)>;

  /// first_column, columns   the columns of this process
  ClipPool(const ClipBucket& bucket, int64_t first_column, int64_t columns, Maker maker);

  /// One clip of each column for step `step` (from 0); steps must not go back.
  PooledClips batch(uint64_t seed, int64_t step);
  /// Generations of clips that `batch(step)` has still to make.
  int64_t missing(int64_t step) const;
  /// Makes one of them.
  void make_one(int64_t step);

 private:
  int64_t first_generation(int64_t step) const;

  ClipBucket bucket_;
  int64_t first_column_, columns_;
  Maker maker_;
  int64_t made_ = 0;  // generations below this one exist, as far as they are still needed
  std::vector<at::Tensor> rows_;                    // [depth] tensors [columns, ...]
  std::vector<std::vector<std::string>> captions_;  // [depth][columns]
};

/// Makes what `batch(step)` of all pools needs, as one stage of the progress.
void fill_pools(std::vector<ClipPool>& pools, int64_t step, Progress& progress);

}  // namespace fovea::pipelines
