// Block-sparse attention on the CPU against fp64, for each instruction set that is there.

#include "kernels/attention/block_sparse.h"

#include <gtest/gtest.h>

#include "tests/kernels/attention/memory.h"
#include "tests/kernels/attention/problem.h"

namespace fovea::kernels {
namespace {

#if defined(__SANITIZE_ADDRESS__)
constexpr bool kSlow = true;  // not optimized: less of everything
#else
constexpr bool kSlow = false;
#endif
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

struct Output {
  Tensor out;
  std::vector<float> lse;
  Answer found;  ///< of quantized weights
};

Output compute(const Problem& problem, Isa isa, int threads) {
  const Shape& s = problem.shape();
  Output output{Tensor(s, problem.heads(), s.q_len, s.value_dim),
                std::vector<float>(s.batch * problem.heads() * s.q_len, kNaN)};
  BlockSparseArgs args = problem.args();
  args.out = {output.out.bytes.data() + output.out.offset * dtype_bytes(s.dtype), s.dtype,
              output.out.batch_stride, output.out.head_stride, output.out.row_stride};
  args.lse = output.lse.data();
  output.found.row_max.resize(output.lse.size());
  output.found.largest.resize(problem.kv_index.size() * s.batch * problem.heads(), kNaN);
  args.weights = problem.weights(output.found);
  const Parallel parallel{run_on_threads, nullptr, threads};
  const int64_t bytes = attention_workspace_bytes(args, threads);
  CheckedWorkspace memory(bytes);
  const Status status = block_sparse_cpu(args, memory.get(), parallel, isa);
  EXPECT_TRUE(status.ok()) << status.message;
  return output;
}

/// Relative L2 distance of each head, the worst one; the caps are those of the project's contract,
/// for bf16 a third of it: what rounding the weights and the result leaves.
void expect_near(const Problem& problem, const Answer& answer, const Output& output) {
  const Shape& s = problem.shape();
  // A weight close to a half between two numbers may fall to either side: few do.
  const double cap = s.weights != WeightFormat::none ? 2e-3
                     : s.dtype == DType::f32         ? 5e-6
                     : s.dtype == DType::f16         ? 2e-3
                                                     : 4e-3;
  const double slack = s.weights != WeightFormat::none ? 2e-3 : 0;
  int64_t at = 0;
  for (int64_t b = 0; b < s.batch; ++b) {
    for (int64_t h = 0; h < problem.heads(); ++h) {
      double error = 0, norm = 0;
      for (int64_t row = 0; row < s.q_len; ++row) {
        const int64_t index = (b * problem.heads() + h) * s.q_len + row;
        const double lse = answer.lse[index];
        if (lse == -kInfinity) {
          ASSERT_EQ(output.lse[index], -kInfinity);
        } else {
          ASSERT_NEAR(output.lse[index], lse, slack + 1e-5 + 2e-6 * std::abs(lse));
        }
        for (int64_t c = 0; c < s.value_dim; ++c, ++at) {
          const double x = output.out.get(b, h, row, c), r = answer.out[at];
          error += (x - r) * (x - r), norm += r * r;
          if (lse == -kInfinity) {
            ASSERT_EQ(x, 0);
          }
        }
      }
      ASSERT_LE(std::sqrt(error), cap * std::sqrt(norm)) << "batch " << b << " head " << h;
    }
  }
}

/// Also: one and three threads give equal bits, and room between rows is left alone.
void expect_right(const Shape& shape, uint32_t seed) {
  SCOPED_TRACE(testing::Message() << "q_len " << shape.q_len << " kv_len " << shape.kv_len
                                  << " dim " << shape.dim << " value_dim " << shape.value_dim
                                  << " dtype " << static_cast<int>(shape.dtype) << " seed "
                                  << seed);
  const Problem problem(shape, seed);
  const Answer answer = problem.answer();
  for (const Isa isa : isas()) {
    SCOPED_TRACE(isa_name(isa));
    const Output one = compute(problem, isa, 1), three = compute(problem, isa, 3);
    expect_near(problem, answer, one);
    ASSERT_EQ(one.out.bytes, three.out.bytes);
    ASSERT_EQ(one.lse, three.lse);
    Answer unused;
    if (!problem.weights(unused).needs_largest()) continue;
    for (size_t i = 0; i < answer.row_max.size(); ++i) {
      const float expected = answer.row_max[i];
      ASSERT_TRUE(one.found.row_max[i] == expected ||
                  std::abs(one.found.row_max[i] - expected) <= 1e-5 * (1 + std::abs(expected)));
    }
    for (size_t i = 0; shape.per_entry && i < answer.largest.size(); ++i)
      ASSERT_NEAR(one.found.largest[i], answer.largest[i], 2e-5);
  }
}

struct Lengths {
  int64_t q_len, kv_len;
};
const std::vector<Lengths>& lengths() {
  static const std::vector<Lengths> all =
      kSlow ? std::vector<Lengths>{{1, 1}, {17, 63}, {129, 33}}
            : std::vector<Lengths>{{1, 1},     {3, 3},   {15, 15},   {17, 17},   {63, 63},
                                   {64, 64},   {65, 65}, {127, 127}, {129, 129}, {255, 255},
                                   {257, 257}, {1, 239}, {239, 1},   {113, 203}, {67, 1100}};
  return all;
}

TEST(BlockSparse, DenseOfManyLengths) {
  uint32_t seed = 1;
  for (const Lengths l : lengths())
    expect_right({.q_len = l.q_len, .kv_len = l.kv_len, .dim = 40, .value_dim = 40}, seed++);
}

TEST(BlockSparse, DenseOfManyDims) {
  uint32_t seed = 100;
  for (const int64_t dim : {1, 8, 21, 40, 64, 72, 111, 128, 160, 256}) {
    expect_right({.q_len = 35, .kv_len = 77, .dim = dim, .value_dim = dim}, seed++);
    expect_right({.q_len = 19, .kv_len = 50, .dim = dim, .value_dim = 257 - dim}, seed++);
    expect_right({.q_len = 19, .kv_len = 50, .dim = dim, .value_dim = 7, .strided = true}, seed++);
  }
}

TEST(BlockSparse, HeadsAndBatches) {
  for (const int64_t group : {1, 3}) {
    for (const bool strided : {false, true}) {
      expect_right({.q_len = 66,
                    .kv_len = 130,
                    .dim = 24,
                    .value_dim = 40,
                    .batch = 2,
                    .kv_heads = 2,
                    .group = group,
                    .orders = strided,
                    .strided = strided},
                   200 + static_cast<uint32_t>(group));
    }
  }
}

TEST(BlockSparse, EachOptionAlone) {
  const Shape plain{.q_len = kSlow ? 70 : 150,
                    .kv_len = 310,
                    .dim = 21,
                    .value_dim = 33,
                    .batch = 2,
                    .kv_heads = 1,
                    .group = 2,
                    .blocks = true};
  const auto with = [&](auto change) {
    Shape shape = plain;
    change(shape);
    for (uint32_t seed = 0; seed < (kSlow ? 1 : 3); ++seed) expect_right(shape, 300 + seed);
  };
  with([](Shape&) {});
  with([](Shape& s) { s.orders = true; });
  with([](Shape& s) { s.map_per_head = true; });
  with([](Shape& s) { s.block_len = true; });
  with([](Shape& s) { s.bits = true; });
  with([](Shape& s) { s.key_bias = true; });
  with([](Shape& s) { s.bias = true; });
  with([](Shape& s) { s.blocks = false, s.bits = true; });
  with([](Shape& s) { s.dtype = DType::bf16; });
  with([](Shape& s) { s.dtype = DType::bf16, s.bits = true, s.block_len = true; });
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16})
    with([&](Shape& s) { s.integers = true, s.dtype = dtype; });
}

