#include "pipelines/train/clip_source.h"

#include <mutex>

#include <ATen/ATen.h>

#include "core/check.h"
#include "core/ops/render_scenes.h"
#include "pipelines/train/draw.h"

namespace fovea::pipelines {
namespace {

// Seed of the clips that training does not see.
constexpr uint64_t kUnseen = 0x5EEDFACE00000000u;

}  // namespace

ClipSource::ClipSource(const TrainConfig& config, const TaskSetup& setup)
    : config_(config), setup_(setup), world_(config.scenes) {
  for (const ClipBucket& bucket : config.buckets) {
    const int64_t parts = setup.world_size * config.micro_batches;
    require(bucket.batch % parts == 0, ErrorCode::usage, config.where,
            "key 'batch': ", bucket.batch, " clips cannot be shared by ", setup.world_size,
            " processes with ", config.micro_batches, " micro-batches");
  }
}

PooledClips ClipSource::render(const ClipBucket& bucket, uint64_t seed,
                               const std::vector<int64_t>& numbers) const {
  PooledClips out;
  std::vector<kernels::Scene> scenes;
  for (const int64_t number : numbers) {
    SceneClip clip = world_.clip(seed, number);
    scenes.push_back(clip.scene);
    out.captions.push_back(std::move(clip.caption));
  }
  const RenderSize size{.frames = bucket.frames,
                        .height = bucket.height,
                        .width = bucket.width,
                        .samples = config_.samples};
  out.rows = render_scenes(scenes, size, setup_.device);
  return out;
}

PooledClips ClipSource::render(const ClipBucket& bucket,
                               const std::vector<int64_t>& numbers) const {
  return render(bucket, config_.seed, numbers);
}

PooledClips ClipSource::render_unseen(const ClipBucket& bucket, int64_t first,
                                      int64_t count) const {
  std::vector<int64_t> numbers;
  for (int64_t i = 0; i < count; ++i) numbers.push_back(first + i);
  return render(bucket, kUnseen, numbers);
}

size_t ClipSource::bucket_of(int64_t step) const {
  double total = 0;
  for (const ClipBucket& bucket : config_.buckets) total += bucket.weight;
  Draw draw(config_.seed,
            {static_cast<uint64_t>(DrawPurpose::bucket), static_cast<uint64_t>(step)});
  double left = draw.unit() * total;
  for (size_t i = 0; i + 1 < config_.buckets.size(); ++i) {
    if (left < config_.buckets[i].weight) return i;
    left -= config_.buckets[i].weight;
  }
  return config_.buckets.size() - 1;
}

int64_t ClipSource::columns(const ClipBucket& bucket) const {
  return bucket.batch / setup_.world_size;
}

int64_t ClipSource::first_column(const ClipBucket& bucket) const {
  return columns(bucket) * setup_.rank;
}

std::vector<ClipPool> ClipSource::make_pools(
    const std::function<PooledClips(const ClipBucket&, const std::vector<int64_t>&)>& make) const {
  std::vector<ClipPool> pools;
  for (const ClipBucket& bucket : config_.buckets) {
    pools.emplace_back(
        bucket, first_column(bucket), columns(bucket),
        [&bucket, make](const std::vector<int64_t>& numbers) { return make(bucket, numbers); });
  }
  return pools;
}

at::Tensor ClipSource::noise(int64_t step, std::vector<int64_t> shape) const {
  const int64_t own = shape[0];
  shape[0] = own * setup_.world_size;
  Draw draw(config_.seed, {static_cast<uint64_t>(DrawPurpose::noise), static_cast<uint64_t>(step)});
  at::Generator generator = at::globalContext().defaultGenerator(setup_.device);
  {
    const std::lock_guard<std::mutex> lock(generator.mutex());
    generator.set_current_seed(draw.bits());
  }
  const auto options = at::TensorOptions(at::kFloat).device(setup_.device);
  return at::randn(shape, generator, options).narrow(0, own * setup_.rank, own);
}

at::Tensor pixels_to_network(const at::Tensor& rows, at::ScalarType dtype) {
  return rows.permute({0, 4, 1, 2, 3}).to(at::kFloat).div_(127.5).sub_(1).to(dtype);
}

TensorMap to_bf16(const TensorMap& tensors) {
  TensorMap out;
  for (const auto& [name, tensor] : tensors) {
    out.emplace(name, tensor.detach().to(at::kCPU, at::kBFloat16));
  }
  return out;
}

}  // namespace fovea::pipelines
