// Gradients of block-sparse attention on the CPU against fp64, for each instruction set that is
// there.

#include "kernels/attention/block_sparse_backward.h"

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

/// A gradient in fp64. Its terms may cancel (a row that sees one key gives q exactly 0), so their
/// squares are summed too, before subtractions: they tell how large rounding errors may be.
struct Gradient {
  std::vector<double> value, squares;

  void resize(int64_t size) {
    value.resize(size);
    squares.resize(size);
  }
  void add(int64_t i, double term, double largest) {
    value[i] += term;
    squares[i] += largest * largest;
  }
};

/// Of the sum of out * grad_out + lse * grad_lse.
struct Gradients {
  Gradient q, k, v;   ///< as the tensors, contiguous
  Gradient key_bias;  ///< [batch, heads, kv_len]
  Gradient row_bias;  ///< [batch, heads, q_len]
  Gradient bias;      ///< [batch, heads, q_len, kv_len]
};

/// A problem, the forward's results rounded as they are stored, and gradients of them.
struct BackwardProblem {
  Problem problem;
  Answer answer;
  Tensor out, grad_out;
  std::vector<float> lse, grad_lse;

  BackwardProblem(const Shape& s, uint32_t seed)
      : problem(s, seed),
        answer(problem.answer()),
        out(s, problem.heads(), s.q_len, s.value_dim),
        grad_out(s, problem.heads(), s.q_len, s.value_dim) {
    std::mt19937 random(seed + 12345);
    std::normal_distribution<float> normal(0, 1);
    int64_t at = 0;
    for (int64_t b = 0; b < s.batch; ++b) {
      for (int64_t h = 0; h < problem.heads(); ++h) {
        for (int64_t row = 0; row < s.q_len; ++row) {
          for (int64_t c = 0; c < s.value_dim; ++c, ++at) {
            out.set(b, h, row, c, static_cast<float>(answer.out[at]));
            grad_out.set(b, h, row, c, normal(random));
          }
        }
      }
    }
    for (const double value : answer.lse) {
      lse.push_back(static_cast<float>(value));
      grad_lse.push_back(normal(random));
    }
  }

  Gradients gradients(bool with_lse) const;
};

Gradients BackwardProblem::gradients(bool with_lse) const {
  const Shape& s = problem.shape();
  const int64_t heads = problem.heads();
  Gradients g;
  g.q.resize(s.batch * heads * s.q_len * s.dim);
  g.k.resize(s.batch * s.kv_heads * s.kv_len * s.dim);
  g.v.resize(s.batch * s.kv_heads * s.kv_len * s.value_dim);
  g.key_bias.resize(s.batch * heads * s.kv_len);
  g.row_bias.resize(s.batch * heads * s.q_len);
  g.bias.resize(s.batch * heads * s.q_len * s.kv_len);
  for (int64_t b = 0; b < s.batch; ++b) {
    for (int64_t h = 0; h < heads; ++h) {
      const int64_t kv_head = h / s.group;
      problem.for_each_pair(b, h, [&](int64_t row, int64_t key, int64_t entry) {
        const int64_t q_index = (b * heads + h) * s.q_len + row;
        const int64_t k_index = (b * s.kv_heads + kv_head) * s.kv_len + key;
        if (answer.lse[q_index] == -kInfinity) return;
        const double logit = problem.logit(b, h, row, key);
        const double p = std::exp(logit - answer.lse[q_index]);
        const double a = s.per_entry ? answer.largest[problem.largest_at(b, h, entry)] : 1;
        const double most = answer.row_max[q_index] * std::log(2.0);
        const double w = quantized_weight(logit, most, a, s) * std::exp(most - answer.lse[q_index]);
        double ds = with_lse ? grad_lse[q_index] : 0, parts = std::abs(ds);
        for (int64_t c = 0; c < s.value_dim; ++c) {
          const double gradient = grad_out.get(b, h, row, c);
          const double with_value = gradient * problem.v.get(b, kv_head, key, c);
          const double with_out = gradient * answer.out[q_index * s.value_dim + c];
          g.v.add(k_index * s.value_dim + c, w * gradient, w * gradient);
          ds += with_value - with_out, parts += std::abs(with_value) + std::abs(with_out);
        }
        ds *= p, parts *= p;
        g.key_bias.add((b * heads + h) * s.kv_len + key, ds, parts);
        // All terms have the rounding of out in common.
        g.row_bias.add(q_index, ds, 4 * parts);
        g.bias.add(q_index * s.kv_len + key, ds, parts);
        for (int64_t c = 0; c < s.dim; ++c) {
          const double for_q = problem.scale() * problem.k.get(b, kv_head, key, c);
          const double for_k = problem.scale() * problem.q.get(b, h, row, c);
          g.q.add(q_index * s.dim + c, ds * for_q, parts * for_q);
          g.k.add(k_index * s.dim + c, ds * for_k, parts * for_k);
        }
      });
    }
  }
  return g;
}