TEST(BlockSparse, QuantizedWeights) {
  uint32_t seed = 330;
  for (const WeightFormat format : {WeightFormat::int8, WeightFormat::e4m3}) {
    for (const bool per_entry : {false, true}) {
      for (const bool integers : {false, true}) {
        Shape shape{.q_len = kSlow ? 70 : 300,
                    .kv_len = kSlow ? 150 : 610,
                    .dim = 21,
                    .value_dim = 33,
                    .batch = 2,
                    .kv_heads = 1,
                    .group = 2,
                    .integers = integers,
                    .weights = format,
                    .per_entry = per_entry};
        expect_right(shape, seed++);
        shape.blocks = true;
        expect_right(shape, seed++);
        shape.orders = shape.block_len = shape.bits = shape.key_bias = shape.bias = true;
        for (const bool own_maps : {false, true}) {
          shape.map_per_head = own_maps;
          expect_right(shape, seed++);
        }
      }
    }
  }
}

TEST(BlockSparse, SmallNumbersOfManyDims) {
  uint32_t seed = 350;
  for (const int64_t dim : {1, 2, 3, 5, 16, 31, 63, 64, 65, 72, 111, 128, 160, 255, 256}) {
    const Shape shape{
        .q_len = 35, .kv_len = 77, .dim = dim, .value_dim = 257 - dim, .dtype = DType::bf16};
    Shape integers = shape;
    integers.integers = true;
    for (Shape s : {shape, integers}) {
      expect_right(s, seed++);
      s.strided = true;
      expect_right(s, seed++);
    }
  }
}

