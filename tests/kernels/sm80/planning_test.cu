// What plans are made of on a GPU, beside the CPU: sums of blocks, choices, linear attention over
// blocks. Small integers give exact results, so that every misplaced number shows.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include <cuda_bf16.h>

#include "kernels/attention/block_scores.h"
#include "kernels/attention/linear_blocks.h"
#include "kernels/attention/select_blocks.h"
#include "tests/kernels/gpu_test.h"

namespace fovea::kernels {
namespace {

class Sm80Planning : public Sm80Test {
 protected:
  std::vector<float> integers(size_t count, int low, int high) {
    std::uniform_int_distribution<int> draw(low, high);
    std::vector<float> out(count);
    for (float& x : out) x = static_cast<float>(draw(random_));
    return out;
  }
  std::vector<float> normals(size_t count) {
    std::normal_distribution<float> draw;
    std::vector<float> out(count);
    for (float& x : out) x = draw(random_);
    return out;
  }
  // Offsets of blocks of up to `most` positions that cover `len`; some are empty.
  std::vector<int32_t> offsets(int len, int most) {
    std::uniform_int_distribution<int> draw(0, most);
    std::vector<int32_t> out = {0, std::min(len, most)};  // a full one
    while (out.back() < len) out.push_back(std::min(len, out.back() + draw(random_)));
    return out;
  }
  std::vector<int32_t> shuffled(int len) {
    std::vector<int32_t> out(static_cast<size_t>(len));
    std::iota(out.begin(), out.end(), 0);
    std::shuffle(out.begin(), out.end(), random_);
    return out;
  }

