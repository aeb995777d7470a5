#pragma once

// Softmax weights in 8-bit numbers, for the *_cpu.cpp files of this folder.

#include <cmath>
#include <cstring>

#include "kernels/attention/block_sparse.h"
#include "kernels/attention/steps_cpu.h"
#include "kernels/attention/tile_cpu.h"

namespace fovea::kernels::FOVEA_ISA {
namespace {

/// How far numbers of 4 significant bits around x >= 0 are apart: 2^e / 8 from 2^e on.
inline Float step_at(const Float& x) {
  Word bits;
  std::memcpy(&bits, &x, sizeof(bits));
  bits &= 0x7f800000u;
  Float power;
  std::memcpy(&power, &bits, sizeof(power));
  return power * 0.125f;
}

/// The nearest multiple of a power of 2, halves to even.
inline Float to_steps(const Float& x, const Float& step) {
  const Float rounder = step * 12582912.0f;  // 1.5 * 2^23
  return (x + rounder) - rounder;
}

struct Int8Weights {
  static constexpr float kMost = 127;
  static Float nearest(const Float& x) { return to_steps(x, 1.0f - Float{}); }
};

struct E4m3Weights {
  static constexpr float kMost = 448;
  static Float nearest(const Float& x) {
    return to_steps(x, max_or_second(step_at(x), 0.001953125f - Float{}));  // 2^-9 below 2^-6
  }
};

/// Weights in 4 significant bits, which are e4m3's whatever power of 2 they are relative to; the
/// smallest ones have more than e4m3 has for them. Rows are relative to a power of 2: it may change
/// from step to step.
struct FourBitStorage : KeepFloats {
  static Float weight(const Float& p) { return to_steps(p, step_at(p)); }
  static float origin(float row_max) { return std::ceil(row_max); }
};

/// Calls f with the format as a type.
template <typename F>
inline void with_weights(WeightFormat format, F f) {
  if (format == WeightFormat::int8) {
    f(Int8Weights());
  } else {
    f(E4m3Weights());
  }
}

/// The factor of a unit, and what it is divided by.
struct WeightScale {
  float scale = 1, inverse = 1;
};

/// The factors of all slots of a step.
template <typename Format>
inline void weight_scales(const QueryTile& tile, const Step& step, WeightScale* to) {
  const QuantizedWeights& weights = tile.args.weights;
  const float* largest = weights.largest + tile.batch * weights.largest_batch_stride +
                         tile.head * weights.largest_head_stride;
  for (int64_t s = 0; s < step.num_slots; ++s) {
    const float a = weights.per_entry ? largest[step.slots[s].entry] : 1.0f;
    to[s] = a == 0.0f ? WeightScale() : WeightScale{a / Format::kMost, Format::kMost / a};
  }
}

template <typename Format>
inline Float quantized(const Float& p, const WeightScale& of) {
  const Float x = p * of.inverse;
  return Format::nearest(x > Format::kMost ? Format::kMost - Float{} : x) * of.scale;
}

/// What a row's weights are taken from: its largest logit, or 0 where it sees no key.
inline float weight_origin(float row_max) { return row_max == -kInfinity ? 0.0f : row_max; }

}  // namespace
}  // namespace fovea::kernels::FOVEA_ISA