TEST(BlockSparse, LongOfSmallNumbers) {
  for (const bool integers : {false, true}) {
    expect_right({.q_len = 200,
                  .kv_len = 1500,
                  .dim = 128,
                  .value_dim = 128,
                  .dtype = DType::bf16,
                  .integers = integers},
                 390);
  }
}

TEST(BlockSparse, EverythingAtOnce) {
  uint32_t seed = 400;
  struct Kind {
    DType dtype;
    bool integers;
  };
  for (const Kind kind : {Kind{DType::f32, false},
                          {DType::f16, false},
                          {DType::bf16, false},
                          {DType::f32, true},
                          {DType::bf16, true}}) {
    for (const Lengths l : lengths()) {
      expect_right({.q_len = l.q_len,
                    .kv_len = l.kv_len,
                    .dim = 21,
                    .value_dim = 72,
                    .batch = 2,
                    .kv_heads = 1,
                    .group = 3,
                    .dtype = kind.dtype,
                    .orders = true,
                    .blocks = true,
                    .map_per_head = true,
                    .block_len = true,
                    .bits = true,
                    .key_bias = true,
                    .bias = true,
                    .strided = true,
                    .integers = kind.integers,
                    .q_scale = 3},
                   seed++);
    }
  }
}

/// NaN in every row of k and v that no list names stays out.
void expect_unlisted_keys_unused(DType dtype) {
  const Shape shape{.q_len = 90,
                    .kv_len = 400,
                    .dim = 24,
                    .value_dim = 24,
                    .kv_heads = 2,
                    .dtype = dtype,
                    .orders = true,
                    .blocks = true,
                    .block_len = true,
                    .bits = true};
  for (uint32_t seed = 500; seed < 505; ++seed) {
    Problem problem(shape, seed);
    const Answer answer = problem.answer();
    for (int64_t h = 0; h < shape.kv_heads; ++h) {
      std::vector<bool> named(shape.kv_len, false);
      const int32_t* order = problem.kv_order.data() + h * shape.kv_len;
      for (const int32_t block : problem.kv_index) {
        for (int64_t i = 0; i < problem.kv_block_len[block]; ++i)
          named[order[problem.kv_offsets[block] + i]] = true;
      }
      for (int64_t key = 0; key < shape.kv_len; ++key) {
        for (int64_t c = 0; !named[key] && c < 24; ++c) {
          problem.k.set(0, h, key, c, kNaN);
          problem.v.set(0, h, key, c, kNaN);
        }
      }
    }
    for (const Isa isa : isas()) expect_near(problem, answer, compute(problem, isa, 1));
  }
}

TEST(BlockSparse, UnlistedKeysAreNeverUsed) {
  expect_unlisted_keys_unused(DType::f32);
  expect_unlisted_keys_unused(DType::bf16);
}

TEST(BlockSparse, SpecialValues) {
  const Shape shape{.q_len = 40, .kv_len = 70, .dim = 16, .value_dim = 16};
  Problem problem(shape, 600);
  problem.q.set(0, 0, 7, 3, kNaN);
  // Row 9 has logits of 2^14 and more: one key takes everything.
  for (int64_t c = 0; c < 16; ++c) problem.q.set(0, 0, 9, c, 65536);
  for (const Isa isa : isas()) {
    const Output output = compute(problem, isa, 1);
    for (int64_t row = 0; row < shape.q_len; ++row) {
      EXPECT_EQ(std::isnan(output.lse[row]), row == 7);
      for (int64_t c = 0; c < 16; ++c)
        EXPECT_EQ(std::isnan(output.out.get(0, 0, row, c)), row == 7) << row;
    }
    // Infinite keys: no crash, and rows stay rows.
    Problem infinite = problem;
    infinite.k.set(0, 0, 5, 0, std::numeric_limits<float>::infinity());
    compute(infinite, isa, 1);
  }
}

