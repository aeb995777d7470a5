// Operands of attention in 8-bit numbers, on the CPU.
#include "kernels/attention/quantize_bytes.h"

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include <gtest/gtest.h>

#include "kernels/common/e4m3.h"
#include "kernels/common/half.h"

namespace fovea::kernels {
namespace {

TEST(E4m3, NumbersAreThoseOfTheFormat) {
  EXPECT_EQ(from_e4m3(0x7e), 448);
  EXPECT_EQ(from_e4m3(0x01), 0x1p-9f);
  EXPECT_EQ(from_e4m3(0x08), 0x1p-6f);
  EXPECT_EQ(from_e4m3(0x38), 1);
  EXPECT_EQ(from_e4m3(0xb9), -1.125f);
  EXPECT_TRUE(std::isnan(from_e4m3(0x7f)));
  for (int bits = 0; bits < 256; ++bits) {
    if ((bits & 0x7f) == 0x7f) continue;
    EXPECT_EQ(to_e4m3(from_e4m3(static_cast<uint8_t>(bits))), bits);
  }
}

TEST(E4m3, RoundsToTheNearestHalvesToEven) {
  for (int bits = 0; bits < 0x7e; ++bits) {
    const float low = from_e4m3(static_cast<uint8_t>(bits));
    const float high = from_e4m3(static_cast<uint8_t>(bits + 1));
    const float middle = (low + high) / 2;
    EXPECT_EQ(to_e4m3(middle), bits % 2 == 0 ? bits : bits + 1) << low;
    EXPECT_EQ(to_e4m3(std::nextafter(middle, low)), bits);
    EXPECT_EQ(to_e4m3(std::nextafter(middle, high)), bits + 1);
    EXPECT_EQ(to_e4m3(-std::nextafter(middle, high)), (bits + 1) | 0x80);
  }
  EXPECT_EQ(to_e4m3(1e9f), 0x7e);
  EXPECT_EQ(to_e4m3(-std::numeric_limits<float>::infinity()), 0xfe);
  EXPECT_EQ(to_e4m3(NAN), 0x7f);
}

/// Random rows [batch, in_heads, in_rows, dim] in bf16, with an order that has gaps.
struct Rows {
  static constexpr int64_t kBatch = 2, kInHeads = 2, kHeads = 4, kInRows = 50, kLen = 70, kDim = 64;
  std::vector<uint16_t> bits;
  std::vector<int32_t> order;
  int32_t fault = 0;
  BytesFrom from;

