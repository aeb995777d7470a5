#pragma once

#include "kernels/ops/rope.h"
#include "kernels/ops/row.cuh"

namespace fovea::kernels {

/// Rotates the pairs of one pack at `column` of row `row`; a pack never straddles two heads.
template <typename W>
__device__ inline void rotate_pack(const RotaryTables& rope, int64_t position, int column,
                                   float (&value)[W::kPack]) {
  const int head_dim = static_cast<int>(rope.head_dim);
  const int64_t angle = position * (head_dim / 2) + column % head_dim / 2;
  float r_cos[W::kPack / 2], r_sin[W::kPack / 2];
  load<W::kAligned>(rope.cos + angle, r_cos);
  load<W::kAligned>(rope.sin + angle, r_sin);
#pragma unroll
  for (int j = 0; j < W::kPack; j += 2) {
    const float x1 = value[j], x2 = value[j + 1], c = r_cos[j / 2], s = r_sin[j / 2];
    value[j] = __fsub_rn(__fmul_rn(x1, c), __fmul_rn(x2, s));
    value[j + 1] = __fadd_rn(__fmul_rn(x1, s), __fmul_rn(x2, c));
  }
}

/// Whether packs of `bytes`-sized elements stay inside a head and find aligned angles.
inline bool vectorizable(const RotaryTables& rope, int64_t bytes) {
  return rope.head_dim * bytes % 16 == 0 && aligned16(rope.cos) && aligned16(rope.sin);
}

}  // namespace fovea::kernels
