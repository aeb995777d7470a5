// Products on the CPU against fp64, for each instruction set that is there.

#include "kernels/attention/product.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>

#include "tests/kernels/attention/memory.h"

namespace fovea::kernels {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::mt19937 generator(1);

/// How a matrix lies in memory.
enum class Lies { rows, columns, apart };
constexpr Lies kAll[] = {Lies::rows, Lies::columns, Lies::apart};

/// A matrix with room around it, full of NaN.
struct Matrix {
  int64_t rows, columns, row_stride, column_stride, offset = 5;
  std::vector<float> values;

  Matrix(int64_t r, int64_t c, Lies lies) : rows(r), columns(c) {
    row_stride = lies == Lies::columns ? 1 : lies == Lies::rows ? c + 3 : 2 * c + 1;
    column_stride = lies == Lies::columns ? r + 7 : lies == Lies::rows ? 1 : 2;
    values.assign(static_cast<size_t>(offset + (r + 1) * row_stride + (c + 1) * column_stride),
                  kNaN);
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < r; ++i) {
      for (int64_t j = 0; j < c; ++j) at(i, j) = normal(generator);
    }
  }
  const float* data() const { return values.data() + offset; }
  float& at(int64_t r, int64_t c) { return values[offset + r * row_stride + c * column_stride]; }
  float at(int64_t r, int64_t c) const {
    return values[offset + r * row_stride + c * column_stride];
  }
};

struct Sizes {
  int64_t rows, inner;
};

/// A list of products with the same strides: the items lie in one A, one B.
struct Problem {
  std::vector<Sizes> sizes;
  int64_t columns;
  Matrix a, b;
  int64_t c_row_stride;
  std::vector<float> c;

  Problem(std::vector<Sizes> items, int64_t n, Lies lies_a = Lies::rows, Lies lies_b = Lies::rows)
      : sizes(std::move(items)),
        columns(n),
        a(rows(), most_inner(), lies_a),
        b(all_inner(), n, lies_b),
        c_row_stride(n + 2) {}

  int64_t rows() const {
    int64_t sum = 0;
    for (const Sizes& size : sizes) sum += size.rows;
    return sum;
  }
  int64_t all_inner() const {
    int64_t sum = 0;
    for (const Sizes& size : sizes) sum += size.inner;
    return sum;
  }
  int64_t most_inner() const {
    int64_t most = 0;
    for (const Sizes& size : sizes) most = std::max(most, size.inner);
    return most;
  }
  std::vector<float> run(Isa isa, int threads) {
    std::vector<float> out(static_cast<size_t>(rows() * c_row_stride), kNaN);
    std::vector<ProductItem> items;
    int64_t row = 0, inner = 0;
    for (const Sizes& size : sizes) {
      items.push_back({a.data() + row * a.row_stride, b.data() + inner * b.row_stride,
                       out.data() + row * c_row_stride, size.rows, size.inner});
      row += size.rows, inner += size.inner;
    }
    ProductArgs args;
    args.items = items.data(), args.num_items = static_cast<int64_t>(items.size());
    args.columns = columns, args.c_row_stride = c_row_stride;
    args.a_row_stride = a.row_stride, args.a_column_stride = a.column_stride;
    args.b_row_stride = b.row_stride, args.b_column_stride = b.column_stride;
    EXPECT_TRUE(check(args).ok());
    CheckedWorkspace workspace(product_workspace_bytes(args, threads));
    EXPECT_TRUE(product_cpu(args, workspace.get(), {run_on_threads, nullptr, threads}, isa).ok());
    return out;
  }
  /// Calls f(index into C, sum, sum of absolute values) in fp64.
  template <typename F>
  void expected(F f) const {
    int64_t row = 0, inner = 0;
    for (const Sizes& size : sizes) {
      for (int64_t r = row; r < row + size.rows; ++r) {
        for (int64_t c = 0; c < columns; ++c) {
          double sum = 0, sizes_of = 0;
          for (int64_t k = 0; k < size.inner; ++k) {
            const double product = double{a.at(r, k)} * b.at(inner + k, c);
            sum += product, sizes_of += std::abs(product);
          }
          f(r * c_row_stride + c, sum, sizes_of);
        }
      }
      row += size.rows, inner += size.inner;
    }
  }
};

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

void expect_product(Problem& problem) {
  for (const Isa isa : isas()) {
    const std::vector<float> c = problem.run(isa, 1);
    problem.expected([&](int64_t at, double sum, double sizes) {
      ASSERT_NEAR(c[at], sum, 1e-6 * sizes) << isa_name(isa) << " " << at;
    });
    for (int64_t r = 0; r < problem.rows(); ++r) {
      for (int64_t i = problem.columns; i < problem.c_row_stride; ++i)
        ASSERT_TRUE(std::isnan(c[r * problem.c_row_stride + i])) << "written behind a row";
    }
    for (const int threads : {2, 3, 4, 5})
      ASSERT_TRUE(same_bits(problem.run(isa, threads), c)) << isa_name(isa) << " " << threads;
  }
}