  std::mt19937 random_{9};
};

std::vector<uint16_t> as_bf16(const std::vector<float>& values) {
  std::vector<uint16_t> out;
  for (const float x : values) out.push_back(__bfloat16_as_ushort(__float2bfloat16(x)));
  return out;
}

float number(uint16_t bits) { return __bfloat162float(__ushort_as_bfloat16(bits)); }
float number(float x) { return x; }

// ---- Choices ------------------------------------------------------------------------------------

void expect_same_choice(SelectBlocksArgs args, const std::vector<float>& scores) {
  std::vector<uint8_t> expected(scores.size(), 2);
  const DeviceArray<uint8_t> got(expected);
  const DeviceArray<float> on_device(scores);
  args.scores = scores.data();
  args.chosen = reinterpret_cast<bool*>(expected.data());
  select_blocks_cpu(args);
  args.scores = on_device.data();
  args.chosen = reinterpret_cast<bool*>(got.data());
  ASSERT_TRUE(select_blocks_cuda(args, {}).ok());
  EXPECT_EQ(got.read(), expected) << args.blocks << " blocks, least " << args.least << ", mass "
                                  << args.mass;
}

TEST_F(Sm80Planning, ChoosesAsTheCpuDoes) {
  constexpr int64_t kRows = 37;
  for (const int32_t blocks : {1, 31, 32, 33, 256, 257, 640, 641, 1280, 1281, 3000}) {
    for (const int values : {2, 100}) {
      std::vector<float> scores = integers(static_cast<size_t>(kRows * blocks), -values, values);
      for (const int32_t least : {0, 1, blocks / 20, blocks / 2, blocks}) {
        expect_same_choice({.rows = kRows, .blocks = blocks, .least = least, .takes_lowest = false},
                           scores);
      }
      scores[0] = std::numeric_limits<float>::quiet_NaN();
      scores[scores.size() / 2] = -std::numeric_limits<float>::infinity();
      scores.back() = -0.0f;
      expect_same_choice({.rows = kRows, .blocks = blocks, .least = 7, .takes_lowest = false},
                         scores);
      scores = integers(static_cast<size_t>(kRows * blocks), 0, values);
      for (const double mass : {1.0, 50.0, 1000.0, 1e9}) {
        for (const bool takes_crossing : {false, true}) {
          expect_same_choice({.rows = kRows,
                              .blocks = blocks,
                              .least = 2,
                              .sums = true,
                              .mass = mass,
                              .takes_crossing = takes_crossing},
                             scores);
        }
      }
    }
  }
}

// ---- Sums of blocks -----------------------------------------------------------------------------

struct SumsProblem {
  int heads = 3, len = 300, dim = 128;
  bool sorted = false, masked = false, centred = false;
  std::vector<int32_t> ends = {}, order = {};  // of blocks; of the heads' positions
  std::vector<uint8_t> valid = {};
  std::vector<float> centre = {};
};

template <typename T>
void check_sums(const SumsProblem& p, DType type, const std::vector<T>& x) {
  const auto &ends = p.ends, &order = p.order;
  const auto blocks = static_cast<int64_t>(ends.size()) - 1;
  const auto size = static_cast<size_t>(2 * p.heads * blocks * p.dim);
  const DeviceArray<T> from(x);
  const DeviceArray<int32_t> on_ends(ends), on_order(order);
  const DeviceArray<uint8_t> on_valid(p.valid);
  const DeviceArray<float> on_centre(p.centre), sum(std::vector<float>(size, -1)),
      directions(std::vector<float>(size, -1));
  BlockSumsArgs args;
  args.batch = 2, args.heads = p.heads, args.dim = p.dim, args.rows = p.len;
  // Tokens before heads.
  args.x = {from.data(), type, int64_t{p.len} * p.heads * p.dim, p.dim, int64_t{p.heads} * p.dim};
  args.offsets = on_ends.data(), args.blocks = blocks;
  if (p.sorted) args.order = {on_order.data(), 0, p.len};
  if (p.masked) args.valid = reinterpret_cast<const bool*>(on_valid.data());
  if (p.centred) args.centre = on_centre.data();
  args.sum = sum.data(), args.directions = directions.data();
  ASSERT_TRUE(block_sums_cuda(args, {}).ok());
  const std::vector<float> got = sum.read(), got_directions = directions.read();
  args.directions = nullptr;
  const DeviceArray<float> alone(std::vector<float>(size, -1));
  args.sum = alone.data();
  ASSERT_TRUE(block_sums_cuda(args, {}).ok());
  EXPECT_EQ(alone.read(), got);
  for (int64_t i = 0; i < 2 * p.heads * blocks; ++i) {
    const int64_t block = i % blocks, head = i / blocks % p.heads, item = i / blocks / p.heads;
    std::vector<double> a(static_cast<size_t>(p.dim), 0), b(a), row(a);
    for (int32_t at = std::max(ends[block], 0); at < std::min(ends[block + 1], p.len); ++at) {
      const int32_t from_row = p.sorted ? order[head * p.len + at] : at;
      if (from_row < 0 || from_row >= p.len) continue;
      if (p.masked && !p.valid[item * p.len + from_row]) continue;
      double square = 0;
      for (int c = 0; c < p.dim; ++c) {
        const int64_t place = ((item * p.len + from_row) * p.heads + head) * p.dim + c;
        row[c] = number(x[place]) - (p.centred ? p.centre[(item * p.heads + head) * p.dim + c] : 0);
        square += row[c] * row[c];
      }
      for (int c = 0; c < p.dim; ++c) {
        a[c] += row[c], b[c] += row[c] / std::max(std::sqrt(square), 1e-12);
      }
    }
    for (int c = 0; c < p.dim; ++c) {
      ASSERT_NEAR(got[i * p.dim + c], a[c], 1e-3) << "sum of block " << i << " channel " << c;
      ASSERT_NEAR(got_directions[i * p.dim + c], b[c], 1e-4) << "block " << i << " channel " << c;
    }
  }
}

TEST_F(Sm80Planning, AddsUpBlocks) {
  for (const int dim : {8, 40, 64, 128, 256}) {
    for (const bool masked : {false, true}) {
      SumsProblem p{.dim = dim, .sorted = masked, .masked = masked, .centred = masked};
      const auto count = static_cast<size_t>(2 * p.heads * p.len * p.dim);
      for (int head = 0; head < p.heads; ++head) {
        const std::vector<int32_t> own = shuffled(p.len);
        p.order.insert(p.order.end(), own.begin(), own.end());
      }
      p.order[5] = -1, p.order[6] = p.len;
      p.ends = offsets(p.len, 90);
      p.ends.push_back(p.ends.back() - 10);  // descends: empty
      p.ends.push_back(p.len + 50);          // of which what is there counts
      p.valid.assign(static_cast<size_t>(2 * p.len), 1);
      for (size_t i = 0; i < p.valid.size(); i += 7) p.valid[i] = 0;
      p.centre = normals(static_cast<size_t>(2 * p.heads * dim));
      const std::vector<float> x = normals(count);
      check_sums(p, DType::f32, x);
      check_sums(p, DType::bf16, as_bf16(x));
    }
  }
}

TEST_F(Sm80Planning, RefusesSumsOfOtherRows) {
  BlockSumsArgs args;
  args.batch = args.heads = 1, args.blocks = 1, args.rows = 1;
  args.x.dtype = DType::bf16, args.x.row_stride = 8;
  args.dim = 12;
  EXPECT_EQ(block_sums_cuda(args, {}).code, StatusCode::unsupported);
  args.dim = 264;
  EXPECT_EQ(block_sums_cuda(args, {}).code, StatusCode::unsupported);
  args.dim = 8, args.x.row_stride = 9;
  EXPECT_EQ(block_sums_cuda(args, {}).code, StatusCode::unsupported);
}

// ---- Linear attention ---------------------------------------------------------------------------

struct LinearProblem {
  int batch = 2, heads = 3, len = 500, dim = 128, most = 128;
  LinearFeature feature = LinearFeature::relu;
  bool sorted = false, projected = false, added = false;

