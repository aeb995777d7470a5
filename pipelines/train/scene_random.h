#pragma once

#include <cstddef>
#include <cstdint>

namespace fovea::pipelines {

/// Random numbers of one clip: the same everywhere for the same (seed, index), without state
/// between clips.
///
/// source  SplitMix64: Steele, Lea, Flood, Fast splittable pseudorandom number generators, OOPSLA
///         2014, figure 16; constants of the mixer by Stafford (variant 13)
class SceneRandom {
 public:
  SceneRandom(uint64_t seed, int64_t index)
      : state_(mix(mix(seed + kStep) ^ static_cast<uint64_t>(index))) {}

  /// From 0 to below 1, a multiple of 2^-53.
  double unit() { return static_cast<double>(next() >> 11) * 0x1p-53; }
  double between(double low, double high) { return low + (high - low) * unit(); }
  bool chance(double probability) { return unit() < probability; }
  /// 0 to count - 1.
  size_t below(size_t count) { return static_cast<size_t>(unit() * static_cast<double>(count)); }
  /// One element of a container that is not empty.
  template <typename List>
  const auto& of(const List& list) {
    return list[below(list.size())];
  }

 private:
  static constexpr uint64_t kStep = 0x9e3779b97f4a7c15;

  static uint64_t mix(uint64_t x) {
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
    x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
    return x ^ (x >> 31);
  }
  uint64_t next() { return mix(state_ += kStep); }

  uint64_t state_;
};

}  // namespace fovea::pipelines
