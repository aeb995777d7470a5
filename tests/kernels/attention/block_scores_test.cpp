// Sums of blocks and shares between groups on the CPU against fp64, for each instruction set that
// is there.

#include "kernels/attention/block_scores.h"

#include <memory>

#include <gtest/gtest.h>

#include "tests/kernels/attention/memory.h"
#include "tests/kernels/attention/problem.h"

namespace fovea::kernels {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

std::mt19937 generator(1);

int64_t below(int64_t bound) {
  return std::uniform_int_distribution<int64_t>(0, bound - 1)(generator);
}

Tensor random_tensor(const Shape& shape, int64_t heads, int64_t rows) {
  Tensor out(shape, heads, rows, shape.dim);
  std::normal_distribution<float> normal;
  for (int64_t b = 0; b < shape.batch; ++b) {
    for (int64_t h = 0; h < heads; ++h) {
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t c = 0; c < shape.dim; ++c) out.set(b, h, r, c, normal(generator));
      }
    }
  }
  return out;
}

HeadRows view(const Tensor& x) {
  return {x.data(), x.dtype, x.batch_stride, x.head_stride, x.row_stride};
}

/// Ascending offsets of random blocks, also empty ones, over all of `length`.
std::vector<int32_t> random_offsets(int64_t blocks, int64_t length) {
  std::vector<int32_t> out = {0, static_cast<int32_t>(length)};
  while (static_cast<int64_t>(out.size()) < blocks + 1)
    out.push_back(static_cast<int32_t>(below(length + 1)));
  std::sort(out.begin(), out.end());
  return out;
}

void expect_sums(const Shape& shape, bool ordered, bool centred) {
  const int64_t heads = shape.kv_heads, rows = shape.kv_len, dim = shape.dim, blocks = 5;
  const Tensor x = random_tensor(shape, heads, rows);
  const std::vector<int32_t> offsets = random_offsets(blocks, rows);
  std::vector<int32_t> order(static_cast<size_t>(rows));
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), generator);
  std::vector<float> centre(static_cast<size_t>(shape.batch * heads * dim));
  for (float& value : centre) value = static_cast<float>(below(100)) / 100;
  const auto size = static_cast<size_t>(shape.batch * heads * blocks * dim);
  BlockSumsArgs args;
  args.batch = shape.batch, args.heads = heads, args.dim = dim, args.rows = rows;
  args.x = view(x);
  if (ordered) args.order.rows = order.data();
  args.offsets = offsets.data(), args.blocks = blocks;
  args.centre = centred ? centre.data() : nullptr;
  std::vector<double> sums(size, 0), directions(size, 0);
  for (int64_t bh = 0; bh < shape.batch * heads; ++bh) {
    for (int64_t block = 0; block < blocks; ++block) {
      for (int64_t at = offsets[block]; at < offsets[block + 1]; ++at) {
        std::vector<double> value;
        double square = 0;
        for (int64_t c = 0; c < dim; ++c) {
          value.push_back(x.get(bh / heads, bh % heads, ordered ? order[at] : at, c));
          if (centred) value.back() -= centre[bh * dim + c];
          square += value.back() * value.back();
        }
        for (int64_t c = 0; c < dim; ++c) {
          sums[(bh * blocks + block) * dim + c] += value[c];
          directions[(bh * blocks + block) * dim + c] += value[c] / std::sqrt(square);
        }
      }
    }
  }
  for (const Isa isa : isas()) {
    for (const int threads : {1, 3}) {
      std::vector<float> sum(size, kNaN), direction(size, kNaN);
      args.sum = sum.data(), args.directions = direction.data();
      ASSERT_TRUE(block_sums_cpu(args, {run_on_threads, nullptr, threads}, isa).ok());
      for (size_t i = 0; i < size; ++i) {
        ASSERT_NEAR(sum[i], sums[i], 1e-4) << isa_name(isa) << " " << i;
        ASSERT_NEAR(direction[i], directions[i], 1e-4) << isa_name(isa) << " " << i;
      }
    }
  }
}

TEST(BlockSums, AreThoseOfTheirRows) {
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
    for (const int64_t dim : {8, 16, 40, 128}) {
      for (const bool some : {false, true}) {
        expect_sums(
            {.kv_len = 61, .dim = dim, .batch = 2, .kv_heads = 3, .dtype = dtype, .strided = some},
            some, !some);
      }
    }
  }
}

TEST(BlockSums, RefuseWhatLeavesTheRows) {
  const std::vector<float> x(8);
  const std::vector<int32_t> offsets = {0, 3}, order = {0, 2};
  BlockSumsArgs args;
  args.batch = args.heads = 1, args.dim = 4, args.rows = 2, args.blocks = 1;
  args.x = {x.data(), DType::f32, 8, 8, 4};
  args.offsets = offsets.data();
  EXPECT_EQ(check(args).code, StatusCode::invalid);
  const std::vector<int32_t> within = {0, 2};
  args.offsets = within.data();
  EXPECT_TRUE(check(args).ok());
  args.order.rows = order.data();
  EXPECT_EQ(check(args).code, StatusCode::invalid);
}