  size_t numbers() const { return static_cast<size_t>(batch) * heads * len * dim; }
  template <typename View, typename Pointer>
  View rows(Pointer data) const {  // tokens before heads
    View out;
    out.data = data, out.dtype = DType::bf16;
    out.batch_stride = int64_t{len} * heads * dim, out.head_stride = dim;
    out.row_stride = int64_t{heads} * dim;
    return out;
  }
};

// As numbers, of which both zeros are equal.
std::vector<float> values(const std::vector<uint16_t>& bits) {
  std::vector<float> out;
  for (const uint16_t x : bits) out.push_back(number(x));
  return out;
}

// The largest difference over the largest number.
template <typename T>
double apart(const std::vector<T>& a, const std::vector<T>& b) {
  double most = 0, largest = 1e-30;
  for (size_t i = 0; i < a.size(); ++i) {
    const double difference = std::abs(double{number(a[i])} - double{number(b[i])});
    most = difference <= most ? most : difference;  // NaN stays
    largest = std::max(largest, std::abs(double{number(a[i])}));
  }
  return most / largest;
}

class Sm80Linear : public Sm80Planning {
 protected:
  void check_states(const LinearProblem& p, bool exact) {
    Both<uint16_t> k(as_bf16(exact ? integers(p.numbers(), -1, 1) : normals(p.numbers())));
    Both<uint16_t> v(as_bf16(exact ? integers(p.numbers(), -1, 1) : normals(p.numbers())));
    Both<int32_t> ends(offsets(p.len, p.most)), order(orders(p));
    const auto blocks = static_cast<int64_t>(ends.host.size()) - 1;
    const auto count = static_cast<size_t>(p.batch * p.heads * blocks * p.dim);
    Both<uint16_t> states(std::vector<uint16_t>(count * p.dim, 0x7fc0));
    Both<float> totals(std::vector<float>(count, NAN));
    const auto args = [&](bool device) {
      LinearStatesArgs out;
      out.batch = p.batch, out.heads = p.heads, out.dim = p.dim, out.feature = p.feature;
      out.k = p.rows<HeadRows>(device ? k.device.data() : k.host.data());
      out.v = p.rows<HeadRows>(device ? v.device.data() : v.host.data());
      out.keys = blocks_of(p, ends, order, device);
      out.states = device ? states.device.data() : states.host.data();
      out.totals = device ? totals.device.data() : totals.host.data();
      return out;
    };
    linear_states_cpu(args(false));
    ASSERT_TRUE(linear_states_cuda(args(true), {}).ok());
    if (exact) {
      EXPECT_EQ(values(states.device.read()), values(states.host)) << what(p);
      EXPECT_EQ(totals.device.read(), totals.host) << what(p);
    } else {
      EXPECT_LE(apart(states.device.read(), states.host), 8e-3) << what(p);
      EXPECT_LE(apart(totals.device.read(), totals.host), 2e-3) << what(p);
    }
  }

