#pragma once

#include <functional>
#include <utility>
#include <vector>

#include "tests/kernels/attention_problem.h"
#include "tests/kernels/gpu_test.h"

// What forward kernels of GPUs are tested with, each by its own `check`.

namespace fovea::kernels::attention_test {

using Check = std::function<void(const AttentionProblem& p, int seed)>;
using Sizes = std::vector<std::pair<int64_t, int64_t>>;

inline void dense_of_lengths(const std::vector<int64_t>& dims, const Sizes& sizes,
                             const Check& check) {
  int seed = 0;
  for (const int64_t dim : dims) {
    for (const DType dtype : {DType::bf16, DType::f16}) {
      for (const auto& [q_len, kv_len] : sizes) {
        check({.q_len = q_len, .kv_len = kv_len, .dim = dim, .dtype = dtype}, ++seed);
      }
    }
  }
}

inline void heads_items_and_layouts(const std::vector<int64_t>& dims, const Check& check) {
  AttentionProblem apart{.batch = 2, .heads = 3, .kv_heads = 3, .q_len = 200, .kv_len = 150};
  AttentionProblem shared{.batch = 2, .heads = 4, .kv_heads = 2, .q_len = 90, .kv_len = 333};
  shared.rows_first = true;
  for (const int64_t dim : dims) {
    apart.dim = shared.dim = dim;
    check(apart, 1);
    check(shared, 2);
  }
}

inline void more_tiles_than_blocks(const Check& check) {
  AttentionProblem p{.batch = 3, .heads = on_gpu(25, 2), .kv_heads = on_gpu(25, 2)};
  p.q_len = 700, p.kv_len = 90;
  check(p, 3);
  p.dim = 64;
  check(p, 4);
}

inline void blocks_of_many_sizes(const std::vector<int64_t>& dims, const Check& check) {
  const Sizes sizes = {{128, 128}, {64, 64},   {128, 64}, {64, 128},
                       {384, 384}, {192, 192}, {100, 30}, {0, 0}};
  int seed = 0;
  for (const int64_t dim : dims) {
    for (const auto& [block_q, block_kv] : sizes) {
      for (const double density : {0.0, 0.3, 0.6, 1.0}) {
        AttentionProblem p{.batch = 2, .heads = 2, .kv_heads = 1, .dim = dim, .density = density};
        p.q_len = on_gpu(700, 300), p.kv_len = on_gpu(1000, 400);
        p.block_q = block_q, p.block_kv = block_kv;
        check(p, ++seed);
      }
    }
  }
}

}  // namespace fovea::kernels::attention_test