// Orders and blocks of each item and head, and rows that do not count, whatever they hold.
TEST(BlockSums, OfBlocksPerHeadWithoutPadding) {
  const Shape shape{.kv_len = 61, .dim = 24, .batch = 2, .kv_heads = 3, .strided = true};
  const int64_t heads = shape.kv_heads, rows = shape.kv_len, dim = shape.dim, blocks = 5;
  Tensor x = random_tensor(shape, heads, rows);
  std::vector<int32_t> order, offsets;
  for (int64_t bh = 0; bh < shape.batch * heads; ++bh) {
    std::vector<int32_t> own(static_cast<size_t>(rows));
    std::iota(own.begin(), own.end(), 0);
    std::shuffle(own.begin(), own.end(), generator);
    order.insert(order.end(), own.begin(), own.end());
    const std::vector<int32_t> ends = random_offsets(blocks, rows);
    offsets.insert(offsets.end(), ends.begin(), ends.end());
  }
  const auto valid = std::make_unique<bool[]>(static_cast<size_t>(shape.batch * rows));
  for (int64_t i = 0; i < shape.batch * rows; ++i) {
    valid[i] = below(3) > 0;
    for (int64_t h = 0; h < heads && !valid[i]; ++h) x.set(i / rows, h, i % rows, 7, kNaN);
  }
  BlockSumsArgs args;
  args.batch = shape.batch, args.heads = heads, args.dim = dim, args.rows = rows;
  args.x = view(x), args.order = {order.data(), heads * rows, rows};
  args.offsets = offsets.data(), args.blocks = blocks, args.valid = valid.get();
  args.offsets_batch_stride = heads * (blocks + 1), args.offsets_head_stride = blocks + 1;
  for (const Isa isa : isas()) {
    std::vector<float> sum(static_cast<size_t>(shape.batch * heads * blocks * dim), kNaN);
    args.sum = sum.data();
    ASSERT_TRUE(block_sums_cpu(args, {run_on_threads, nullptr, 2}, isa).ok());
    for (int64_t at = 0; at < static_cast<int64_t>(sum.size()); ++at) {
      const int64_t c = at % dim, block = at / dim % blocks, bh = at / dim / blocks;
      double expected = 0;
      const int32_t* ends = offsets.data() + bh * (blocks + 1) + block;
      for (int64_t i = ends[0]; i < ends[1]; ++i) {
        const int64_t row = order[bh * rows + i];
        if (valid[bh / heads * rows + row]) expected += x.get(bh / heads, bh % heads, row, c);
      }
      ASSERT_NEAR(sum[at], expected, 1e-5) << isa_name(isa) << " " << at;
    }
  }
}

struct Groups {
  std::vector<int32_t> rows, offsets;
  std::vector<float> weight;

  Groups(int64_t phases, int64_t groups, int64_t blocks, int64_t length)
      : offsets(random_offsets(blocks, groups)) {
    for (int64_t i = 0; i < phases * groups; ++i)
      rows.push_back(static_cast<int32_t>(below(length)));
    for (int64_t i = 0; i < groups; ++i) weight.push_back(static_cast<float>(below(4)));
  }
};

/// What the shape says of rows holds; groups may repeat them.
struct SharesCase {
  Shape shape;
  int64_t phases = 1, q_groups = 10, kv_groups = 10, blocks = 4;
  bool weighted = false, largest = false;
};

std::vector<double> expected_shares(const SharesCase& c, const Tensor& q, const Tensor& k,
                                    const Groups& from, const Groups& to, double scale) {
  const int64_t heads = c.shape.kv_heads * c.shape.group;
  std::vector<double> out(static_cast<size_t>(heads * c.blocks * c.blocks), 0);
  for (int64_t h = 0; h < heads; ++h) {
    for (int64_t i = 0; i < c.blocks; ++i) {
      for (int64_t g = from.offsets[i]; g < from.offsets[i + 1]; ++g) {
        std::vector<double> mass;
        for (int64_t j = 0; j < c.kv_groups; ++j) {
          double logit = 0;
          for (int64_t p = 0; p < c.phases; ++p) {
            for (int64_t d = 0; d < c.shape.dim; ++d) {
              logit += double{q.get(0, h, from.rows[p * c.q_groups + g], d)} *
                       k.get(0, h / c.shape.group, to.rows[p * c.kv_groups + j], d);
            }
          }
          mass.push_back(std::exp(scale * logit) * (c.weighted ? to.weight[j] : 1.0f));
        }
        const double total = std::accumulate(mass.begin(), mass.end(), 0.0);
        const double weight = c.weighted ? from.weight[g] : 1.0f;
        for (int64_t j = 0; j < c.blocks && total > 0; ++j) {
          double& share = out[(h * c.blocks + i) * c.blocks + j];
          for (int64_t m = to.offsets[j]; m < to.offsets[j + 1]; ++m) {
            const double own = weight * mass[m] / total;
            share = c.largest ? std::max(share, own) : share + own;
          }
        }
      }
    }
  }
  return out;
}