struct Output {
  Tensor q, k, v;
  std::vector<float> key_bias, row_bias, bias;

  explicit Output(const Problem& p)
      : q(p.shape(), p.heads(), p.shape().q_len, p.shape().dim),
        k(p.shape(), p.shape().kv_heads, p.shape().kv_len, p.shape().dim),
        v(p.shape(), p.shape().kv_heads, p.shape().kv_len, p.shape().value_dim),
        key_bias(p.shape().batch * p.heads() * p.shape().kv_len, kNaN),
        row_bias(p.shape().batch * p.heads() * p.shape().q_len, kNaN),
        bias(row_bias.size() * p.shape().kv_len, 0.0f) {}
};

HeadRows view(const Tensor& t) {
  return {t.data(), t.dtype, t.batch_stride, t.head_stride, t.row_stride};
}

MutableHeadRows view(Tensor& t) {
  return {t.bytes.data() + t.offset * dtype_bytes(t.dtype), t.dtype, t.batch_stride, t.head_stride,
          t.row_stride};
}

BlockSparseBackwardArgs make_args(BackwardProblem& problem, bool with_lse, Output& output) {
  BlockSparseBackwardArgs args;
  args.forward = problem.problem.args();
  args.forward.out = view(problem.out);
  args.forward.lse = problem.lse.data();
  args.forward.weights = problem.problem.weights(problem.answer);
  args.grad_out = view(std::as_const(problem.grad_out));
  args.grad_lse = with_lse ? problem.grad_lse.data() : nullptr;
  args.grad_q = view(output.q);
  args.grad_k = view(output.k);
  args.grad_v = view(output.v);
  args.grad_key_bias = output.key_bias.data();
  args.grad_row_bias = output.row_bias.data();
  args.grad_bias = output.bias.data();
  return args;
}

void run(const BlockSparseBackwardArgs& args, Isa isa, int threads) {
  const Parallel parallel{run_on_threads, nullptr, threads};
  CheckedWorkspace memory(attention_backward_workspace_bytes(args, threads));
  const Status status = block_sparse_backward_cpu(args, memory.get(), parallel, isa);
  EXPECT_TRUE(status.ok()) << status.message;
}

Output compute(BackwardProblem& problem, bool with_lse, Isa isa, int threads) {
  Output output(problem.problem);
  run(make_args(problem, with_lse, output), isa, threads);
  return output;
}

/// Relative L2 distance, and exact zeros where there are no terms.
class Distance {
 public:
  explicit Distance(const Shape& s) : Distance(s.dtype) {
    if (s.weights != WeightFormat::none) cap_ = 2e-3;  // few weights fall to another number
  }
  explicit Distance(DType dtype)
      : cap_(dtype == DType::f32   ? 5e-6
             : dtype == DType::f16 ? 5e-3
                                   : 3e-2),
        rounding_(dtype == DType::f32   ? 0x1p-22
                  : dtype == DType::f16 ? 0x1p-11
                                        : 0x1p-8) {}
  void add(double x, const Gradient& expected, int64_t i) {
    const double r = expected.value[i];
    error_ += (x - r) * (x - r), norm_ += r * r, squares_ += expected.squares[i];
    zeros_ = zeros_ && (expected.squares[i] != 0 || x == 0);
  }
  void expect_small() const {
    EXPECT_TRUE(zeros_);
    EXPECT_LE(std::sqrt(error_), cap_ * std::sqrt(norm_) + rounding_ * std::sqrt(squares_));
  }

