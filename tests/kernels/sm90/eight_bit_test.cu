// Forward attention in 8-bit numbers on compute capability 9.0 against its emulation in fp64.
#include <string>
#include <vector>

#include "tests/kernels/gpu_test.h"
#include "tests/kernels/sm90/eight_bit_case.h"

namespace fovea::kernels {
namespace {

constexpr ByteFormat kFormats[] = {ByteFormat::e4m3, ByteFormat::int8};

std::string name_of(const EightBitProblem& p) {
  return std::string(p.format == ByteFormat::e4m3 ? "e4m3" : "int8") +
         (p.scale_by_key ? ", scales of keys, " : ", ") + std::to_string(p.shape.q_len) + " x " +
         std::to_string(p.shape.kv_len);
}

void check(const EightBitProblem& p, int seed) {
  SCOPED_TRACE(name_of(p));
  const EightBitCase one(p, seed);
  const Status status = eight_bit_attention_sm90(one.args(), one.operands(), {});
  ASSERT_TRUE(status.ok()) << status.message;
  one.check();
}

class Sm90EightBit : public Sm90Test {};

// Weights of 0 and 448 alone: every row is one row of v, exactly but for its last rounding.
TEST_F(Sm90EightBit, FindsOneKey) {
  for (const ByteFormat format : kFormats) {
    EightBitProblem p{.shape = {.q_len = 200, .kv_len = 300}, .format = format};
    p.shape.sm_scale = 50;  // logits are thousands apart
    const EightBitCase one(p, 1);
    ASSERT_TRUE(eight_bit_attention_sm90(one.args(), one.operands(), {}).ok());
    one.check();
  }
}

TEST_F(Sm90EightBit, DenseOfAnyLength) {
  int seed = 0;
  for (const ByteFormat format : kFormats) {
    for (const bool scale_by_key : {false, true}) {
      for (const DType dtype : {DType::bf16, DType::f16}) {
        for (const auto& [q_len, kv_len] : std::vector<std::pair<int64_t, int64_t>>{{1, 1},
                                                                                    {64, 16},
                                                                                    {128, 128},
                                                                                    {65, 17},
                                                                                    {17, 127},
                                                                                    {129, 129},
                                                                                    {300, 500},
                                                                                    {5, 2000}}) {
          check({.shape = {.q_len = q_len, .kv_len = kv_len, .dtype = dtype},
                 .format = format,
                 .scale_by_key = scale_by_key},
                ++seed);
        }
      }
    }
  }
}

TEST_F(Sm90EightBit, HeadsItemsAndMore) {
  for (const ByteFormat format : kFormats) {
    check({.shape = {.batch = 2, .heads = 4, .kv_heads = 2, .q_len = 200, .kv_len = 333},
           .format = format,
           .lse_more = true},
          1);
    check({.shape = {.batch = 3, .heads = 25, .kv_heads = 25, .q_len = 700, .kv_len = 90},
           .format = format},
          2);
  }
}

TEST_F(Sm90EightBit, BlocksOfManySizes) {
  int seed = 0;
  for (const ByteFormat format : kFormats) {
    for (const auto& [block_q, block_kv] : std::vector<std::pair<int64_t, int64_t>>{
             {128, 128}, {64, 64}, {384, 384}, {192, 192}, {100, 48}, {0, 0}}) {
      for (const double density : {0.0, 0.3, 1.0}) {
        check({.shape = {.batch = 2,
                         .heads = 2,
                         .kv_heads = block_kv == 0 ? 2 : 1,
                         .q_len = 410,
                         .kv_len = 520,
                         .density = density,
                         .block_q = block_q,
                         .block_kv = block_kv,
                         .cut_unit = 16},
               .format = format,
               .scale_by_key = seed % 2 == 1},
              ++seed);
      }
    }
  }
}

TEST_F(Sm90EightBit, MasksBiasesAndOrders) {
  int seed = 0;
  for (const ByteFormat format : kFormats) {
    for (const int64_t block : {64, 128, 0}) {
      EightBitProblem p{.shape = {.batch = 2,
                                  .heads = 4,
                                  .kv_heads = 2,
                                  .q_len = 400,
                                  .kv_len = 500,
                                  .density = 0.5,
                                  .block_q = block,
                                  .block_kv = block,
                                  .cut_unit = 16},
                        .format = format};
      EightBitProblem masked = p, biased = p, ordered = p, all = p;
      masked.shape.masks = true;
      biased.shape.bias_begin = 100;
      ordered.shape.out_order = true, ordered.lse_more = true;
      all.shape.masks = all.shape.out_order = true, all.shape.bias_begin = 0;
      all.shape.dtype = DType::f16, all.scale_by_key = true;
      for (const EightBitProblem& one : {masked, biased, ordered, all}) check(one, ++seed);
    }
  }
}

// Of sums of products of one sign, which e4m3 cuts off by parts of them.
constexpr double kSmall = 0.004;

TEST_F(Sm90EightBit, LogitsBelowZero) {
  int seed = 0;
  for (const ByteFormat format : kFormats) {
    for (const double density : {0.0, 0.5}) {
      EightBitProblem p{.shape = {.q_len = 200, .kv_len = 400}, .format = format};
      if (density > 0) p.shape.density = density, p.shape.block_q = p.shape.block_kv = 64;
      p.shape.masks = density > 0;
      p.negative = true, p.shape.sm_scale = kSmall;
      check(p, ++seed);
    }
  }
}

TEST_F(Sm90EightBit, RepeatsBitForBit) {
  const int64_t len = on_gpu(1500, 500);
  for (const bool listed : {false, true}) {
    EightBitProblem p{.shape = {.heads = 4, .kv_heads = 4, .q_len = len, .kv_len = len}};
    if (listed) p.shape.density = 0.5;
    const EightBitCase one(p, 1);
    expect_same_every_time([&] {
      EXPECT_TRUE(eight_bit_attention_sm90(one.args(), one.operands(), {}).ok());
      return one.out();
    });
  }
}

TEST(Sm90EightBitRefusals, SayWhy) {
  CudaAttentionArgs args{
      .batch = 1, .heads = 1, .kv_heads = 1, .q_len = 1, .kv_len = 1, .dim = 128};
  args.out.dtype = DType::bf16;
  const auto reason = [&](auto change) {
    CudaAttentionArgs other = args;
    change(other);
    const Status status = eight_bit_attention_sm90(other, {}, {});
    EXPECT_EQ(status.code, StatusCode::unsupported);
    return std::string(status.message);
  };
  const float number = 0;
  EXPECT_EQ(reason([](CudaAttentionArgs& a) { a.dim = 64; }), "takes 128 channels a head");
  EXPECT_EQ(reason([](CudaAttentionArgs& a) { a.out.dtype = DType::f32; }), "gives bf16 and fp16");
  EXPECT_EQ(reason([](CudaAttentionArgs& a) { a.sm_scale = 0; }), "takes scales above 0");
  EXPECT_EQ(reason([](CudaAttentionArgs& a) { a.kv_len = 0; }), "takes at least one key");
  EXPECT_EQ(reason([&](CudaAttentionArgs& a) { a.more.k.data = &number; }), "takes no more keys");
  EXPECT_EQ(reason([&](CudaAttentionArgs& a) { a.key_bias.data = &number; }),
            "takes a bias of keys for lists only");
}

}  // namespace
}  // namespace fovea::kernels