  void check_out(const LinearProblem& p, bool exact) {
    std::vector<float> numbers = exact ? integers(p.numbers(), 0, 1) : normals(p.numbers());
    for (size_t i = 0; exact && i < numbers.size(); i += static_cast<size_t>(p.dim)) {
      numbers[i] = static_cast<float>(1 << i / p.dim % 3);  // what is divided by
    }
    Both<uint16_t> q(as_bf16(numbers));
    Both<int32_t> ends(offsets(p.len, p.most)), order(orders(p));
    const auto blocks = static_cast<int64_t>(ends.host.size()) - 1;
    const auto count = static_cast<size_t>(p.batch * p.heads * blocks * p.dim);
    const auto matrix = static_cast<size_t>(p.dim * p.dim);
    Both<uint16_t> states(as_bf16(exact ? integers(count * p.dim, -1, 1) : normals(count * p.dim)));
    std::vector<float> sums(count, 0);
    for (size_t i = 0; i < count; ++i) {
      sums[i] = exact ? (i % p.dim == 0 && i / p.dim % 5 != 0) : 1 + std::abs(normals(1)[0]);
    }
    Both<float> totals(sums);
    Both<uint16_t> weight(as_bf16(exact ? integers(matrix, -1, 1) : normals(matrix)));
    Both<float> bias(integers(static_cast<size_t>(p.dim), -3, 3));
    Both<uint16_t> added(as_bf16(exact ? integers(p.numbers(), -9, 9) : normals(p.numbers())));
    Both<uint16_t> out(std::vector<uint16_t>(p.numbers(), 0x7fc0));
    const auto args = [&](bool device) {
      LinearOutArgs to;
      to.batch = p.batch, to.heads = p.heads, to.dim = p.dim, to.feature = p.feature;
      to.q = p.rows<HeadRows>(device ? q.device.data() : q.host.data());
      to.queries = blocks_of(p, ends, order, device);
      to.states = device ? states.device.data() : states.host.data();
      to.totals = device ? totals.device.data() : totals.host.data();
      to.epsilon = exact ? 0 : 1e-5f;
      if (p.projected) {
        to.weight = device ? weight.device.data() : weight.host.data();
        to.bias = device ? bias.device.data() : bias.host.data();
      }
      if (p.added) to.added = p.rows<HeadRows>(device ? added.device.data() : added.host.data());
      to.out = p.rows<MutableHeadRows>(device ? out.device.data() : out.host.data());
      return to;
    };
    linear_out_cpu(args(false));
    ASSERT_TRUE(linear_out_cuda(args(true), {}).ok());
    if (exact) {
      EXPECT_EQ(values(out.device.read()), values(out.host)) << what(p);
    } else {
      EXPECT_LE(apart(out.device.read(), out.host), 1e-2) << what(p);
    }
  }

  void for_each_problem(const std::function<void(const LinearProblem&)>& f) {
    for (const int dim : {64, 128}) {
      for (const int most : {16, 50, 64, 65, 128}) {
        for (const bool all : {false, true}) {
          f({.dim = dim, .most = most, .sorted = all, .projected = all, .added = most != 65});
        }
      }
    }
  }

 private:
  std::vector<int32_t> orders(const LinearProblem& p) {
    std::vector<int32_t> out;
    for (int head = 0; head < p.heads; ++head) {
      const std::vector<int32_t> own = shuffled(p.len);
      out.insert(out.end(), own.begin(), own.end());
    }
    return out;
  }
  static LinearBlocks blocks_of(const LinearProblem& p, const Both<int32_t>& ends,
                                const Both<int32_t>& order, bool device) {
    LinearBlocks out;
    out.offsets = device ? ends.device.data() : ends.host.data();
    out.blocks = static_cast<int64_t>(ends.host.size()) - 1;
    out.len = p.len, out.most_rows = p.most;
    if (p.sorted) out.order = {device ? order.device.data() : order.host.data(), 0, p.len};
    return out;
  }
  static std::string what(const LinearProblem& p) {
    return "dim " + std::to_string(p.dim) + ", blocks up to " + std::to_string(p.most) +
           (p.sorted ? ", sorted" : "") + (p.projected ? ", projected" : "");
  }
};

TEST_F(Sm80Linear, PutsEveryNumberOfAStateInItsPlace) {
  for_each_problem([&](const LinearProblem& p) { check_states(p, /*exact=*/true); });
}

TEST_F(Sm80Linear, PutsEveryNumberOfAResultInItsPlace) {
  for_each_problem([&](const LinearProblem& p) { check_out(p, /*exact=*/true); });
}

TEST_F(Sm80Linear, KnowsAllFeatures) {
  for (const LinearFeature feature :
       {LinearFeature::softmax, LinearFeature::elu_plus_one, LinearFeature::relu}) {
    for_each_problem([&](LinearProblem p) {
      p.feature = feature;
      check_states(p, /*exact=*/false);
      check_out(p, /*exact=*/false);
    });
  }
}

TEST_F(Sm80Linear, RefusesOtherShapes) {
  LinearStatesArgs args;
  args.batch = args.heads = args.keys.blocks = 1;
  args.dim = 96;
  EXPECT_EQ(linear_states_cuda(args, {}).code, StatusCode::unsupported);
  args.dim = 128, args.keys.most_rows = 129;
  EXPECT_EQ(linear_states_cuda(args, {}).code, StatusCode::unsupported);
}

}  // namespace
}  // namespace fovea::kernels
