// Rows as 8-bit integers, number by number, for each instruction set that is there.

#include "kernels/attention/quantize_rows.h"

#include <gtest/gtest.h>

#include "tests/kernels/attention/memory.h"
#include "tests/kernels/attention/problem.h"

namespace fovea::kernels {
namespace {

constexpr int64_t kBatch = 2, kHeads = 3, kLen = 70;

struct Result {
  std::vector<int8_t> out;
  std::vector<float> scale;
};

/// Pieces of random sizes, also 0, of rows in a random order.
class Rows {
 public:
  Rows(DType dtype, int64_t dim)
      : problem({.q_len = kLen,
                 .kv_len = kLen,
                 .dim = dim,
                 .batch = kBatch,
                 .kv_heads = kHeads,
                 .dtype = dtype,
                 .orders = true,
                 .blocks = true,
                 .map_per_head = true,
                 .strided = true},
                7),
        dim_(dim) {
    for (int64_t i = 0; i < kBatch * kHeads * dim; ++i)
      mean.push_back(0.125f * static_cast<float>(i % 11));
  }
  QuantizeRowsArgs args(Result& result) const {
    const BlockSparseArgs from = problem.args();
    QuantizeRowsArgs a;
    a.batch = kBatch, a.heads = kHeads, a.len = kLen, a.dim = dim_;
    a.x = from.k, a.mean = mean.data(), a.order = from.kv_order;
    a.maps = from.lists.maps, a.num_pieces = from.lists.num_kv_blocks;
    a.map_batch_stride = from.lists.map_batch_stride;
    a.map_head_stride = from.lists.map_head_stride;
    a.offsets = from.lists.kv_offsets;
    result.out.assign(kBatch * kHeads * kLen * dim_, 99);
    result.scale.assign(kBatch * kHeads * kLen, -1);
    a.out = result.out.data(), a.scale = result.scale.data();
    return a;
  }
  /// The definition.
  Result expected() const {
    Result result;
    args(result);
    for (int64_t map = 0; map < kBatch * kHeads; ++map) {
      for (int64_t piece = 0; piece < problem.num_kv_blocks; ++piece) {
        const int32_t* at = problem.kv_offsets.data() + map * (problem.num_kv_blocks + 1) + piece;
        float most = 0;
        for (int64_t p = at[0]; p < at[1]; ++p) {
          for (int64_t c = 0; c < dim_; ++c) most = std::max(most, std::abs(value(map, p, c)));
        }
        const float scale = most == 0 ? 1 : most / 127;
        for (int64_t p = at[0]; p < at[1]; ++p) {
          const int64_t row = map * kLen + problem.kv_order[map * kLen + p];
          result.scale[row] = scale;
          for (int64_t c = 0; c < dim_; ++c) {
            result.out[row * dim_ + c] =
                static_cast<int8_t>(std::nearbyint(value(map, p, c) / scale));
          }
        }
      }
    }
    return result;
  }
  float value(int64_t map, int64_t position, int64_t c) const {
    const int64_t row = problem.kv_order[map * kLen + position];
    return problem.k.get(map / kHeads, map % kHeads, row, c) - mean[map * dim_ + c];
  }

  Problem problem;
  std::vector<float> mean;

 private:
  int64_t dim_;
};

TEST(QuantizeRows, NumberByNumber) {
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
    for (const int64_t dim : {1, 8, 21, 64, 100}) {
      const Rows rows(dtype, dim);
      const Result expected = rows.expected();
      for (const Isa isa : isas()) {
        SCOPED_TRACE(testing::Message() << isa_name(isa) << " dim " << dim);
        Result result;
        const Parallel parallel{run_on_threads, nullptr, 3};
        ASSERT_TRUE(quantize_rows_cpu(rows.args(result), parallel, isa).ok());
        ASSERT_EQ(result.out, expected.out);
        ASSERT_EQ(result.scale, expected.scale);
      }
    }
  }
}

TEST(QuantizeRows, EachRowByItselfAndZeros) {
  const float x[3][2] = {{0, 0}, {-2, 1}, {0.5f, 254}};
  int8_t out[6];
  float scale[3];
  QuantizeRowsArgs args;
  args.batch = args.heads = 1, args.len = 3, args.dim = 2;
  args.x = {x, DType::f32, 0, 0, 2}, args.out = out, args.scale = scale;
  for (const Isa isa : isas()) {
    ASSERT_TRUE(quantize_rows_cpu(args, {}, isa).ok());
    EXPECT_EQ(std::vector<float>(scale, scale + 3), (std::vector<float>{1, 2.0f / 127, 2}));
    // 63.5 and 0.25: halves go to the even one.
    EXPECT_EQ(std::vector<int8_t>(out, out + 6), (std::vector<int8_t>{0, 0, -127, 64, 0, 127}));
  }
}

TEST(QuantizeRows, WhatIsNotFiniteShowsInTheFactor) {
  Rows rows(DType::f32, 8);
  const int64_t row = rows.problem.kv_order[0];
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    rows.problem.k.set(0, 0, row, 3, bad);
    for (const Isa isa : isas()) {
      Result result;
      QuantizeRowsArgs args = rows.args(result);
      args.offsets = nullptr;
      ASSERT_TRUE(quantize_rows_cpu(args, {}, isa).ok());
      for (int64_t i = 0; i < kBatch * kHeads * kLen; ++i)
        EXPECT_EQ(std::isfinite(result.scale[i]), i != row);
    }
  }
}

TEST(QuantizeRows, RefusesByName) {
  const Rows rows(DType::f32, 8);
  Result result;
  const auto refused = [&](auto change) {
    QuantizeRowsArgs args = rows.args(result);
    EXPECT_TRUE(check(args).ok());
    change(args);
    return check(args).code == StatusCode::invalid;
  };
  std::vector<int32_t> bad_order(rows.problem.kv_order), bad_offsets(rows.problem.kv_offsets);
  bad_order[5] = kLen, bad_offsets[rows.problem.num_kv_blocks] = kLen - 1;
  EXPECT_TRUE(refused([](QuantizeRowsArgs& a) { a.dim = 0; }));
  EXPECT_TRUE(refused([](QuantizeRowsArgs& a) { a.len = -1; }));
  EXPECT_TRUE(refused([](QuantizeRowsArgs& a) { a.out = nullptr; }));
  EXPECT_TRUE(refused([](QuantizeRowsArgs& a) { a.maps = 1; }));
  EXPECT_TRUE(refused([&](QuantizeRowsArgs& a) { a.order.rows = bad_order.data(); }));
  EXPECT_TRUE(refused([&](QuantizeRowsArgs& a) { a.offsets = bad_offsets.data(); }));
}

}  // namespace
}  // namespace fovea::kernels
