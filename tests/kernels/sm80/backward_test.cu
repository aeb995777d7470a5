// Backward attention on compute capability 8.0 and newer against fp64 on the CPU.
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "kernels/attention/block_sparse_backward_cuda.h"
#include "tests/kernels/attention_backward_problem.h"
#include "tests/kernels/gpu_test.h"

namespace fovea::kernels {
namespace {

using namespace attention_test;

void check(const Problem& p, int seed) {
  SCOPED_TRACE(name_of(p));
  check_backward(p, block_sparse_backward_sm80, seed);
}

using Sizes = std::vector<std::pair<int64_t, int64_t>>;
const Sizes kBlocks = {{128, 128}, {64, 64}, {128, 64}, {64, 128}, {384, 192}, {100, 30}, {0, 0}};

class Sm80Backward : public Sm80Test {};

TEST_F(Sm80Backward, DenseOfAnyLength) {
  int seed = 0;
  for (const int64_t dim : {64, 128}) {
    for (const DType dtype : {DType::bf16, DType::f16}) {
      for (const auto& [q_len, kv_len] :
           Sizes{{1, 1}, {64, 64}, {128, 128}, {65, 17}, {17, 65}, {300, 500}, {5, 1000}}) {
        check({.q_len = q_len, .kv_len = kv_len, .dim = dim, .dtype = dtype}, ++seed);
      }
    }
  }
}

TEST_F(Sm80Backward, HeadsItemsAndLayouts) {
  for (const int64_t dim : {64, 128}) {
    check({.batch = 2, .heads = 3, .kv_heads = 3, .q_len = 200, .kv_len = 150, .dim = dim}, 1);
    check({.batch = 2,
           .heads = 6,
           .kv_heads = 2,
           .q_len = 90,
           .kv_len = 133,
           .dim = dim,
           .rows_first = true},
          2);
  }
}

TEST_F(Sm80Backward, BlocksOfManySizes) {
  int seed = 0;
  for (const int64_t dim : {64, 128}) {
    for (const auto& [block_q, block_kv] : kBlocks) {
      for (const double density : {0.0, 0.3, 1.0}) {
        check({.heads = 2,
               .kv_heads = block_kv == 0 ? 2 : 1,
               .q_len = 410,
               .kv_len = 520,
               .dim = dim,
               .dtype = seed % 3 == 0 ? DType::f16 : DType::bf16,
               .rows_first = seed % 2 == 0,
               .density = density,
               .block_q = block_q,
               .block_kv = block_kv},
              ++seed);
      }
    }
  }
}

TEST_F(Sm80Backward, MasksAndMoreKeys) {
  int seed = 0;
  for (const int64_t dim : {64, 128}) {
    for (const auto& [block_q, block_kv] : kBlocks) {
      for (const bool masks : {false, true}) {
        check({.batch = 2,
               .heads = 2,
               .kv_heads = block_kv == 0 ? 2 : 1,
               .q_len = 210,
               .kv_len = 300,
               .dim = dim,
               .density = 0.6,
               .block_q = block_q,
               .block_kv = block_kv,
               .more_keys = masks ? seed % 2 * 130 : 130,
               .more_gap = seed % 3 * 12,
               .masks = masks},
              ++seed);
      }
    }
  }
}

TEST_F(Sm80Backward, OnlyWhatIsWanted) {
  const Problem p{.q_len = 100, .kv_len = 70};
  const BackwardCase all(p, true, 1), of_q(p, true, 1), of_k(p, true, 1);
  CudaAttentionBackwardArgs without_k = of_q.args(), without_q = of_k.args();
  without_k.grad_k.data = without_k.grad_v.data = nullptr;
  without_q.grad_q.data = nullptr;
  for (const auto& args : {all.args(), without_k, without_q}) {
    ASSERT_TRUE(block_sparse_backward_sm80(args, {}).ok());
  }
  all.check();
  const std::vector<uint16_t> want = all.read(), queries = of_q.read(), keys = of_k.read();
  const int64_t border = 101 * p.dim;
  for (int64_t i = 0; i < static_cast<int64_t>(want.size()); ++i) {
    ASSERT_EQ(queries[i], i < border ? want[i] : 0x7fff) << i;
    ASSERT_EQ(keys[i], i < border ? 0x7fff : want[i]) << i;
  }
}

TEST_F(Sm80Backward, RepeatsBitForBit) {
  for (const bool listed : {false, true}) {
    Problem p{.heads = 4, .kv_heads = 2, .q_len = 500, .kv_len = 700};
    if (listed) p.density = 0.5, p.block_q = p.block_kv = 64;
    const BackwardCase one(p, true, 1);
    std::vector<uint16_t> first;
    for (int run = 0; run < on_gpu(50, 3); ++run) {
      ASSERT_TRUE(block_sparse_backward_sm80(one.args(), {}).ok());
      const std::vector<uint16_t> now = one.read();
      if (run == 0) first = now;
      ASSERT_EQ(now, first) << "run " << run;
    }
  }
}

TEST(Sm80BackwardRefusals, SayWhy) {
  float number = 0;
  CudaAttentionBackwardArgs args;
  args.forward.batch = args.forward.heads = args.forward.kv_heads = 1;
  args.forward.q_len = args.forward.kv_len = 1, args.forward.dim = 96;
  EXPECT_STREQ(block_sparse_backward_sm80(args, {}).message, "takes 64 or 128 channels a head");
  args.forward.dim = 128, args.forward.q.dtype = DType::bf16;
  EXPECT_EQ(block_sparse_backward_sm80(args, {}).code, StatusCode::invalid);
  const int8_t integer = 0;
  args.forward.q_int8.data = &integer;
  EXPECT_STREQ(block_sparse_backward_sm80(args, {}).message, "takes no integers");
  args.forward.q_int8 = {}, args.forward.key_bias.data = &number;
  EXPECT_STREQ(block_sparse_backward_sm80(args, {}).message,
               "takes no bias of keys and no order of rows");
}

}  // namespace
}  // namespace fovea::kernels