/// Averages of ones are ones, and doubling V doubles the output, exactly.
TEST(BlockSparse, UniformAndDoubled) {
  const Shape shape{.q_len = 50, .kv_len = 700, .dim = 32, .value_dim = 32};
  Problem ones(shape, 700), plain(shape, 701);
  std::fill(ones.q.bytes.begin(), ones.q.bytes.end(), 0);
  for (int64_t key = 0; key < shape.kv_len; ++key) {
    for (int64_t c = 0; c < 32; ++c) ones.v.set(0, 0, key, c, 1);
  }
  Problem doubled = plain;
  for (int64_t key = 0; key < shape.kv_len; ++key) {
    for (int64_t c = 0; c < 32; ++c) doubled.v.set(0, 0, key, c, 2 * plain.v.get(0, 0, key, c));
  }
  for (const Isa isa : isas()) {
    const Output one = compute(ones, isa, 1), x = compute(plain, isa, 1),
                 y = compute(doubled, isa, 1);
    for (int64_t row = 0; row < shape.q_len; ++row) {
      for (int64_t c = 0; c < 32; ++c) {
        ASSERT_NEAR(one.out.get(0, 0, row, c), 1, 1.2e-7);
        ASSERT_EQ(2 * x.out.get(0, 0, row, c), y.out.get(0, 0, row, c));
      }
    }
  }
}

TEST(BlockSparse, NothingToDo) {
  for (const Shape& shape : {Shape{.q_len = 0, .kv_len = 5}, Shape{.q_len = 4, .kv_len = 0},
                             Shape{.q_len = 4, .kv_len = 5, .batch = 0}}) {
    expect_right(shape, 800);
  }
}

TEST(BlockSparse, ChecksEveryIndex) {
  const Shape shape{.q_len = 100,
                    .kv_len = 200,
                    .kv_heads = 2,
                    .orders = true,
                    .blocks = true,
                    .block_len = true,
                    .bits = true};
  const Problem good(shape, 900);
  std::vector<unsigned char> out(100 * 2 * 8 * 4);
  const auto code = [&](const Problem& problem, auto change) {
    BlockSparseArgs args = problem.args();
    args.out = {out.data(), DType::f32, 0, 800, 8};
    change(args);
    return check(args).code;
  };
  const auto same = [](BlockSparseArgs&) {};
  ASSERT_EQ(code(good, same), StatusCode::ok);
  const auto broken = [&](auto change) {
    Problem problem = good;
    change(problem);
    return code(problem, same) == StatusCode::invalid;
  };
  EXPECT_TRUE(broken([](Problem& p) { p.q_order[150] = 100; }));
  EXPECT_TRUE(broken([](Problem& p) { p.q_order[150] = p.q_order[151]; }));
  EXPECT_TRUE(broken([](Problem& p) { p.kv_order[399] = -1; }));
  EXPECT_TRUE(broken([](Problem& p) { p.q_offsets.back() = 99; }));
  EXPECT_TRUE(broken([](Problem& p) { p.kv_offsets.back() = 201; }));
  EXPECT_TRUE(broken([](Problem& p) { p.kv_offsets[1] = -1; }));
  EXPECT_TRUE(broken([](Problem& p) { p.kv_index[0] = static_cast<int32_t>(p.num_kv_blocks); }));
  EXPECT_TRUE(broken([](Problem& p) { p.kv_index[0] = -1; }));
  EXPECT_TRUE(broken([](Problem& p) { p.row_ptr.back() += 1; }));
  EXPECT_TRUE(broken([](Problem& p) { p.row_ptr[0] = -1; }));
  EXPECT_TRUE(broken([](Problem& p) { p.row_ptr[1] = p.row_ptr[2] + 1; }));
  EXPECT_TRUE(broken([](Problem& p) { p.kv_block_len[2] = 500; }));
  EXPECT_TRUE(
      broken([](Problem& p) { std::fill(p.bits_offset.begin(), p.bits_offset.end(), -2); }));
  EXPECT_TRUE(broken([](Problem& p) { p.bits.clear(); }));
  const auto refused = [&](auto change) { return code(good, change) == StatusCode::invalid; };
  EXPECT_TRUE(refused([](BlockSparseArgs& a) { a.heads = 3; }));
  EXPECT_TRUE(refused([](BlockSparseArgs& a) { a.q.data = nullptr; }));
  EXPECT_TRUE(refused([](BlockSparseArgs& a) { a.dim = 0; }));
  EXPECT_TRUE(refused([](BlockSparseArgs& a) { a.k.dtype = DType::f16; }));
  EXPECT_TRUE(refused([](BlockSparseArgs& a) { a.lists.map_head_stride = 1; }));
  EXPECT_TRUE(refused([](BlockSparseArgs& a) { a.lists.map_head_stride = INT64_MAX; }));
  EXPECT_TRUE(refused([](BlockSparseArgs& a) { a.lists.row_ptr = nullptr; }));
  EXPECT_EQ(code(good, [](BlockSparseArgs& a) { a.lists.maps = INT64_MAX; }),
            StatusCode::unsupported);
  EXPECT_EQ(code(good, [](BlockSparseArgs& a) { a.dim = 257; }), StatusCode::unsupported);
  const Problem integers({.q_len = 100, .kv_len = 200, .kv_heads = 2, .integers = true}, 901);
  const auto refused_integers = [&](auto change) {
    return code(integers, change) == StatusCode::invalid;
  };
  ASSERT_EQ(code(integers, same), StatusCode::ok);
  EXPECT_TRUE(refused_integers([](BlockSparseArgs& a) { a.q_int8.data = nullptr; }));
  EXPECT_TRUE(refused_integers([](BlockSparseArgs& a) { a.k_int8.data = nullptr; }));
  EXPECT_TRUE(refused_integers([](BlockSparseArgs& a) { a.k_int8.scale = nullptr; }));
}

