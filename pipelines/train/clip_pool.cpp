#include "pipelines/train/clip_pool.h"

#include <algorithm>

#include <ATen/ATen.h>

#include "core/interrupt.h"
#include "pipelines/train/draw.h"

namespace fovea::pipelines {

ClipPool::ClipPool(const ClipBucket& bucket, int64_t first_column, int64_t columns, Maker maker)
    : bucket_(bucket),
      first_column_(first_column),
      columns_(columns),
      maker_(std::move(maker)),
      rows_(static_cast<size_t>(bucket.depth)),
      captions_(static_cast<size_t>(bucket.depth)) {}

int64_t ClipPool::first_generation(int64_t step) const {
  return bucket_.refresh == 0 ? 0 : step / bucket_.refresh;
}

int64_t ClipPool::missing(int64_t step) const {
  const int64_t first = first_generation(step);
  return first + bucket_.depth - std::max(made_, first);
}

void ClipPool::make_one(int64_t step) {
  const int64_t generation = std::max(made_, first_generation(step));
  std::vector<int64_t> numbers;
  for (int64_t i = 0; i < columns_; ++i) {
    numbers.push_back(generation * bucket_.batch + first_column_ + i);
  }
  PooledClips clips = maker_(numbers);
  const auto slot = static_cast<size_t>(generation % bucket_.depth);
  rows_[slot] = clips.rows;
  captions_[slot] = std::move(clips.captions);
  made_ = generation + 1;
}

PooledClips ClipPool::batch(uint64_t seed, int64_t step) {
  while (missing(step) > 0) {
    throw_if_interrupted();
    make_one(step);
  }
  PooledClips out;
  std::vector<at::Tensor> rows;
  for (int64_t i = 0; i < columns_; ++i) {
    Draw draw(seed, {static_cast<uint64_t>(DrawPurpose::clip), static_cast<uint64_t>(step),
                     static_cast<uint64_t>(first_column_ + i)});
    const auto age = static_cast<int64_t>(draw.below(static_cast<size_t>(bucket_.depth)));
    const int64_t generation = first_generation(step) + age;
    const auto slot = static_cast<size_t>(generation % bucket_.depth);
    rows.push_back(rows_[slot][i]);
    out.captions.push_back(captions_[slot][static_cast<size_t>(i)]);
  }
  out.rows = at::stack(rows);
  return out;
}

void fill_pools(std::vector<ClipPool>& pools, int64_t step, Progress& progress) {
  int64_t total = 0, done = 0;
  for (const ClipPool& pool : pools) total += pool.missing(step);
  progress.begin("clips", std::max<int64_t>(total, 1));
  for (ClipPool& pool : pools) {
    while (pool.missing(step) > 0) {
      throw_if_interrupted();
      pool.make_one(step);
      progress.update(++done);
    }
  }
  progress.end();
}

}  // namespace fovea::pipelines
