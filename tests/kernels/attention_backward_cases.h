#pragma once

#include <utility>
#include <vector>

#include "tests/kernels/attention_backward_problem.h"
#include "tests/kernels/gpu_test.h"

// What every backward kernel of GPUs is tested with.

namespace fovea::kernels::attention_test {

using BackwardKernel = Status (*)(const CudaAttentionBackwardArgs& args, CudaTarget target);
using Sizes = std::vector<std::pair<int64_t, int64_t>>;

inline void check_named(const AttentionProblem& p, BackwardKernel run, int seed) {
  SCOPED_TRACE(name_of(p));
  check_backward(p, run, seed);
}

inline void gradients_of_any_length(BackwardKernel run) {
  const Sizes sizes = {{1, 1},    {64, 64},  {128, 128}, {65, 17},   {17, 65},  {192, 80},
                       {191, 97}, {193, 96}, {129, 257}, {300, 500}, {5, 1000}, {1000, 5}};
  int seed = 0;
  for (const int64_t dim : {64, 128}) {
    for (const DType dtype : {DType::bf16, DType::f16}) {
      for (const auto& [q_len, kv_len] : sizes) {
        check_named({.q_len = q_len, .kv_len = kv_len, .dim = dim, .dtype = dtype}, run, ++seed);
      }
    }
  }
}

inline void gradients_of_heads_and_layouts(BackwardKernel run) {
  AttentionProblem apart{.batch = 2, .heads = 3, .kv_heads = 3, .q_len = 200, .kv_len = 150};
  AttentionProblem shared{.batch = 2, .heads = 6, .kv_heads = 2, .q_len = 90, .kv_len = 133};
  shared.rows_first = true;
  for (const int64_t dim : {64, 128}) {
    apart.dim = shared.dim = dim;
    check_named(apart, run, 1);
    check_named(shared, run, 2);
  }
}

inline void gradients_of_more_tiles_than_blocks(BackwardKernel run) {
  AttentionProblem p{.batch = 3, .heads = on_gpu(25, 2), .kv_heads = on_gpu(25, 2)};
  p.q_len = 400, p.kv_len = 40, p.dim = 128;
  check_named(p, run, 3);
  p.q_len = 40, p.kv_len = 400, p.dim = 64;
  check_named(p, run, 4);
}

inline const Sizes kBlockSizes = {{128, 128}, {64, 64},   {128, 64}, {64, 128}, {384, 384},
                                  {384, 192}, {192, 192}, {100, 30}, {300, 90}, {0, 0}};

/// Blocks of a listed problem; with those of any size each head has its own keys.
inline void set_blocks(AttentionProblem& p, std::pair<int64_t, int64_t> blocks) {
  p.heads = 2, p.kv_heads = blocks.second == 0 ? 2 : 1;
  p.block_q = blocks.first, p.block_kv = blocks.second;
}

inline void gradients_of_blocks_of_many_sizes(BackwardKernel run) {
  int seed = 0;
  for (const int64_t dim : {64, 128}) {
    for (const auto& blocks : kBlockSizes) {
      for (const double density : {0.0, 0.3, 1.0}) {
        AttentionProblem p{.q_len = on_gpu(410, 300), .kv_len = on_gpu(520, 400), .dim = dim};
        set_blocks(p, blocks);
        p.density = density, p.rows_first = seed % 2 == 0;
        p.dtype = seed % 3 == 0 ? DType::f16 : DType::bf16;
        check_named(p, run, ++seed);
      }
    }
  }
}

inline void gradients_of_masks_and_more_keys(BackwardKernel run) {
  int seed = 0;
  for (const int64_t dim : {64, 128}) {
    for (const auto& blocks : kBlockSizes) {
      for (const bool masks : {false, true}) {
        AttentionProblem p{.batch = 2, .q_len = 210, .kv_len = 300, .dim = dim, .density = 0.6};
        set_blocks(p, blocks);
        p.masks = masks;
        p.more_keys = masks ? seed % 2 * 130 : 130, p.more_gap = seed % 3 * 12;
        check_named(p, run, ++seed);
      }
    }
  }
}

inline void gradients_with_biases_of_keys(BackwardKernel run) {
  int seed = 0;
  for (const int64_t dim : {64, 128}) {
    for (const auto& blocks : Sizes{{128, 128}, {128, 64}, {64, 64}, {0, 0}}) {
      for (const int64_t begin : {0, 133, 330}) {  // the last among the more keys
        AttentionProblem p{.batch = 2, .q_len = 150, .kv_len = 300, .dim = dim, .density = 0.6};
        set_blocks(p, blocks);
        p.more_keys = begin == 133 ? 0 : 130, p.more_gap = 12;
        p.masks = begin == 0, p.bias_begin = begin;
        SCOPED_TRACE(testing::Message() << "bias from " << begin);
        check_named(p, run, ++seed);
      }
    }
  }
}

/// dense_is_joint  all gradients of dense attention come of one kernel, and sums are in another
///                 order where some of them alone are wanted
inline void only_gradients_that_are_wanted(BackwardKernel run, bool dense_is_joint = false) {
  for (const bool listed : {false, true}) {
    AttentionProblem p{.q_len = 100, .kv_len = 70};
    if (listed) p.density = 1, p.block_q = p.block_kv = 64;
    const BackwardCase all(p, true, 1), of_q(p, true, 1), of_k(p, true, 1);
    CudaAttentionBackwardArgs without_k = of_q.args(), without_q = of_k.args();
    without_k.grad_k.data = without_k.grad_v.data = nullptr;
    without_q.grad_q.data = nullptr;
    for (const auto& args : {all.args(), without_k, without_q}) ASSERT_TRUE(run(args, {}).ok());
    all.check();
    of_q.check_queries();
    of_k.check_keys();
    const std::vector<uint16_t> want = all.read(), queries = of_q.read(), keys = of_k.read();
    const int64_t border = 101 * p.dim;
    for (int64_t i = 0; i < static_cast<int64_t>(want.size()); ++i) {
      ASSERT_EQ((i < border ? keys : queries)[i], 0x7fff) << i;
      if (listed || !dense_is_joint) {
        ASSERT_EQ((i < border ? queries : keys)[i], want[i]) << i;
      }
    }
  }
}

inline void gradients_repeat_bit_for_bit(BackwardKernel run) {
  for (const bool listed : {false, true}) {
    AttentionProblem p{.heads = 4, .kv_heads = 2, .q_len = 500, .kv_len = on_gpu(700, 300)};
    if (listed) p.density = 0.5, p.block_q = p.block_kv = 64;
    const BackwardCase one(p, true, 1);
    expect_same_every_time([&] {
      EXPECT_TRUE(run(one.args(), {}).ok());
      return one.read();
    });
  }
}

}  // namespace fovea::kernels::attention_test
