// A round of k-means on a GPU, step by step beside the CPU. Small integers give exact results, so
// that every misplaced number shows.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "kernels/attention/kmeans.h"
#include "tests/kernels/attention_problem.h"
#include "tests/kernels/gpu_test.h"

namespace fovea::kernels {
namespace {

struct Shape {
  int batch = 1, heads = 2, tokens = 300, clusters = 7, dim = 128;
  DType type = DType::bf16;
  std::vector<int64_t> valid_len = {};

  int64_t all_heads() const { return int64_t{batch} * heads; }
  std::string name() const {
    return std::to_string(tokens) + " x " + std::to_string(dim) + " tokens, " +
           std::to_string(clusters) + " clusters" + (type == DType::f16 ? ", fp16" : "") +
           (valid_len.empty() ? "" : ", padded");
  }
};

float number(DType type, uint16_t bits) {
  return static_cast<float>(attention_test::value_of(type, bits));
}

// What the steps read and write, on both sides. Tokens lie before heads.
struct Problem {
  Shape shape;
  KMeansArgs sizes;
  Both<uint16_t> x, factors;
  Both<float> centroid, half, sum;
  Both<int32_t> label, order, first_piece;
  Both<int64_t> valid_len, count, valid;
  Both<ClusterPiece> pieces;

  static KMeansArgs sizes_of(const Shape& s) {
    KMeansArgs out;
    out.batch = s.batch, out.heads = s.heads, out.tokens = s.tokens;
    out.clusters = s.clusters, out.dim = s.dim;
    return out;
  }
  Problem(const Shape& s, const std::vector<float>& tokens, const std::vector<float>& centroids)
      : shape(s),
        sizes(sizes_of(s)),
        x(bits(s, tokens)),
        factors(s.all_heads() * sizes.places() * 2 * s.dim, 0x7fff),
        centroid(centroids),
        half(s.all_heads() * sizes.places(), NAN),
        sum(s.all_heads() * sizes.most_pieces() * s.dim, -1),
        label(s.all_heads() * s.tokens, -1),
        order(s.all_heads() * s.tokens, -1),
        first_piece(s.all_heads() * (s.clusters + 1), -1),
        valid_len(s.valid_len),
        count(s.all_heads() * s.clusters, -1),
        valid(s.all_heads() * s.clusters, -1),
        pieces(s.all_heads() * sizes.most_pieces(), ClusterPiece{-1, -1}) {}

  static std::vector<uint16_t> bits(const Shape& s, const std::vector<float>& tokens) {
    std::vector<uint16_t> out;
    for (const float value : tokens) out.push_back(attention_test::bits_of(s.type, value));
    return out;
  }
  KMeansArgs args(bool device) {
    KMeansArgs out = sizes;
    const int64_t row = int64_t{shape.heads} * shape.dim;
    out.x = {x.on(device), shape.type, shape.tokens * row, shape.dim, row};
    if (!shape.valid_len.empty()) out.valid_len = valid_len.on(device);
    out.factors = factors.on(device), out.centroid = centroid.on(device);
    out.half = half.on(device), out.sum = sum.on(device);
    out.label = label.on(device), out.order = order.on(device);
    out.count = count.on(device), out.valid = valid.on(device);
    out.pieces = pieces.on(device), out.first_piece = first_piece.on(device);
    return out;
  }
  // Element by element of [heads, tokens, dim].
  float token(int64_t head, int64_t number_of, int64_t channel) const {
    const int64_t item = head / shape.heads;
    const int64_t row = (item * shape.tokens + number_of) * shape.heads + head % shape.heads;
    return number(shape.type, x.host[static_cast<size_t>(row * shape.dim + channel)]);
  }
};

class Sm80KMeans : public Sm80Test {
 protected:
  std::vector<float> integers(int64_t count, int largest) {
    std::uniform_int_distribution<int> draw(-largest, largest);
    std::vector<float> out(static_cast<size_t>(count));
    for (float& x : out) x = static_cast<float>(draw(random_));
    return out;
  }
  std::vector<float> normals(int64_t count) {
    std::normal_distribution<float> draw;
    std::vector<float> out(static_cast<size_t>(count));
    for (float& x : out) x = draw(random_);
    return out;
  }
  Problem exact(const Shape& s) {
    std::vector<float> tokens = integers(s.all_heads() * s.tokens * s.dim, 3);
    spoil_padding(s, tokens);
    return Problem(s, tokens, integers(s.all_heads() * s.clusters * s.dim, 3));
  }
  // Padding may hold anything.
  static void spoil_padding(const Shape& s, std::vector<float>& tokens) {
    const int64_t row = int64_t{s.heads} * s.dim;
    for (size_t item = 0; item < s.valid_len.size(); ++item) {
      const auto first = static_cast<int64_t>(item) * s.tokens +
                         std::min<int64_t>(s.tokens, std::max<int64_t>(s.valid_len[item], 0));
      std::fill(tokens.begin() + first * row,
                tokens.begin() + (static_cast<int64_t>(item) + 1) * s.tokens * row, NAN);
    }
  }