 private:
  double cap_, rounding_, error_ = 0, norm_ = 0, squares_ = 0;
  bool zeros_ = true;
};

/// Each head is near, and nothing is written between rows.
void expect_near(const Tensor& got, const Gradient& expected, const Shape& s, int64_t heads,
                 int64_t rows, int64_t channels) {
  int64_t at = 0, numbers = 0;
  for (int64_t b = 0; b < s.batch; ++b) {
    for (int64_t h = 0; h < heads; ++h) {
      Distance distance(s);
      for (int64_t i = 0; i < rows * channels; ++i, ++at)
        distance.add(got.get(b, h, i / channels, i % channels), expected, at);
      distance.expect_small();
    }
  }
  const auto size = static_cast<int64_t>(got.bytes.size()) / dtype_bytes(s.dtype);
  for (int64_t i = 0; i < size; ++i) numbers += !std::isnan(element(got.bytes, s.dtype, i));
  ASSERT_EQ(numbers, at);
}

void expect_near(const BackwardProblem& problem, const Gradients& g, const Output& output) {
  const Shape& s = problem.problem.shape();
  const int64_t heads = problem.problem.heads();
  {
    SCOPED_TRACE("q");
    expect_near(output.q, g.q, s, heads, s.q_len, s.dim);
  }
  {
    SCOPED_TRACE("k");
    expect_near(output.k, g.k, s, s.kv_heads, s.kv_len, s.dim);
  }
  SCOPED_TRACE("v, bias");
  expect_near(output.v, g.v, s, s.kv_heads, s.kv_len, s.value_dim);
  Distance distance(s);
  for (size_t i = 0; i < output.key_bias.size(); ++i)
    distance.add(output.key_bias[i], g.key_bias, static_cast<int64_t>(i));
  distance.expect_small();
  Distance of_rows(s), of_all(s);
  for (size_t i = 0; i < output.row_bias.size(); ++i)
    of_rows.add(output.row_bias[i], g.row_bias, static_cast<int64_t>(i));
  of_rows.expect_small();
  for (size_t i = 0; i < output.bias.size(); ++i)
    of_all.add(output.bias[i], g.bias, static_cast<int64_t>(i));
  of_all.expect_small();
}

/// Also: one and three threads give equal bits.
void expect_right(const Shape& shape, uint32_t seed, bool with_lse) {
  SCOPED_TRACE(testing::Message() << "q_len " << shape.q_len << " kv_len " << shape.kv_len
                                  << " dim " << shape.dim << " value_dim " << shape.value_dim
                                  << " dtype " << static_cast<int>(shape.dtype) << " seed "
                                  << seed);
  BackwardProblem problem(shape, seed);
  const Gradients expected = problem.gradients(with_lse);
  for (const Isa isa : isas()) {
    SCOPED_TRACE(isa_name(isa));
    const Output one = compute(problem, with_lse, isa, 1);
    const Output three = compute(problem, with_lse, isa, 3);
    expect_near(problem, expected, one);
    ASSERT_EQ(one.q.bytes, three.q.bytes);
    ASSERT_EQ(one.k.bytes, three.k.bytes);
    ASSERT_EQ(one.v.bytes, three.v.bytes);
    ASSERT_EQ(one.key_bias, three.key_bias);
    ASSERT_EQ(one.row_bias, three.row_bias);
    ASSERT_EQ(one.bias, three.bias);
  }
}

