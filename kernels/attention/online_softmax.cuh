#pragma once

#include <cstdint>

#include "kernels/common/ptx.cuh"

namespace fovea::kernels {

/// The softmax of a thread's two rows of what fragment.cuh describes, of which it has every fourth
/// pair of columns. Step by step (Milakov and Gimelshein 2018, arXiv:1805.02867).
struct OnlineSoftmax {
  float largest[2] = {-INFINITY, -INFINITY};  // logits, before the scale
  float sum[2] = {0, 0};                      // of this thread's weights

  /// Logits become weights relative to the new largest one. What so far was summed up is to be
  /// multiplied by `keep`.
  template <int kCount>
  __device__ void step(float scale_log2, float (&s)[kCount], float (&keep)[2]) {
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      float top = largest[row];
#pragma unroll
      for (int i = 2 * row; i < kCount; i += 4) top = fmaxf(top, fmaxf(s[i], s[i + 1]));
      top = fmaxf(top, __shfl_xor_sync(0xffffffff, top, 1));
      top = fmaxf(top, __shfl_xor_sync(0xffffffff, top, 2));
      // A row of -inf alone has weights 0, not NaN.
      const float now = top == -INFINITY ? 0 : __fmul_rn(top, scale_log2);
      // Rounded as above, not fused: 1 where the largest logit stayed, so that callers see it.
      keep[row] = ptx::exp2_approx(__fmul_rn(largest[row], scale_log2) - now);
      largest[row] = top;
      float total = 0;
#pragma unroll
      for (int i = 2 * row; i < kCount; i += 4) {
        s[i] = ptx::exp2_approx(fmaf(s[i], scale_log2, -now));
        s[i + 1] = ptx::exp2_approx(fmaf(s[i + 1], scale_log2, -now));
        total += s[i] + s[i + 1];
      }
      sum[row] = fmaf(sum[row], keep[row], total);
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