TEST(BlockSparse, ChecksQuantizedWeights) {
  const Problem problem({.q_len = 60, .kv_len = 90, .kv_heads = 2, .blocks = true}, 902);
  std::vector<float> out(60 * 2 * 8), found(2 * 60 + 2 * problem.kv_index.size());
  const auto entries = static_cast<int64_t>(problem.kv_index.size());
  const auto code = [&](auto change) {
    BlockSparseArgs args = problem.args();
    args.out = {out.data(), DType::f32, 0, 480, 8};
    args.weights = {.format = WeightFormat::int8,
                    .per_entry = true,
                    .row_max = found.data(),
                    .largest = found.data() + 120,
                    .largest_head_stride = entries};
    change(args);
    return check(args).code;
  };
  EXPECT_EQ(code([](BlockSparseArgs&) {}), StatusCode::ok);
  EXPECT_EQ(code([](BlockSparseArgs& a) { a.weights.row_max = nullptr; }), StatusCode::invalid);
  EXPECT_EQ(code([](BlockSparseArgs& a) { a.weights.largest = nullptr; }), StatusCode::invalid);
  EXPECT_EQ(code([](BlockSparseArgs& a) { a.weights = {.format = WeightFormat::e4m3}; }),
            StatusCode::ok);
  EXPECT_EQ(code([](BlockSparseArgs& a) { a.weights.largest_head_stride = 0; }),
            StatusCode::invalid);
  EXPECT_EQ(code([](BlockSparseArgs& a) { --a.weights.largest_head_stride; }), StatusCode::invalid);
  EXPECT_EQ(code([](BlockSparseArgs& a) {
              a.out.dtype = a.q.dtype = a.k.dtype = a.v.dtype = DType::bf16;
            }),
            StatusCode::unsupported);
}

TEST(BlockSparse, RefusesABadWorkspace) {
  const Problem problem({.q_len = 20, .kv_len = 20}, 950);
  BlockSparseArgs args = problem.args();
  std::vector<float> out(20 * 8);
  args.out = {out.data(), DType::f32, 0, 0, 8};
  alignas(64) static unsigned char small[128];
  EXPECT_EQ(block_sparse_cpu(args, {}, {}, best_isa()).code, StatusCode::invalid);
  EXPECT_EQ(block_sparse_cpu(args, {small, 64}, {}, best_isa()).code, StatusCode::invalid);
  EXPECT_EQ(block_sparse_cpu(args, {small + 1, int64_t{1} << 40}, {}, best_isa()).code,
            StatusCode::invalid);
}

/// 40 keys, a gap of 8 and 32 more, of which lists name all but the gap.
struct Behind {
  static constexpr int64_t kOwn = 40, kBegin = 48, kKeys = 80, kDim = 24, kQueries = 21;
  std::vector<float> q, k, v, bias;
  std::vector<int32_t> order, q_offsets = {0, kQueries}, kv_offsets = {0, kOwn, kBegin, kKeys},
                              index = {0, 2};
  std::vector<int64_t> row_ptr = {0, 2};