struct Lengths {
  int64_t q_len, kv_len;
};
const std::vector<Lengths>& lengths() {
  static const std::vector<Lengths> all =
      kSlow ? std::vector<Lengths>{{1, 1}, {17, 63}, {129, 33}}
            : std::vector<Lengths>{{1, 1},   {3, 3},   {15, 15},   {17, 17},   {63, 63},
                                   {64, 64}, {65, 65}, {127, 127}, {129, 129}, {257, 257},
                                   {1, 239}, {239, 1}, {113, 203}, {67, 1100}, {520, 300}};
  return all;
}

TEST(BlockSparseBackward, DenseOfManyLengths) {
  uint32_t seed = 1;
  for (const Lengths l : lengths()) {
    expect_right({.q_len = l.q_len, .kv_len = l.kv_len, .dim = 40, .value_dim = 40}, seed,
                 seed % 2 == 0);
    ++seed;
  }
}

TEST(BlockSparseBackward, DenseOfManyDims) {
  uint32_t seed = 100;
  for (const int64_t dim : {1, 8, 21, 40, 64, 72, 111, 128, 160, 256}) {
    if (kSlow && dim > 40) continue;
    expect_right({.q_len = 35, .kv_len = 77, .dim = dim, .value_dim = dim}, seed++, true);
    expect_right({.q_len = 19, .kv_len = 50, .dim = dim, .value_dim = 257 - dim}, seed++, false);
    expect_right({.q_len = 19, .kv_len = 50, .dim = dim, .value_dim = 7, .strided = true}, seed++,
                 true);
  }
}

TEST(BlockSparseBackward, EachOptionAlone) {
  const Shape plain{.q_len = kSlow ? 40 : 150,
                    .kv_len = kSlow ? 170 : 310,
                    .dim = 21,
                    .value_dim = 33,
                    .batch = 2,
                    .kv_heads = 1,
                    .group = 2,
                    .blocks = true};
  const auto with = [&](auto change) {
    Shape shape = plain;
    change(shape);
    for (uint32_t seed = 0; seed < (kSlow ? 1 : 3); ++seed) expect_right(shape, 300 + seed, true);
  };
  with([](Shape&) {});
  with([](Shape& s) { s.orders = true; });
  with([](Shape& s) { s.map_per_head = true; });
  with([](Shape& s) { s.block_len = true; });
  with([](Shape& s) { s.bits = true; });
  with([](Shape& s) { s.key_bias = true; });
  with([](Shape& s) { s.bias = true; });
  with([](Shape& s) { s.blocks = false, s.bits = true; });
}

TEST(BlockSparseBackward, QuantizedWeights) {
  uint32_t seed = 350;
  for (const WeightFormat format : {WeightFormat::int8, WeightFormat::e4m3}) {
    for (const bool per_entry : {false, true}) {
      Shape shape{.q_len = kSlow ? 40 : 150,
                  .kv_len = kSlow ? 170 : 610,
                  .dim = 21,
                  .value_dim = 33,
                  .batch = 2,
                  .kv_heads = 1,
                  .group = 2,
                  .weights = format,
                  .per_entry = per_entry};
      expect_right(shape, seed++, true);
      shape.orders = shape.blocks = shape.block_len = shape.bits = true;
      shape.key_bias = shape.bias = true;
      for (const bool own_maps : {false, true}) {
        shape.map_per_head = own_maps;
        expect_right(shape, seed++, own_maps);
      }
    }
  }
}

TEST(BlockSparseBackward, EverythingAtOnce) {
  uint32_t seed = 400;
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
    for (const Lengths l : lengths()) {
      expect_right({.q_len = l.q_len,
                    .kv_len = l.kv_len,
                    .dim = 21,
                    .value_dim = 72,
                    .batch = 2,
                    .kv_heads = 1,
                    .group = 3,
                    .dtype = dtype,
                    .orders = true,
                    .blocks = true,
                    .map_per_head = true,
                    .block_len = true,
                    .bits = true,
                    .key_bias = true,
                    .bias = true,
                    .strided = true,
                    .q_scale = 3},
                   seed, seed % 2 == 0);
      ++seed;
    }
  }
}

