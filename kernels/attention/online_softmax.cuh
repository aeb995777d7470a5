#pragma once

#include <cstdint>

#include "kernels/common/ptx.cuh"

namespace fovea::kernels {

/// A logit, before the scale, with the bias of its key. -inf hides the key, also where the logit is
/// not a number.
__device__ inline float biased(float logit, float bias, float inverse_scale) {
  // +inf, or -inf where the bias is that; a comparison would cost registers.
  const float most = (bias + 3e38f) * 2;
  return fminf(fmaf(bias, inverse_scale, logit), most);
}

/// The largest logits of two rows that four threads have, or `least`.
template <int kCount>
__device__ inline void find_largest(const float (&s)[kCount], const float (&least)[2],
                                    float (&now)[2]) {
  float top[4] = {s[0], s[1], s[2], s[3]};  // one chain alone is slow
#pragma unroll
  for (int i = 4; i < kCount; ++i) top[i % 4] = fmaxf(top[i % 4], s[i]);
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    now[row] = fmaxf(least[row], fmaxf(top[2 * row], top[2 * row + 1]));
  }
#pragma unroll
  for (int lanes = 1; lanes <= 2; ++lanes) {
    const float others[2] = {__shfl_xor_sync(0xffffffff, now[0], lanes),
                             __shfl_xor_sync(0xffffffff, now[1], lanes)};
    now[0] = fmaxf(now[0], others[0]), now[1] = fmaxf(now[1], others[1]);
  }
}

/// The largest of a thread's logits of each row, by their bits as integers, of which there are
/// instructions for three at a time. Where all are below 0 it is one of them, but any.
struct LargestBits {
  float of_row[2];

  template <int kCount>
  __device__ explicit LargestBits(const float (&s)[kCount]) {
    int top[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) top[i] = __float_as_int(s[i]);
#pragma unroll
    for (int i = 4; i < kCount; i += 8) {
#pragma unroll
      for (int j = i; j < i + 4; ++j) {
        const float other = s[j + 4 < kCount ? j + 4 : j];
        top[j % 4] = max(top[j % 4], max(__float_as_int(s[j]), __float_as_int(other)));
      }
    }
    of_row[0] = __int_as_float(max(top[0], top[1]));
    of_row[1] = __int_as_float(max(top[2], top[3]));
  }
};

/// The softmax of a thread's two rows of what fragment.cuh describes, of which it has every fourth
/// pair of columns. Step by step (Milakov and Gimelshein 2018, arXiv:1805.02867).
struct OnlineSoftmax {
  float largest[2] = {-INFINITY, -INFINITY};  // logits so far, before the scale
  float sum[2] = {0, 0};                      // of this thread's weights

  /// Logits become weights relative to the new largest one. What so far was summed up is to be
  /// multiplied by `keep`.
  template <int kCount>
  __device__ void step(float scale_log2, float (&s)[kCount], float (&keep)[2]) {
    float now[2];
    find_largest(s, largest, now);
    float shift[2];
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      // A row of -inf alone has weights 0, not NaN. Both products are rounded alike, so that an old
      // maximum that stays is kept times 1.
      shift[row] = now[row] == -INFINITY ? 0 : __fmul_rn(now[row], scale_log2);
      keep[row] = ptx::exp2_approx(__fmul_rn(largest[row], scale_log2) - shift[row]);
      largest[row] = now[row];
    }
    float total[4] = {0, 0, 0, 0};  // four chains
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      s[i] = ptx::exp2_approx(fmaf(s[i], scale_log2, -shift[i / 2 % 2]));
      total[i % 4] += s[i];
    }
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      sum[row] = fmaf(sum[row], keep[row], total[2 * row] + total[2 * row + 1]);
    }
  }

  /// The sums of all four threads of a row.
  __device__ void join() {
#pragma unroll
    for (float& x : sum) {
      x += __shfl_xor_sync(0xffffffff, x, 1);
      x += __shfl_xor_sync(0xffffffff, x, 2);
    }
  }
  /// Natural logarithm of the softmax' denominator; after join().
  __device__ float lse(float scale_log2, int row) const {
    constexpr float kLn2 = 0.693147180559945f;
    return sum[row] == 0 ? -INFINITY : fmaf(largest[row], scale_log2, log2f(sum[row])) * kLn2;
  }
};

}  // namespace fovea::kernels