  Behind() {
    std::mt19937 random(5);
    std::normal_distribution<float> normal;
    const auto fill = [&](std::vector<float>& x, int64_t rows) {
      // Numbers of bf16, so that both types have the same ones.
      for (int64_t i = 0; i < rows * kDim; ++i)
        x.push_back(to_float(from_float<BFloat16>(normal(random))));
    };
    fill(q, kQueries), fill(k, kKeys), fill(v, kKeys);
    for (int64_t i = 0; i < kKeys; ++i) bias.push_back(normal(random));
    for (int64_t i = 0; i < kKeys; ++i) order.push_back(static_cast<int32_t>(i));
    std::shuffle(order.begin(), order.begin() + kOwn, random);
  }
  /// T: the numbers of q, and of the own keys where `apart` puts the others behind them.
  template <typename T>
  std::vector<float> run(DType dtype, bool apart, Isa isa, int threads) const {
    const auto as = [](const std::vector<float>& x) {
      std::vector<T> out;
      for (const float value : x) out.push_back(from_float<T>(value));
      return out;
    };
    const std::vector<T> own_q = as(q), own_k = as(k), own_v = as(v);
    std::vector<T> out(q.size());
    std::vector<float> lse(kQueries);
    BlockSparseArgs args;
    args.batch = args.heads = args.kv_heads = 1;
    args.q_len = kQueries, args.kv_len = kKeys, args.dim = args.value_dim = kDim;
    args.q = {own_q.data(), dtype, 0, 0, kDim};
    args.k = {own_k.data(), dtype, 0, 0, kDim}, args.v = {own_v.data(), dtype, 0, 0, kDim};
    args.out = {out.data(), dtype, 0, 0, kDim}, args.lse = lse.data();
    args.kv_order = {order.data(), 0, 0};
    args.key_bias = {bias.data(), 0, 0, 0, 1};
    if (apart) {
      args.more = {{k.data() + kBegin * kDim, DType::f32, 0, 0, kDim},
                   {v.data() + kBegin * kDim, DType::f32, 0, 0, kDim},
                   kOwn,
                   kBegin};
    }
    BlockLists& lists = args.lists;
    lists.num_q_blocks = 1, lists.num_kv_blocks = 3, lists.num_entries = 2;
    lists.q_offsets = q_offsets.data(), lists.kv_offsets = kv_offsets.data();
    lists.row_ptr = row_ptr.data(), lists.kv_index = index.data();
    EXPECT_TRUE(check(args).ok()) << check(args).message;
    CheckedWorkspace workspace(attention_workspace_bytes(args, threads));
    const Parallel parallel{run_on_threads, nullptr, threads};
    EXPECT_TRUE(block_sparse_cpu(args, workspace.get(), parallel, isa).ok());
    for (const T value : out) lse.push_back(to_float(value));
    return lse;
  }
};

TEST(BlockSparse, KeysBehindTheOthers) {
  const Behind problem;
  for (const Isa isa : isas()) {
    const std::vector<float> whole = problem.run<float>(DType::f32, false, isa, 1);
    EXPECT_EQ(problem.run<float>(DType::f32, true, isa, 1), whole) << isa_name(isa);
    EXPECT_EQ(problem.run<float>(DType::f32, true, isa, 3), whole) << isa_name(isa);
    const std::vector<float> half = problem.run<BFloat16>(DType::bf16, true, isa, 2);
    for (size_t i = 0; i < whole.size(); ++i) {
      const bool is_lse = i < static_cast<size_t>(Behind::kQueries);
      ASSERT_NEAR(half[i], whole[i], is_lse ? 1e-5 : 1e-2) << isa_name(isa) << " " << i;
    }
  }
}

TEST(BlockSparse, RefusesKeysBehindTheOthersThatCannotBe) {
  const std::vector<float> x(64);
  BlockSparseArgs args;
  args.more.k = args.more.v = {x.data(), DType::f32, 0, 0, 1};
  args.kv_len = 20, args.dim = args.value_dim = 1, args.more.own = 10;
  for (const int64_t begin : {0, 12, 32}) {
    args.more.begin = begin;
    EXPECT_EQ(check(args).code, StatusCode::invalid) << begin;
  }
  args.more.begin = 16;
  args.more.v.data = nullptr;
  EXPECT_EQ(check(args).code, StatusCode::invalid);
}

}  // namespace
}  // namespace fovea::kernels
