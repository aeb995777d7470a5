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
#include "kernels/attention/mean_scores.h"
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

// ---- Means, their products and the choice -------------------------------------------------------

struct MeansProblem {
  int heads = 3, kv_heads = 3, len = 700, dim = 128, q_blocks = 35;
  bool sorted = false, tokens_first = true;
};

class Sm80Means : public Sm80Planning {
 protected:
  // Both sides in one launch, against the twin.
  template <typename T>
  void check_means(const MeansProblem& p, DType type, const std::vector<T> (&x)[2],
                   const std::vector<int32_t> (&ends)[2]) {
    const auto numbers = [&](int side, int heads) {
      return static_cast<int64_t>(ends[side].size() - 1) * 2 * heads * p.dim;
    };
    Both<int32_t> order(shuffled(p.len)), both_ends[2] = {Both(ends[0]), Both(ends[1])};
    Both<T> rows[2] = {Both(x[0]), Both(x[1])};
    Both<float> means[2] = {{numbers(0, p.heads), NAN}, {numbers(1, p.kv_heads), NAN}};
    const auto args = [&](bool device) {
      BlockMeansArgs out;
      out.batch = 2, out.dim = p.dim, out.num_sides = 2;
      for (int i = 0; i < 2; ++i) {
        const int64_t heads = i == 0 ? p.heads : p.kv_heads;
        BlockMeansArgs::Side& side = out.sides[i];
        side.heads = heads, side.rows = p.len;
        side.blocks = static_cast<int64_t>(ends[i].size()) - 1;
        side.x = {rows[i].on(device), type, heads * p.len * p.dim,
                  p.tokens_first ? p.dim : p.len * p.dim, p.tokens_first ? heads * p.dim : p.dim};
        if (p.sorted) side.order = order.on(device);
        side.offsets = both_ends[i].on(device), side.means = means[i].on(device);
      }
      return out;
    };
    block_means_cpu(args(false));
    ASSERT_TRUE(block_means_cuda(args(true), {}).ok());
    for (const Both<float>& own : means) {
      EXPECT_EQ(own.device.read(), own.host) << p.dim << " channels, " << p.heads << " heads";
    }
  }

  // Changes the first block that is not empty so that the mean of all is 0 or 1: exact.
  static void make_centre_whole(std::vector<float>& k, const std::vector<int32_t>& ends, int dim) {
    const size_t blocks = ends.size() - 1, of_head = blocks * static_cast<size_t>(dim);
    for (size_t head = 0; head < k.size() / of_head; ++head) {
      for (int c = 0; c < dim; ++c) {
        float* const own = k.data() + head * of_head + c;
        float sum = 0, count = 0;
        for (size_t j = 0; j < blocks; ++j) {
          if (ends[j + 1] > ends[j]) sum += own[j * static_cast<size_t>(dim)], ++count;
        }
        own[0] += (c % 2 == 0 ? 0 : count) - sum;
      }
    }
  }

  void check_scores(const MeansProblem& p, const std::vector<float> (&means)[2],
                    const std::vector<int32_t>& ends, int32_t least) {
    const int64_t kv_blocks = static_cast<int64_t>(ends.size()) - 1, q_blocks = p.q_blocks;
    Both<float> q(means[0]), k(means[1]), scores(2 * p.heads * q_blocks * kv_blocks, NAN);
    Both<int32_t> both_ends(ends);
    Both<uint8_t> chosen(2 * p.heads * q_blocks * kv_blocks, 2);
    const auto args = [&](bool device) {
      MeanScoresArgs out;
      out.batch = 2, out.heads = p.heads, out.kv_heads = p.kv_heads, out.dim = p.dim;
      out.q_blocks = q_blocks, out.kv_blocks = kv_blocks;
      out.q = q.on(device), out.k = k.on(device), out.kv_offsets = both_ends.on(device);
      out.scale = 0.25f, out.least = least;
      out.scores = scores.on(device), out.chosen = reinterpret_cast<bool*>(chosen.on(device));
      return out;
    };
    const std::string what = std::to_string(p.dim) + " channels, " + std::to_string(kv_blocks) +
                             " keys, " + std::to_string(least) + " chosen";
    mean_scores_cpu(args(false));
    ASSERT_TRUE(mean_scores_cuda(args(true), {}).ok());
    EXPECT_EQ(scores.device.read(), scores.host) << what;
    EXPECT_EQ(chosen.device.read(), chosen.host) << what;
    const DeviceArray<uint8_t> alone(std::vector<uint8_t>(chosen.host.size(), 2));
    MeanScoresArgs choice = args(true);
    choice.scores = nullptr, choice.chosen = reinterpret_cast<bool*>(alone.data());
    ASSERT_TRUE(mean_scores_cuda(choice, {}).ok());
    EXPECT_EQ(alone.read(), chosen.host) << what;
  }