/// Many chunks of keys on many threads, which add to the same queries.
TEST(BlockSparseBackward, ThreadsTakeTurns) {
  const Shape shape{.q_len = kSlow ? 70 : 300,
                    .kv_len = kSlow ? 700 : 2100,
                    .dim = 16,
                    .value_dim = 16,
                    .kv_heads = 1,
                    .group = 2,
                    .blocks = true,
                    .map_per_head = true,
                    .block_len = true};
  for (uint32_t seed = 500; seed < (kSlow ? 501 : 505); ++seed) {
    BackwardProblem problem(shape, seed);
    const Isa isa = best_isa();
    const Output one = compute(problem, true, isa, 1);
    expect_near(problem, problem.gradients(true), one);
    for (const int threads : {2, 5, 16}) {
      const Output many = compute(problem, true, isa, threads);
      ASSERT_EQ(one.q.bytes, many.q.bytes) << threads;
      ASSERT_EQ(one.k.bytes, many.k.bytes) << threads;
      ASSERT_EQ(one.v.bytes, many.v.bytes) << threads;
    }
  }
}

/// So many heads that chunks of keys are long, and sums for queries so large that a part of the
/// heads is computed at a time.
TEST(BlockSparseBackward, LongChunksAndWaves) {
  expect_right({.q_len = kSlow ? 1 : 5, .kv_len = 1100, .batch = 16, .kv_heads = 4}, 550, true);
  if (kSlow) return;
  expect_right({.q_len = 20000, .kv_len = 3, .dim = 256, .value_dim = 1, .kv_heads = 4}, 551, true);
}

/// NaN in every row of k and v that no list names stays out, and those rows' gradients are 0.
TEST(BlockSparseBackward, UnlistedKeysAreNeverUsed) {
  const Shape shape{.q_len = 90,
                    .kv_len = 400,
                    .dim = 24,
                    .value_dim = 24,
                    .kv_heads = 2,
                    .orders = true,
                    .blocks = true,
                    .block_len = true,
                    .bits = true};
  for (uint32_t seed = 600; seed < (kSlow ? 601 : 605); ++seed) {
    BackwardProblem problem(shape, seed);
    const Gradients expected = problem.gradients(true);
    Problem& p = problem.problem;
    for (int64_t h = 0; h < shape.kv_heads; ++h) {
      std::vector<bool> named(shape.kv_len, false);
      const int32_t* order = p.kv_order.data() + h * shape.kv_len;
      for (const int32_t block : p.kv_index) {
        for (int64_t i = 0; i < p.kv_block_len[block]; ++i)
          named[order[p.kv_offsets[block] + i]] = true;
      }
      for (int64_t key = 0; key < shape.kv_len; ++key) {
        for (int64_t c = 0; !named[key] && c < 24; ++c) {
          p.k.set(0, h, key, c, kNaN);
          p.v.set(0, h, key, c, kNaN);
        }
      }
    }
    for (const Isa isa : isas()) expect_near(problem, expected, compute(problem, true, isa, 1));
  }
}

/// Rows that see no key: whatever comes for their lse, nothing goes on.
TEST(BlockSparseBackward, RowsWithoutKeysHandNothingOn) {
  const Shape shape{.q_len = 200, .kv_len = 90, .dim = 16, .value_dim = 16, .blocks = true};
  int empty = 0;
  for (uint32_t seed = 700; seed < 705; ++seed) {
    BackwardProblem problem(shape, seed);
    const Gradients expected = problem.gradients(true);
    for (size_t row = 0; row < problem.lse.size(); ++row) {
      if (problem.lse[row] != -kInfinity) continue;
      problem.grad_lse[row] = kNaN;
      ++empty;
    }
    for (const Isa isa : isas()) expect_near(problem, expected, compute(problem, true, isa, 1));
  }
  EXPECT_GT(empty, 0);
}

