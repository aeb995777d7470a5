// Backward attention on compute capability 8.0 and newer against fp64 on the CPU.
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "kernels/attention/block_sparse_backward_cuda.h"
#include "tests/kernels/attention_backward_cases.h"

namespace fovea::kernels {
namespace {

using namespace attention_test;

class Sm80Backward : public Sm80Test {};

TEST_F(Sm80Backward, DenseOfAnyLength) { gradients_of_any_length(block_sparse_backward_sm80); }
TEST_F(Sm80Backward, HeadsItemsAndLayouts) {
  gradients_of_heads_and_layouts(block_sparse_backward_sm80);
}
TEST_F(Sm80Backward, MoreTilesThanBlocks) {
  gradients_of_more_tiles_than_blocks(block_sparse_backward_sm80);
}
TEST_F(Sm80Backward, BlocksOfManySizes) {
  gradients_of_blocks_of_many_sizes(block_sparse_backward_sm80);
}
TEST_F(Sm80Backward, MasksAndMoreKeys) {
  gradients_of_masks_and_more_keys(block_sparse_backward_sm80);
}
TEST_F(Sm80Backward, BiasesOfKeys) { gradients_with_biases_of_keys(block_sparse_backward_sm80); }
TEST_F(Sm80Backward, OnlyWhatIsWanted) {
  only_gradients_that_are_wanted(block_sparse_backward_sm80);
}
TEST_F(Sm80Backward, RepeatsBitForBit) { gradients_repeat_bit_for_bit(block_sparse_backward_sm80); }

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
               "takes more keys and a bias of keys with lists");
}

}  // namespace
}  // namespace fovea::kernels