  // Of any numbers, whose sums depend on their order.
  void check_repeats(int dim) {
    const MeansProblem p{.dim = dim};
    const std::vector<int32_t> ends = offsets(p.len, 40);
    const auto blocks = static_cast<int64_t>(ends.size()) - 1;
    const DeviceArray<int32_t> on_ends(ends);
    const DeviceArray<uint16_t> x(as_bf16(normals(static_cast<size_t>(3 * p.len * dim))));
    const DeviceArray<float> means(std::vector<float>(static_cast<size_t>(3 * blocks * dim), NAN));
    const DeviceArray<float> scores(
        std::vector<float>(static_cast<size_t>(3 * blocks * blocks), NAN));
    BlockMeansArgs sums;
    sums.batch = 1, sums.dim = dim;
    sums.sides[0] = {.heads = 3,
                     .rows = p.len,
                     .x = {x.data(), DType::bf16, 0, dim, 3 * dim},
                     .offsets = on_ends.data(),
                     .blocks = blocks,
                     .means = means.data()};
    MeanScoresArgs args;
    args.batch = 1, args.heads = args.kv_heads = 3, args.dim = dim;
    args.q_blocks = args.kv_blocks = blocks;
    args.q = args.k = means.data(), args.kv_offsets = on_ends.data(), args.scores = scores.data();
    expect_same_every_time([&] {
      EXPECT_TRUE(block_means_cuda(sums, {}).ok() && mean_scores_cuda(args, {}).ok());
      return scores.read();
    });
  }
};

// Sums of small integers are exact.
TEST_F(Sm80Means, AreTheTwins) {
  for (const int dim : {8, 40, 64, 128, 256}) {
    for (const bool other : {false, true}) {
      const MeansProblem p{
          .heads = other ? 6 : 3, .dim = dim, .sorted = other, .tokens_first = !other};
      const std::vector<int32_t> ends[2] = {offsets(p.len, 90), offsets(p.len, 20)};
      const auto count = [&](int heads) { return static_cast<size_t>(2 * heads) * p.len * dim; };
      const std::vector<float> wide[2] = {integers(count(p.heads), -9, 9),
                                          integers(count(p.kv_heads), -9, 9)};
      check_means(p, DType::f32, wide, ends);
      const std::vector<uint16_t> half[2] = {as_bf16(wide[0]), as_bf16(wide[1])};
      check_means(p, DType::bf16, half, ends);
    }
  }
}

TEST_F(Sm80Means, ChooseAsTheTwinDoes) {
  for (const int dim : {8, 40, 128, 256}) {
    for (const int kv_blocks : {1, 31, 255, 256, 300, 700, 1400}) {
      if (kv_blocks > 300 && dim != 40) continue;
      const MeansProblem p{.heads = 4, .kv_heads = dim == 128 ? 2 : 4, .dim = dim};
      std::vector<int32_t> ends = {0};
      for (int j = 0; j < kv_blocks; ++j) ends.push_back(ends.back() + (j % 5 == 4 ? 0 : 2));
      std::vector<float> means[2] = {
          integers(static_cast<size_t>(2 * p.heads * p.q_blocks * dim), -3, 3),
          integers(static_cast<size_t>(2 * p.kv_heads * kv_blocks * dim), -3, 3)};
      make_centre_whole(means[1], ends, dim);
      for (const int32_t least : {1, kv_blocks / 20, kv_blocks}) {
        check_scores(p, means, ends, least);
      }
    }
  }
}

TEST_F(Sm80Means, GiveTheSameBitsEachTime) {
  check_repeats(64);
  check_repeats(128);
}

