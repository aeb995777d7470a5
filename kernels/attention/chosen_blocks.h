#pragma once

#include <cstdint>

#include "kernels/attention/select_blocks.h"
#include "kernels/common/host_device.h"

// What select_blocks.cpp and select_blocks.cu share. The chosen blocks of a row are those whose key
// is above that of a last one, and some of those that have its key: the last key is the largest one
// of which not all blocks from it on are chosen. It is found bit by bit.

namespace fovea::kernels {

/// A score as an integer of the same order: NaN above all, -0 as 0.
FOVEA_HD inline uint32_t key_of(float score) {
  if (score != score) return 0xffffffffu;
  const float same = score + 0.0f;
#ifdef __CUDA_ARCH__
  const uint32_t bits = __float_as_uint(same);
#else
  const uint32_t bits = __builtin_bit_cast(uint32_t, same);
#endif
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

/// Blocks of a row from a key on: how many they are, and the sum of their scores.
struct Taken {
  int32_t count = 0;
  double mass = 0;
};

/// Whether all of them are chosen, also the one that comes last.
FOVEA_HD inline bool is_covered(const SelectBlocksArgs& args, const Taken& taken) {
  if (taken.count <= args.least) return true;
  if (!args.sums) return false;
  return args.takes_crossing ? taken.mass < args.mass : taken.mass <= args.mass;
}

/// Whether of blocks of one score, which come behind those that are `taken`, number i is chosen.
FOVEA_HD inline bool is_chosen(const SelectBlocksArgs& args, const Taken& taken, double score,
                               int32_t i) {
  if (taken.count + i < args.least) return true;
  if (!args.sums) return false;
  const double before = i == 0 ? taken.mass : taken.mass + i * score;
  return args.takes_crossing ? before < args.mass : before + score <= args.mass;
}

/// How many of `count` of them are: the first ones.
FOVEA_HD inline int32_t chosen_of_equals(const SelectBlocksArgs& args, const Taken& taken,
                                         double score, int32_t count) {
  int32_t low = 0, high = count;  // low are, more than high are not
  while (low < high) {
    const int32_t middle = low + (high - low) / 2;
    if (is_chosen(args, taken, score, middle)) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

}  // namespace fovea::kernels