void expect_shares(const SharesCase& c) {
  const Shape& s = c.shape;
  const int64_t heads = s.kv_heads * s.group;
  Tensor q = random_tensor(s, heads, s.q_len), k = random_tensor(s, s.kv_heads, s.kv_len);
  Groups from(c.phases, c.q_groups, c.blocks, s.q_len - 1);
  Groups to(c.phases, c.kv_groups, c.blocks, s.kv_len - 1);
  const double scale = 1.5 / std::sqrt(static_cast<double>(s.dim * c.phases));
  const std::vector<double> expected = expected_shares(c, q, k, from, to, scale);
  if (c.weighted) {  // what hidden groups hold does not matter: their row is the last one
    for (int64_t h = 0; h < heads; ++h) q.set(0, h, s.q_len - 1, 0, kNaN);
    for (int64_t h = 0; h < s.kv_heads; ++h) k.set(0, h, s.kv_len - 1, 0, kNaN);
    for (int64_t g = 0; g < c.q_groups; ++g) {
      if (from.weight[g] == 0) from.rows[g] = static_cast<int32_t>(s.q_len - 1);
    }
    for (int64_t g = 0; g < c.kv_groups; ++g) {
      if (to.weight[g] == 0) to.rows[g] = static_cast<int32_t>(s.kv_len - 1);
    }
  }
  BlockSharesArgs args;
  args.heads = heads, args.kv_heads = s.kv_heads, args.dim = s.dim;
  args.q_len = s.q_len, args.kv_len = s.kv_len;
  args.q = view(q), args.k = view(k);
  args.phases = c.phases, args.q_groups = c.q_groups, args.kv_groups = c.kv_groups;
  args.q_rows = from.rows.data(), args.kv_rows = to.rows.data();
  args.q_blocks = args.kv_blocks = c.blocks;
  args.q_offsets = from.offsets.data(), args.kv_offsets = to.offsets.data();
  if (c.weighted) args.q_weight = from.weight.data(), args.kv_weight = to.weight.data();
  args.scale = scale, args.largest = c.largest;
  for (const Isa isa : isas()) {
    std::vector<float> first;
    for (const int threads : {1, 3}) {
      std::vector<float> shares(expected.size(), kNaN);
      args.shares = shares.data();
      CheckedWorkspace memory(block_shares_workspace_bytes(args, threads));
      const Status status =
          block_shares_cpu(args, memory.get(), {run_on_threads, nullptr, threads}, isa);
      ASSERT_TRUE(status.ok()) << status.message;
      for (size_t i = 0; i < expected.size(); ++i) {
        ASSERT_NEAR(shares[i], expected[i], 1e-5 + 1e-5 * expected[i]) << isa_name(isa) << " " << i;
      }
      if (first.empty()) first = shares;
      ASSERT_EQ(shares, first);  // threads change no bit
    }
  }
}

TEST(BlockShares, AreThoseOfTheSoftmax) {
  for (const bool largest : {false, true}) {
    for (const bool weighted : {false, true}) {
      const auto expect = [&](Shape shape, int64_t phases, int64_t q_groups, int64_t kv_groups) {
        shape.q_len = 23, shape.kv_len = 31, shape.kv_heads = 2, shape.group = 2;
        expect_shares({shape, phases, q_groups, kv_groups, 4, weighted, largest});
      };
      expect({.dim = 8}, 1, 10, 10);
      expect({.dim = 40, .strided = true}, 3, 17, 33);
      expect({.dim = 16, .dtype = DType::bf16}, 4, 150, 300);
      expect({.dim = 128, .dtype = DType::f16}, 2, 5, 515);
      expect({.dim = 256}, 1, 1, 1);
    }
  }
}

TEST(BlockShares, RefuseWhatLeavesTheRows) {
  const std::vector<float> x(8);
  std::vector<float> shares(1);
  const std::vector<int32_t> rows = {0, 1}, bad_rows = {0, 2}, offsets = {0, 2}, bad = {0, 3};
  BlockSharesArgs args;
  args.heads = args.kv_heads = 1, args.dim = 4, args.q_len = args.kv_len = 2;
  args.q = args.k = {x.data(), DType::f32, 0, 8, 4};
  args.q_groups = args.kv_groups = 2, args.q_blocks = args.kv_blocks = 1;
  args.q_rows = args.kv_rows = rows.data();
  args.q_offsets = args.kv_offsets = offsets.data();
  args.shares = shares.data();
  EXPECT_TRUE(check(args).ok());
  args.kv_rows = bad_rows.data();
  EXPECT_EQ(check(args).code, StatusCode::invalid);
  args.kv_rows = rows.data(), args.q_offsets = bad.data();
  EXPECT_EQ(check(args).code, StatusCode::invalid);
  args.q_offsets = offsets.data(), args.dim = 257;
  EXPECT_EQ(check(args).code, StatusCode::unsupported);
}

}  // namespace
}  // namespace fovea::kernels