TEST_F(Sm80Means, RefuseWhatTheyDoNotTake) {
  BlockMeansArgs means;
  means.batch = 1, means.dim = 12;
  means.sides[0].x.dtype = DType::bf16;
  means.sides[0].heads = means.sides[0].blocks = means.sides[0].rows = 1;
  EXPECT_EQ(block_means_cuda(means, {}).code, StatusCode::unsupported);
  MeanScoresArgs args;
  args.batch = args.heads = args.kv_heads = args.q_blocks = 1;
  args.dim = 128, args.kv_blocks = 1 << 20;
  EXPECT_EQ(mean_scores_cuda(args, {}).code, StatusCode::unsupported);
  args.dim = 264, args.kv_blocks = 1;
  EXPECT_EQ(mean_scores_cuda(args, {}).code, StatusCode::unsupported);
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
    const std::vector<float> shift = integers(static_cast<size_t>(p.dim), -3, 3);
    Both<float> bias(shift);
    Both<uint16_t> half_bias(as_bf16(shift));
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
        to.bias = bias.on(device);
        if (p.most < 65) to.bias = half_bias.on(device), to.bias_type = DType::bf16;
      }
      if (p.added) to.added = p.rows<HeadRows>(device ? added.device.data() : added.host.data());
      to.out = p.rows<MutableHeadRows>(device ? out.device.data() : out.host.data());
      return to;
    };
    const std::vector<uint16_t> untouched = out.host;
    linear_out_cpu(args(false));
    for (const auto run : {&linear_out_cuda, &linear_out_sm80}) {
      const std::string name = what(p) + (run == &linear_out_sm80 ? ", of 8.0" : "");
      const DeviceArray<uint16_t> own(untouched);
      LinearOutArgs to = args(true);
      to.out = p.rows<MutableHeadRows>(own.data());
      ASSERT_TRUE(run(to, {}).ok());
      if (exact) {
        EXPECT_EQ(values(own.read()), values(out.host)) << name;
      } else {
        EXPECT_LE(apart(own.read(), out.host), 1e-2) << name;
      }
    }
  }

  void check_taken(int dim, int64_t rows, int64_t blocks, bool is_shared) {
    constexpr int64_t kBatch = 2, kHeads = 3;
    std::vector<uint8_t> drawn;
    const int64_t maps = is_shared ? kHeads : kBatch * kHeads;
    for (const float x : integers(static_cast<size_t>(maps * rows * blocks), 0, 2)) {
      drawn.push_back(static_cast<uint8_t>(x));
    }
    Both<uint8_t> classes(drawn);
    Both<float> totals(integers(static_cast<size_t>(kBatch * kHeads * blocks * dim), -9, 9));
    Both<uint16_t> factors(kBatch * kHeads * rows * blocks, 0x7fc0);
    Both<float> sums(kBatch * kHeads * rows * dim, NAN);
    const auto args = [&](bool device) {
      LinearTakenArgs out;
      out.batch = kBatch, out.heads = kHeads, out.dim = dim, out.rows = rows, out.blocks = blocks;
      out.classes = classes.on(device), out.taken = 1;
      out.head_stride = rows * blocks, out.batch_stride = is_shared ? 0 : kHeads * rows * blocks;
      out.totals = totals.on(device);
      out.factors = factors.on(device), out.sums = sums.on(device);
      return out;
    };
    linear_taken_cpu(args(false));
    ASSERT_TRUE(linear_taken_cuda(args(true), {}).ok());
    EXPECT_EQ(factors.device.read(), factors.host) << rows << " x " << blocks;
    EXPECT_EQ(sums.device.read(), sums.host) << rows << " x " << blocks << ", dim " << dim;
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
           (p.sorted ? ", sorted" : "") + (p.projected ? ", projected" : "") +
           (p.added ? ", added" : "");
  }
};

TEST_F(Sm80Linear, PutsEveryNumberOfAStateInItsPlace) {
  for_each_problem([&](const LinearProblem& p) { check_states(p, /*exact=*/true); });
}

TEST_F(Sm80Linear, PutsEveryNumberOfAResultInItsPlace) {
  for_each_problem([&](const LinearProblem& p) { check_out(p, /*exact=*/true); });
}

// Several for each block of threads, with all that a result may be made of.
TEST_F(Sm80Linear, GoesThroughManyBlocksOfQueries) {
  for (const int dim : {64, 128}) {
    for (const int most : {64, 128}) {
      for (const bool sorted : {false, true}) {
        check_out({.heads = 4,
                   .len = static_cast<int>(on_gpu(5000, 900)),
                   .dim = dim,
                   .most = most,
                   .sorted = sorted,
                   .projected = !sorted,
                   .added = sorted || most == 64},
                  /*exact=*/true);
      }
    }
  }
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

TEST_F(Sm80Linear, AddsUpTotalsOfBlocksThatAreTaken) {
  for (const int dim : {64, 128}) {
    for (const int64_t rows : {1, 16, 37}) {
      for (const int64_t blocks : {1, 31, 256, 300, 600}) {
        check_taken(dim, rows, blocks, rows == 16);
      }
    }
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