TEST(BlockSparseBackward, LeavesOutWhatIsNotWanted) {
  const Shape shape{.q_len = 70, .kv_len = 90, .dim = 24, .value_dim = 40, .key_bias = true};
  BackwardProblem problem(shape, 800);
  for (const Isa isa : isas()) {
    const Output all = compute(problem, true, isa, 1);
    for (int wanted = 0; wanted < 64; ++wanted) {
      Output some(problem.problem);
      const Output untouched = some;
      BlockSparseBackwardArgs args = make_args(problem, true, some);
      if ((wanted & 1) == 0) args.grad_q.data = nullptr;
      if ((wanted & 2) == 0) args.grad_k.data = nullptr;
      if ((wanted & 4) == 0) args.grad_v.data = nullptr;
      if ((wanted & 8) == 0) args.grad_key_bias = nullptr;
      if ((wanted & 16) == 0) args.grad_row_bias = nullptr;
      if ((wanted & 32) == 0) args.grad_bias = nullptr;
      run(args, isa, 2);
      EXPECT_EQ(some.q.bytes, (wanted & 1) ? all.q.bytes : untouched.q.bytes);
      EXPECT_EQ(some.k.bytes, (wanted & 2) ? all.k.bytes : untouched.k.bytes);
      EXPECT_EQ(some.v.bytes, (wanted & 4) ? all.v.bytes : untouched.v.bytes);
      EXPECT_EQ(some.bias, (wanted & 32) ? all.bias : untouched.bias);
      if (wanted & 16) {
        EXPECT_EQ(some.row_bias, all.row_bias);
      } else {
        EXPECT_TRUE(std::isnan(some.row_bias[0]));
      }
      if (wanted & 8) {
        EXPECT_EQ(some.key_bias, all.key_bias);
      } else {
        EXPECT_TRUE(std::isnan(some.key_bias[0]));
      }
    }
  }
}

TEST(BlockSparseBackward, NothingToDo) {
  for (const Shape& shape : {Shape{.q_len = 0, .kv_len = 5}, Shape{.q_len = 4, .kv_len = 0},
                             Shape{.q_len = 4, .kv_len = 5, .batch = 0}}) {
    expect_right(shape, 900, true);
  }
}

TEST(BlockSparseBackward, ChecksItsArguments) {
  const Shape shape{.q_len = 30, .kv_len = 40, .kv_heads = 2, .orders = true};
  BackwardProblem good(shape, 950);
  Output output(good.problem);
  const auto code = [&](BackwardProblem problem, auto change) {
    BlockSparseBackwardArgs args = make_args(problem, true, output);
    change(args);
    return check(args).code;
  };
  ASSERT_EQ(code(good, [](auto&) {}), StatusCode::ok);
  const auto refused = [&](auto change) { return code(good, change) == StatusCode::invalid; };
  EXPECT_TRUE(refused([](auto& a) { a.forward.lse = nullptr; }));
  EXPECT_TRUE(refused([](auto& a) { a.forward.out.data = nullptr; }));
  EXPECT_TRUE(refused([](auto& a) { a.forward.heads = 3; }));
  EXPECT_TRUE(refused([](auto& a) { a.grad_out.data = nullptr; }));
  EXPECT_TRUE(refused([](auto& a) { a.grad_out.dtype = DType::f16; }));
  EXPECT_TRUE(refused([](auto& a) { a.grad_q.dtype = DType::f16; }));
  EXPECT_TRUE(refused([](auto& a) { a.grad_v.dtype = DType::bf16; }));
  EXPECT_EQ(code(good, [](auto& a) { a.forward.dim = 257; }), StatusCode::unsupported);
  for (auto order : {&Problem::q_order, &Problem::kv_order}) {
    BackwardProblem twice = good;
    (twice.problem.*order)[31] = (twice.problem.*order)[32];
    EXPECT_EQ(code(twice, [](auto&) {}), StatusCode::invalid);
  }
  const BlockSparseBackwardArgs args = make_args(good, true, output);
  alignas(64) static unsigned char small[128];
  EXPECT_EQ(block_sparse_backward_cpu(args, {small, 64}, {}, best_isa()).code, StatusCode::invalid);
}

}  // namespace
}  // namespace fovea::kernels