  std::mt19937 random_{11};
};

// As numbers, of which both zeros are equal.
std::vector<float> values(DType type, const std::vector<uint16_t>& bits) {
  std::vector<float> out;
  for (const uint16_t x : bits) out.push_back(number(type, x));
  return out;
}

void expect_near(const std::vector<float>& got, const std::vector<float>& expected,
                 const std::string& what) {
  float largest = 1e-30f;
  for (const float x : expected) largest = std::isinf(x) ? largest : std::max(largest, std::abs(x));
  for (size_t i = 0; i < got.size(); ++i) {
    if (std::isinf(expected[i])) {
      ASSERT_EQ(got[i], expected[i]) << what << " at " << i;
    } else {
      ASSERT_NEAR(got[i], expected[i], 1e-5 * largest) << what << " at " << i;
    }
  }
}

// ---- Factors ------------------------------------------------------------------------------------

TEST_F(Sm80KMeans, SplitsCentroids) {
  for (const DType type : {DType::bf16, DType::f16}) {
    for (const int dim : {64, 128}) {
      for (const int clusters : {1, 64, 131}) {
        const Shape s{.clusters = clusters, .dim = dim, .type = type};
        Problem p(s, integers(s.all_heads() * s.tokens * dim, 1),
                  normals(s.all_heads() * clusters * dim));
        kmeans_factors_cpu(p.args(false));
        ASSERT_TRUE(kmeans_factors_cuda(p.args(true), {}).ok());
        EXPECT_EQ(values(type, p.factors.device.read()), values(type, p.factors.host)) << s.name();
        expect_near(p.half.device.read(), p.half.host, s.name());
        EXPECT_EQ(p.centroid.device.read(), p.centroid.host) << s.name();
        // Both parts together are the centroid to 16 bits.
        for (int c = 0; c < dim; ++c) {
          const auto at = static_cast<size_t>(kmeans_place(c));
          const float sum = number(type, p.factors.host[at]) +
                            number(type, p.factors.host[static_cast<size_t>(dim) + at]);
          EXPECT_NEAR(sum, p.centroid.host[static_cast<size_t>(c)], 4e-5) << s.name();
        }
      }
    }
  }
}

TEST_F(Sm80KMeans, PutsEachChannelInAPlaceOfItsOwn) {
  std::vector<int64_t> places;
  for (int64_t c = 0; c < 128; ++c) places.push_back(kmeans_place(c));
  std::sort(places.begin(), places.end());
  for (int64_t c = 0; c < 128; ++c) EXPECT_EQ(places[static_cast<size_t>(c)], c);
}

// ---- Labels -------------------------------------------------------------------------------------

TEST_F(Sm80KMeans, LabelsAsTheCpuDoes) {
  std::vector<Shape> shapes = {
      {.batch = 2, .clusters = 7, .valid_len = {300, 101}},
      {.tokens = 1, .clusters = 1},
      {.tokens = 5, .clusters = 70, .dim = 64},
      {.tokens = 256, .clusters = 128, .type = DType::f16},
      {.tokens = 70, .clusters = 431, .dim = 64, .type = DType::f16},
      {.heads = 1, .tokens = 257, .clusters = 431},
      {.heads = 1, .tokens = 40, .clusters = 1000},
      {.batch = 3, .tokens = 90, .clusters = 20, .valid_len = {0, 1000, -3}}};
  if (on_gpu(1, 0)) shapes.push_back({.batch = 2, .heads = 3, .tokens = 5000, .clusters = 431});
  for (const Shape& s : shapes) {
    Problem p = exact(s);
    kmeans_factors_cpu(p.args(false));
    kmeans_labels_cpu(p.args(false));
    ASSERT_TRUE(kmeans_factors_cuda(p.args(true), {}).ok());
    ASSERT_TRUE(kmeans_labels_cuda(p.args(true), {}).ok());
    EXPECT_EQ(p.label.device.read(), p.label.host) << s.name();
  }
}

// All centroids are there twice, and many of the first half too.
TEST_F(Sm80KMeans, GivesEqualOnesToTheFirst) {
  for (const int dim : {64, 128}) {
    const Shape s{.heads = 1, .tokens = 200, .clusters = 150, .dim = dim};
    std::vector<float> centroids = integers(int64_t{75} * dim, 1);
    std::copy_n(centroids.begin(), 9 * dim, centroids.begin() + 31 * dim);
    centroids.insert(centroids.end(), centroids.begin(), centroids.end());
    Problem p(s, integers(int64_t{200} * dim, 1), centroids);
    kmeans_factors_cpu(p.args(false));
    kmeans_labels_cpu(p.args(false));
    ASSERT_TRUE(kmeans_factors_cuda(p.args(true), {}).ok());
    ASSERT_TRUE(kmeans_labels_cuda(p.args(true), {}).ok());
    const std::vector<int32_t> got = p.label.device.read();
    EXPECT_EQ(got, p.label.host);
    for (const int32_t label : got) EXPECT_LT(label, 75);
    for (const int32_t label : got) EXPECT_FALSE(label >= 31 && label < 40);
  }
}

// Two centroids are near, and apart by what is only in their second parts.
TEST_F(Sm80KMeans, LooksAtBothPartsOfACentroid) {
  for (const int dim : {64, 128}) {
    for (int channel = 0; channel < dim; channel += 7) {
      const Shape s{.heads = 1, .tokens = 40, .clusters = 80, .dim = dim};
      const std::vector<float> tokens = integers(int64_t{s.tokens} * dim, 1);
      std::vector<float> centroids(static_cast<size_t>(s.clusters * dim), 8.0f);
      const std::vector<float> near = integers(dim, 1);
      for (const int cluster : {3, 70}) {
        std::copy(near.begin(), near.end(), centroids.begin() + cluster * dim);
        centroids[static_cast<size_t>(cluster * dim + channel)] = cluster == 3 ? 0.5f : 0x1.008p-1f;
      }
      Problem p(s, tokens, centroids);
      ASSERT_TRUE(kmeans_factors_cuda(p.args(true), {}).ok());
      ASSERT_TRUE(kmeans_labels_cuda(p.args(true), {}).ok());
      const std::vector<int32_t> got = p.label.device.read();
      for (int64_t t = 0; t < s.tokens; ++t) {
        const int expected = p.token(0, t, channel) > 0.5f ? 70 : 3;
        ASSERT_EQ(got[static_cast<size_t>(t)], expected) << "channel " << channel << " of " << dim;
      }
    }
  }
}

// Of numbers that are not exact: no other centroid is nearer by more than rounding.
TEST_F(Sm80KMeans, FindsTheNearestOfAnyNumbers) {
  for (const DType type : {DType::bf16, DType::f16}) {
    for (const int dim : {64, 128}) {
      const Shape s{.heads = 1, .tokens = 150, .clusters = 90, .dim = dim, .type = type};
      Problem p(s, normals(int64_t{s.tokens} * dim), normals(int64_t{s.clusters} * dim));
      ASSERT_TRUE(kmeans_factors_cuda(p.args(true), {}).ok());
      ASSERT_TRUE(kmeans_labels_cuda(p.args(true), {}).ok());
      const std::vector<int32_t> got = p.label.device.read();
      for (int64_t t = 0; t < s.tokens; ++t) {
        std::vector<double> distance(static_cast<size_t>(s.clusters), 0);
        for (int64_t i = 0; i < s.clusters * dim; ++i) {
          const double apart = double{p.token(0, t, i % dim)} - p.centroid.host[i];
          distance[static_cast<size_t>(i / dim)] += apart * apart;
        }
        const double least = *std::min_element(distance.begin(), distance.end());
        ASSERT_LE(distance[static_cast<size_t>(got[static_cast<size_t>(t)])], least + 1e-3)
            << s.name() << ", token " << t;
      }
    }
  }
}

// ---- Order --------------------------------------------------------------------------------------

void expect_same_order(Problem& p, const std::vector<int32_t>& labels) {
  p.label.host = labels;
  const DeviceArray<int32_t> on_device(labels);
  KMeansArgs args = p.args(true);
  args.label = on_device.data();
  kmeans_sort_cpu(p.args(false));
  ASSERT_TRUE(kmeans_sort_cuda(args, {}).ok());
  EXPECT_EQ(p.order.device.read(), p.order.host) << p.shape.name();
  EXPECT_EQ(p.count.device.read(), p.count.host) << p.shape.name();
  EXPECT_EQ(p.valid.device.read(), p.valid.host) << p.shape.name();
  EXPECT_EQ(p.first_piece.device.read(), p.first_piece.host) << p.shape.name();
  EXPECT_TRUE(p.pieces.device.read() == p.pieces.host) << p.shape.name();
}

TEST_F(Sm80KMeans, SortsAsTheCpuDoes) {
  for (const int tokens : {1, 31, 33, 700, 2100}) {
    for (const int clusters : {1, 7, 128, 431, 1000, 6144}) {
      Shape s{.batch = 2, .heads = 2, .tokens = tokens, .clusters = clusters, .dim = 64};
      if (tokens == 700) s.valid_len = {699, 0};
      if (tokens == 33) s.valid_len = {-1, 17};
      Problem p(s, std::vector<float>(static_cast<size_t>(4 * tokens * 64)),
                std::vector<float>(static_cast<size_t>(4 * clusters * 64)));
      std::uniform_int_distribution<int> draw(0, clusters - 1);
      std::vector<int32_t> labels(static_cast<size_t>(4 * tokens));
      for (int32_t& label : labels) label = draw(random_);
      expect_same_order(p, labels);
      // All tokens in one of them, a few elsewhere.
      std::fill(labels.begin(), labels.end(), clusters / 2);
      for (size_t i = 0; i < labels.size(); i += 57) labels[i] = clusters - 1;
      expect_same_order(p, labels);
    }
  }
}

// ---- Sums ---------------------------------------------------------------------------------------

TEST_F(Sm80KMeans, MakesMeansOfClusters) {
  for (const Shape& s :
       {Shape{.batch = 2, .tokens = 1300, .clusters = 9, .valid_len = {1300, 411}},
        Shape{.tokens = 600, .clusters = 431, .dim = 64, .type = DType::f16},
        Shape{.tokens = 1100, .clusters = 1, .type = DType::f16},
        Shape{.batch = 2, .tokens = 40, .clusters = 100, .dim = 64, .valid_len = {0, 3}}}) {
    Problem p = exact(s);
    std::uniform_int_distribution<int> draw(0, s.clusters - 1);
    for (int32_t& label : p.label.host) label = std::max(draw(random_) - 3, 0);  // 0 is large
    const DeviceArray<int32_t> labels(p.label.host);
    const std::vector<float> before = p.centroid.host;
    KMeansArgs own = p.args(false), args = p.args(true);
    args.label = labels.data();
    own.has_sums = args.has_sums = true;
    kmeans_sort_cpu(own);
    kmeans_sums_cpu(own);
    kmeans_factors_cpu(own);
    ASSERT_TRUE(kmeans_sort_cuda(args, {}).ok());
    ASSERT_TRUE(kmeans_sums_cuda(args, {}).ok());
    ASSERT_TRUE(kmeans_factors_cuda(args, {}).ok());
    EXPECT_EQ(p.sum.device.read(), p.sum.host) << s.name();
    const std::vector<float> got = p.centroid.device.read();
    EXPECT_EQ(got, p.centroid.host) << s.name();
    EXPECT_EQ(values(s.type, p.factors.device.read()), values(s.type, p.factors.host)) << s.name();
    expect_near(p.half.device.read(), p.half.host, s.name());
    for (size_t i = 0; i < got.size(); ++i) {
      if (p.valid.host[i / static_cast<size_t>(s.dim)] == 0) {
        ASSERT_EQ(got[i], before[i]) << s.name() << ": an empty cluster moved";
      }
    }
  }
}

// ---- Rounds -------------------------------------------------------------------------------------

TEST_F(Sm80KMeans, GivesTheSameBitsEachTime) {
  const auto tokens = static_cast<int>(on_gpu(20000, 400));
  const Shape s{.tokens = tokens, .clusters = 50, .valid_len = {tokens - 9}};
  std::vector<float> numbers = normals(s.all_heads() * s.tokens * s.dim);
  spoil_padding(s, numbers);
  const std::vector<float> begin = normals(s.all_heads() * s.clusters * s.dim);
  expect_same_every_time([&] {
    Problem p(s, numbers, begin);
    KMeansArgs args = p.args(true);
    EXPECT_TRUE(kmeans_factors_cuda(args, {}).ok());
    args.has_sums = true;
    for (int round = 0; round < 3; ++round) {
      EXPECT_TRUE(kmeans_labels_cuda(args, {}).ok());
      EXPECT_TRUE(kmeans_sort_cuda(args, {}).ok());
      EXPECT_TRUE(kmeans_sums_cuda(args, {}).ok());
      EXPECT_TRUE(kmeans_factors_cuda(args, {}).ok());
    }
    const std::vector<float> got = p.centroid.device.read();
    EXPECT_TRUE(std::all_of(got.begin(), got.end(), [](float x) { return std::isfinite(x); }));
    EXPECT_NE(got, begin);
    return got;
  });
}

TEST_F(Sm80KMeans, RefusesOtherShapes) {
  KMeansArgs args;
  args.batch = args.heads = args.tokens = args.clusters = 1;
  args.dim = 96, args.x.dtype = DType::bf16;
  EXPECT_EQ(kmeans_labels_cuda(args, {}).code, StatusCode::unsupported);
  args.dim = 64, args.clusters = 6145;
  EXPECT_EQ(kmeans_sort_cuda(args, {}).code, StatusCode::unsupported);
  args.clusters = 1, args.x.row_stride = 68;
  EXPECT_EQ(kmeans_sums_cuda(args, {}).code, StatusCode::unsupported);
  args.x.row_stride = 64, args.x.dtype = DType::f32;
  EXPECT_EQ(kmeans_factors_cuda(args, {}).code, StatusCode::unsupported);
}

}  // namespace
}  // namespace fovea::kernels
