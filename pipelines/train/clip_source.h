#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "pipelines/train/clip_pool.h"
#include "pipelines/train/scene_world.h"
#include "pipelines/train/training_task.h"

namespace fovea::pipelines {

/// Largest size in bytes of one shard of a saved model.
constexpr uint64_t kShardBytes = 15'000'000;

/// Rendered clips of a run, and which of them a step takes.
class ClipSource {
 public:
  /// Keeps the references.
  ClipSource(const TrainConfig& config, const TaskSetup& setup);

  /// Rendered clips: rows uint8 [clips, frames, height, width, 3] on the device.
  PooledClips render(const ClipBucket& bucket, const std::vector<int64_t>& numbers) const;
  /// Clips that no training step sees, likewise.
  PooledClips render_unseen(const ClipBucket& bucket, int64_t first, int64_t count) const;

  /// The bucket of step `step`: drawn by weight.
  size_t bucket_of(int64_t step) const;
  /// Pools, one a bucket, of what `make` turns numbers into.
  std::vector<ClipPool> make_pools(
      const std::function<PooledClips(const ClipBucket&, const std::vector<int64_t>&)>& make) const;

  /// First of this process' columns of a bucket, and how many they are.
  int64_t first_column(const ClipBucket& bucket) const;
  int64_t columns(const ClipBucket& bucket) const;

  /// Unit normal noise of `shape` for this process' items of a step, whose number is shape[0]: a
  /// part of the noise for the items of all processes.
  at::Tensor noise(int64_t step, std::vector<int64_t> shape) const;

  const SceneWorld& world() const { return world_; }

 private:
  PooledClips render(const ClipBucket& bucket, uint64_t seed,
                     const std::vector<int64_t>& numbers) const;

  const TrainConfig& config_;
  const TaskSetup& setup_;
  SceneWorld world_;
};

/// Pixels of rendered clips as a network sees them: [clips, 3, frames, height, width] in [-1, 1].
at::Tensor pixels_to_network(const at::Tensor& rows, at::ScalarType dtype);

/// Tensors in bf16, as the shipped models are stored.
TensorMap to_bf16(const TensorMap& tensors);

}  // namespace fovea::pipelines
