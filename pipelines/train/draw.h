#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <numbers>

namespace fovea::pipelines {

/// Random numbers that depend on nothing but their key, such as (seed, purpose, step, item): the
/// same on every machine, for any number of processes, after a restart.
///
/// source  SplitMix64: Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators",
///         OOPSLA 2014, figure 16; constants of the mixer by Stafford (variant 13)
class Draw {
 public:
  Draw(uint64_t seed, std::initializer_list<uint64_t> key) : state_(mix(seed + kStep)) {
    for (const uint64_t word : key) state_ = mix(state_ ^ word);
  }
  Draw(uint64_t seed, int64_t index) : Draw(seed, {static_cast<uint64_t>(index)}) {}

  uint64_t bits() { return mix(state_ += kStep); }
  /// From 0 to below 1, a multiple of 2^-53.
  double unit() { return static_cast<double>(bits() >> 11) * 0x1p-53; }
  double between(double low, double high) { return low + (high - low) * unit(); }
  bool chance(double probability) { return unit() < probability; }
  /// 0 to count - 1.
  size_t below(size_t count) { return static_cast<size_t>(unit() * static_cast<double>(count)); }
  /// One element of a container that is not empty.
  template <typename List>
  const auto& of(const List& list) {
    return list[below(list.size())];
  }
  /// Of the unit normal distribution (Box & Muller, 1958).
  double normal() {
    const double radius = std::sqrt(-2 * std::log(1 - unit()));
    return radius * std::cos(2 * std::numbers::pi * unit());
  }

 private:
  static constexpr uint64_t kStep = 0x9E3779B97F4A7C15u;
  static uint64_t mix(uint64_t x) {
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
  }

  uint64_t state_;
};

/// What a number is drawn for; part of its key.
enum class DrawPurpose : uint64_t { bucket = 1, clip, timestep, caption, noise };

}  // namespace fovea::pipelines
