#pragma once

#include "kernels/attention/chosen_blocks.h"

// How a warp chooses blocks of a row of scores.

namespace fovea::kernels::choosing {

constexpr unsigned kAll = 0xffffffff;

/// The score of a key, but for the sign of 0.
__device__ inline float score_of(uint32_t key) {
  return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

/// The scores of a row: keys of kOwn of each lane stay in registers, or with 0 are read anew each
/// time. No score has key 0.
template <int kOwn>
struct RowOfScores {
  const float* scores;
  int blocks, lane;
  uint32_t own[kOwn > 0 ? kOwn : 1];

  __device__ RowOfScores(const float* row, int count, int own_lane)
      : scores(row), blocks(count), lane(own_lane) {
#pragma unroll
    for (int i = 0; i < kOwn; ++i) own[i] = 32 * i + lane < blocks ? key_of(row[32 * i + lane]) : 0;
  }

  /// Calls f(key) for each of this lane, and for some more with 0.
  template <typename F>
  __device__ void each(F f) const {
    if constexpr (kOwn > 0) {
#pragma unroll
      for (int i = 0; i < kOwn; ++i) f(own[i]);
    } else {
      for (int i = lane; i < blocks; i += 32) f(key_of(scores[i]));
    }
  }

  /// Of all lanes, the same in each of them.
  __device__ Taken taken_from(uint32_t key, bool sums) const {
    Taken out;
    key = max(key, 1u);
    each([&](uint32_t one) {
      out.count += one >= key;
      if (sums && one >= key) out.mass += score_of(one);
    });
    out.count = __reduce_add_sync(kAll, out.count);
    if (!sums) return out;
#pragma unroll
    for (int step = 16; step > 0; step /= 2) out.mass += __shfl_xor_sync(kAll, out.mass, step);
    return out;
  }
};

/// Chooses of one row; all lanes of a warp take part. Of args only what is wanted counts.
template <int kOwn>
__device__ void choose_of_row(const SelectBlocksArgs& args, const float* row, bool* chosen) {
  const int lane = threadIdx.x % 32;
  const bool sums = args.sums;
  const RowOfScores<kOwn> scores(row, args.blocks, lane);
  uint32_t last = 0;
  int32_t left = args.blocks;
  if (!is_covered(args, scores.taken_from(0, sums))) {
    for (int bit = 31; bit >= 0; --bit) {
      const uint32_t next = last | 1u << bit;
      if (!is_covered(args, scores.taken_from(next, sums))) last = next;
    }
    Taken above;
    if (last != 0xffffffffu) above = scores.taken_from(last + 1, sums);
    const int32_t upto = scores.taken_from(last, false).count;
    left = chosen_of_equals(args, above, score_of(last), upto - above.count);
  }
  for (int first = 0; first < args.blocks; first += 32) {
    const int at = first + lane;
    const float score = at < args.blocks ? scores.scores[at] : 0;
    const uint32_t key = key_of(score);
    const bool is_equal = at < args.blocks && key == last;
    const unsigned equals = __ballot_sync(kAll, is_equal);
    const int before = __popc(equals & ((1u << lane) - 1));
    const bool is_in = key > last || (is_equal && before < left);
    if (at < args.blocks) chosen[at] = is_in && (args.takes_lowest || !isinf(score) || score > 0);
    left -= __popc(equals);
  }
}

}  // namespace fovea::kernels::choosing