  explicit Rows(int seed) {
    std::mt19937 random(static_cast<uint32_t>(seed));
    std::normal_distribution<float> normal(1, 3);
    for (int64_t i = 0; i < kBatch * kInHeads * kInRows * kDim; ++i) {
      bits.push_back(from_float<BFloat16>(normal(random)).bits);
    }
    for (int64_t i = 0; i < kBatch * kHeads * kLen; ++i) {
      order.push_back(static_cast<int32_t>(random() % (kInRows + 1)) - 1);
    }
    from.x = {bits.data(), DType::bf16, kInHeads * kInRows * kDim, kInRows * kDim, kDim};
    from.batch = kBatch, from.in_heads = kInHeads, from.in_rows = kInRows, from.dim = kDim;
    from.heads = kHeads, from.len = kLen;
    from.order = {order.data(), kHeads * kLen, kLen};
    from.fault = &fault;
  }
  double at(int64_t of_head, int64_t position, int64_t d) const {
    const int64_t row = order[static_cast<size_t>(of_head * kLen + position)];
    if (row < 0) return 0;
    const int64_t in_head = of_head / kHeads * kInHeads + of_head % kHeads / (kHeads / kInHeads);
    return to_float(BFloat16{bits[static_cast<size_t>((in_head * kInRows + row) * kDim + d)]});
  }
};

class QuantizeBytes : public testing::TestWithParam<ByteFormat> {};

TEST_P(QuantizeBytes, RowsAreTheNearestNumbersOfTheirPiece) {
  Rows rows(1);
  const bool is_e4m3 = GetParam() == ByteFormat::e4m3;
  constexpr int64_t kNumbers = Rows::kBatch * Rows::kHeads * Rows::kLen * Rows::kDim;
  const std::vector<int32_t> offsets = {0, 5, 5, 37, 70};
  for (const int kind : {0, 1, 2}) {  // pieces, heads, rows
    std::vector<uint8_t> out(kNumbers, 0x55);
    std::vector<float> scale(Rows::kBatch * Rows::kHeads * Rows::kLen, -1), largest(8);
    ByteRowsArgs args;
    args.from = rows.from, args.format = GetParam();
    if (kind == 0) args.offsets = offsets.data(), args.num_pieces = 4;
    if (kind == 1) args.largest = largest.data();
    args.out = out.data(), args.scale = scale.data(), args.scale_len = Rows::kLen;
    byte_rows_cpu(args);
    EXPECT_EQ(rows.fault, 0);
    for (int64_t of_head = 0; of_head < Rows::kBatch * Rows::kHeads; ++of_head) {
      for (int64_t position = 0; position < Rows::kLen; ++position) {
        int64_t begin = position, end = position + 1;
        if (kind == 1) begin = 0, end = Rows::kLen;
        if (kind == 0) {
          for (size_t i = 0; i < 4; ++i) {
            if (offsets[i] <= position && position < offsets[i + 1]) {
              begin = offsets[i], end = offsets[i + 1];
            }
          }
        }
        double most = 0;
        for (int64_t i = begin; i < end; ++i) {
          for (int64_t d = 0; d < Rows::kDim; ++d) {
            most = std::max(most, std::abs(rows.at(of_head, i, d)));
          }
        }
        const int64_t at = of_head * Rows::kLen + position;
        const float own = scale[static_cast<size_t>(at)];
        ASSERT_FLOAT_EQ(own, static_cast<float>(most == 0 ? 1 : most / (is_e4m3 ? 448 : 127)));
        for (int64_t d = 0; d < Rows::kDim; ++d) {
          const uint8_t byte = out[static_cast<size_t>(at * Rows::kDim + d)];
          const double units = rows.at(of_head, position, d) / own;
          const double got = is_e4m3 ? from_e4m3(byte) : static_cast<int8_t>(byte);
          const double step =
              is_e4m3
                  ? std::max(0x1p-9, std::exp2(std::floor(std::log2(std::abs(units) + 1e-30))) / 8)
                  : 1;
          // The quotient was rounded to fp32 before.
          ASSERT_LE(std::abs(got - units), step / 2 + std::abs(units) * 1e-7)
              << position << ", " << d;
        }
      }
    }
  }
}

TEST_P(QuantizeBytes, MeansAreTakenAwayOrMultiplied) {
  Rows rows(2);
  std::vector<float> most(8 * Rows::kDim), mean(8 * Rows::kDim);
  ColumnStatsArgs stats;
  stats.from = rows.from, stats.largest = most.data(), stats.mean = mean.data();
  column_stats_cpu(stats);
  std::vector<uint8_t> out(8 * Rows::kLen * Rows::kDim);
  std::vector<float> scale(8 * Rows::kLen), dot(8 * Rows::kLen), other(8 * Rows::kLen);
  ByteRowsArgs args;
  args.from = rows.from, args.format = GetParam();
  args.mean = mean.data(), args.mean_heads = Rows::kHeads;
  args.out = out.data(), args.scale = scale.data(), args.scale_len = Rows::kLen;
  byte_rows_cpu(args);
  args.dot = dot.data(), args.dot_factor = 0.5f, args.scale = other.data();
  byte_rows_cpu(args);
  for (int64_t of_head = 0; of_head < 8; ++of_head) {
    double count = 0;
    std::vector<double> sum(Rows::kDim, 0);
    for (int64_t i = 0; i < Rows::kLen; ++i) {
      if (rows.order[static_cast<size_t>(of_head * Rows::kLen + i)] < 0) continue;
      ++count;
      for (int64_t d = 0; d < Rows::kDim; ++d) {
        sum[static_cast<size_t>(d)] += rows.at(of_head, i, d);
      }
    }
    for (int64_t d = 0; d < Rows::kDim; ++d) {
      ASSERT_NEAR(mean[static_cast<size_t>(of_head * Rows::kDim + d)],
                  sum[static_cast<size_t>(d)] / count, 1e-5);
    }
    for (int64_t i = 0; i < Rows::kLen; ++i) {
      const auto at = static_cast<size_t>(of_head * Rows::kLen + i);
      double largest = 0, plain = 0, product = 0;
      for (int64_t d = 0; d < Rows::kDim; ++d) {
        const double x = rows.at(of_head, i, d);
        const double own = mean[static_cast<size_t>(of_head * Rows::kDim + d)];
        largest = std::max(largest, rows.order[at] < 0 ? 0 : std::abs(x - own));
        plain = std::max(plain, std::abs(x)), product += x * own;
      }
      const double limit = GetParam() == ByteFormat::e4m3 ? 448 : 127;
      ASSERT_NEAR(scale[at], largest == 0 ? 1 : largest / limit, 1e-6) << i;
      ASSERT_NEAR(other[at], plain == 0 ? 1 : plain / limit, 1e-6) << i;
      ASSERT_NEAR(dot[at], product * 0.5, 1e-3) << i;
    }
  }
}

TEST_P(QuantizeBytes, KeepsNaNs) {
  Rows rows(3);
  rows.order.assign(rows.order.size(), 7);
  rows.bits[7 * Rows::kDim + 3] = 0x7fc0;
  std::vector<uint8_t> out(8 * Rows::kLen * Rows::kDim);
  std::vector<float> scale(8 * Rows::kLen);
  ByteRowsArgs args;
  args.from = rows.from, args.format = GetParam();
  args.out = out.data(), args.scale = scale.data(), args.scale_len = Rows::kLen;
  byte_rows_cpu(args);
  EXPECT_TRUE(std::isnan(scale[0]));
  EXPECT_FALSE(std::isnan(scale.back()));
}

INSTANTIATE_TEST_SUITE_P(Formats, QuantizeBytes,
                         testing::Values(ByteFormat::e4m3, ByteFormat::int8), [](const auto& info) {
                           return info.param == ByteFormat::e4m3 ? "e4m3" : "int8";
                         });

TEST(QuantizeByteColumns, PlacesAreThoseOfTheMatrixUnits) {
  Rows rows(4);
  constexpr int64_t kPlaces = byte_places(Rows::kLen);
  std::vector<float> most(4 * Rows::kDim);
  ColumnStatsArgs stats;
  stats.from = rows.from, stats.from.heads = Rows::kInHeads, stats.from.len = Rows::kInRows;
  stats.from.order = {}, stats.largest = most.data();
  column_stats_cpu(stats);
  for (const bool by_head : {false, true}) {
    std::vector<uint8_t> out(8 * Rows::kDim * kPlaces, 0x55);
    std::vector<float> scale(8 * Rows::kDim);
    ByteColumnsArgs args;
    args.from = rows.from, args.largest = most.data(), args.by_head = by_head;
    args.out = out.data(), args.scale = scale.data();
    byte_columns_cpu(args);
    for (int64_t of_head = 0; of_head < 8; ++of_head) {
      const int64_t in_head = of_head / 2;
      for (int64_t d = 0; d < Rows::kDim; ++d) {
        float own = most[static_cast<size_t>(in_head * Rows::kDim + d)];
        if (by_head) {
          for (int64_t other = 0; other < Rows::kDim; ++other) {
            own = std::max(own, most[static_cast<size_t>(in_head * Rows::kDim + other)]);
          }
        }
        const auto column = static_cast<size_t>(of_head * Rows::kDim + d);
        ASSERT_FLOAT_EQ(scale[column], own / 448);
        std::vector<bool> found(kPlaces, false);
        for (int64_t place = 0; place < kPlaces; ++place) {
          const int64_t key = place / 16 * 16 + key_of_place(static_cast<int>(place % 16));
          ASSERT_FALSE(found[static_cast<size_t>(key)]);
          found[static_cast<size_t>(key)] = true;
          const double x = key < Rows::kLen ? rows.at(of_head, key, d) : 0;
          ASSERT_EQ(out[column * kPlaces + static_cast<size_t>(place)],
                    to_e4m3(static_cast<float>(x) / scale[column]))
              << "head " << of_head << ", channel " << d << ", place " << place;
        }
      }
    }
  }
}

TEST(QuantizeByteColumns, PermutationIsItsInverseOfRegisters) {
  // A thread t has columns 2t, 2t + 1 of each 8 and gives bytes 4t to 4t + 3 of each 16.
  for (int t = 0; t < 4; ++t) {
    const int columns[4] = {2 * t, 2 * t + 1, 8 + 2 * t, 8 + 2 * t + 1};
    for (int i = 0; i < 4; ++i) EXPECT_EQ(key_of_place(4 * t + i), columns[i]);
  }
}

}  // namespace
}  // namespace fovea::kernels