TEST(Product, IsThatOfFp64) {
  for (const Lies a : kAll) {
    for (const Lies b : kAll) {
      for (const int64_t columns : {1, 15, 16, 33, 129}) {
        Problem problem({{37, 61}}, columns, a, b);
        expect_product(problem);
      }
      Problem chunks({{50, 520}}, 150, a, b);
      expect_product(chunks);
    }
  }
}

TEST(Product, OfItemsOfAnySizes) {
  for (const Lies a : kAll) {
    Problem problem({{1, 1}, {0, 5}, {129, 0}, {7, 257}, {128, 128}, {3, 1000}}, 41, a);
    expect_product(problem);
  }
  Problem nothing({{0, 0}}, 4);
  expect_product(nothing);
  Problem no_columns({{3, 4}}, 0);
  expect_product(no_columns);
}

// Of the same numbers, whatever else is in the list, and however C is cut into tiles.
TEST(Product, DoesNotDependOnTheList) {
  Problem one({{130, 700}}, 147);
  Problem many(std::vector<Sizes>(40, {130, 700}), 147);
  for (int64_t r = 0; r < 130; ++r) {
    for (int64_t k = 0; k < 700; ++k) many.a.at(260 + r, k) = one.a.at(r, k);
  }
  for (int64_t k = 0; k < 700; ++k) {
    for (int64_t c = 0; c < 147; ++c) many.b.at(1400 + k, c) = one.b.at(k, c);
  }
  for (const Isa isa : isas()) {
    const std::vector<float> alone = one.run(isa, 2), among = many.run(isa, 3);
    for (int64_t r = 0; r < 130; ++r) {
      for (int64_t c = 0; c < 147; ++c) {
        ASSERT_EQ(alone[r * one.c_row_stride + c], among[(260 + r) * many.c_row_stride + c])
            << isa_name(isa) << " " << r << " " << c;
      }
    }
  }
}

TEST(Product, StepsOfZeroRepeatARowOrColumn) {
  const std::vector<float> ones(1, 1.0f), b = {1, 2, 3, 4, 5, 6};
  std::vector<float> c(4, kNaN);
  const ProductItem item{ones.data(), b.data(), c.data(), 2, 3};
  ProductArgs args;
  args.items = &item, args.num_items = 1, args.columns = 2;
  args.a_row_stride = args.a_column_stride = 0;
  args.b_row_stride = 2, args.c_row_stride = 2;
  for (const Isa isa : isas()) {
    CheckedWorkspace workspace(product_workspace_bytes(args, 1));
    ASSERT_TRUE(product_cpu(args, workspace.get(), {}, isa).ok());
    EXPECT_EQ(c, (std::vector<float>{9, 12, 9, 12}));
  }
}

TEST(Product, KeepsWhatIsNotFiniteInItsRowsAndColumns) {
  for (const Lies lies : kAll) {
    Problem problem({{20, 300}}, 40, lies, lies);
    problem.a.at(3, 270) = kNaN;
    problem.a.at(9, 2) = kInfinity;
    problem.b.at(299, 39) = -kInfinity;
    for (const Isa isa : isas()) {
      const std::vector<float> c = problem.run(isa, 2);
      for (int64_t r = 0; r < 20; ++r) {
        for (int64_t i = 0; i < 40; ++i) {
          const float value = c[r * problem.c_row_stride + i];
          if (r == 3) {
            EXPECT_TRUE(std::isnan(value));
          } else {
            EXPECT_EQ(std::isfinite(value), r != 9 && i != 39) << r << " " << i;
          }
        }
      }
    }
  }
}

TEST(Product, RefusesWhatContradictsItself) {
  const std::vector<float> a(4), b(4);
  std::vector<float> c(4);
  ProductItem item{a.data(), b.data(), c.data(), 2, 2};
  ProductArgs args;
  args.items = &item, args.num_items = 1, args.columns = 2;
  args.a_row_stride = args.b_row_stride = args.c_row_stride = 2;
  EXPECT_TRUE(check(args).ok());
  args.c_row_stride = 1;
  EXPECT_EQ(check(args).code, StatusCode::invalid);
  args.c_row_stride = 2;
  item.b = nullptr;
  EXPECT_EQ(check(args).code, StatusCode::invalid);
  item.inner = 0;
  EXPECT_TRUE(check(args).ok());
  item.rows = -1;
  EXPECT_EQ(check(args).code, StatusCode::invalid);
  item.rows = 2;
  EXPECT_EQ(product_cpu(args, {c.data(), 16}, {}, Isa::baseline).code, StatusCode::invalid);
}

}  // namespace
}  // namespace fovea::kernels
