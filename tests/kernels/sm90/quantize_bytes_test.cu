// Operands of attention in 8-bit numbers: on the GPU as on the CPU.
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "kernels/attention/quantize_bytes.h"
#include "tests/kernels/attention_problem.h"
#include "tests/kernels/gpu_test.h"

namespace fovea::kernels {
namespace {

struct Size {
  int64_t dim, len, in_rows;
  DType dtype;
  double unit = 1;  // of the numbers
};

/// The same rows on both sides, with an order of heads that has gaps.
struct Sides {
  static constexpr int64_t kBatch = 2, kInHeads = 2, kHeads = 4, kAll = kBatch * kHeads;
  Size size;
  std::vector<uint16_t> bits;
  std::vector<int32_t> order;
  int32_t fault = 0;
  DeviceArray<uint16_t> device_bits;
  DeviceArray<int32_t> device_order, device_fault{std::vector<int32_t>{0}};

  Sides(Size of, int seed) : Sides(of, std::mt19937(seed)) {}

  BytesFrom from(bool on_device, bool ordered) {
    BytesFrom out;
    const int64_t head = size.in_rows * size.dim;
    out.x = {on_device ? device_bits.data() : bits.data(), size.dtype, kInHeads * head, head,
             size.dim};
    out.batch = kBatch, out.in_heads = kInHeads, out.in_rows = size.in_rows, out.dim = size.dim;
    out.heads = ordered ? kHeads : kInHeads, out.len = ordered ? size.len : size.in_rows;
    const int32_t* const rows = on_device ? device_order.data() : order.data();
    if (ordered) out.order = {rows, kHeads * size.len, size.len};
    out.fault = on_device ? device_fault.data() : &fault;
    return out;
  }

 private:
  Sides(Size of, std::mt19937 random)
      : size(of),
        bits(draw(of, random)),
        order(draw_order(of, random)),
        device_bits(bits),
        device_order(order) {}
  static std::vector<uint16_t> draw(Size of, std::mt19937& random) {
    std::normal_distribution<double> normal(0.5, 2);
    std::vector<uint16_t> out(kBatch * kInHeads * of.in_rows * of.dim);
    for (uint16_t& x : out) x = attention_test::bits_of(of.dtype, of.unit * normal(random));
    return out;
  }
  static std::vector<int32_t> draw_order(Size of, std::mt19937& random) {
    std::vector<int32_t> out(kAll * of.len);
    for (int32_t& x : out) x = static_cast<int32_t>(random() % (of.in_rows + 1)) - 1;
    return out;
  }
};

constexpr Size kSizes[] = {{128, 700, 600, DType::bf16},     {128, 37, 1, DType::f16},
                           {64, 515, 300, DType::bf16},      {64, 1, 5, DType::f16},
                           {64, 90, 80, DType::bf16, 1e-36}, {128, 90, 80, DType::bf16, 1e32}};

class Sm90QuantizeBytes : public Sm90Test {};

TEST_F(Sm90QuantizeBytes, Rows) {
  int seed = 0;
  for (const Size& size : kSizes) {
    Sides sides(size, ++seed);
    const auto count = static_cast<size_t>(Sides::kAll * size.len);
    const auto third = static_cast<int32_t>(size.len / 3);
    const std::vector<int32_t> offsets = {0, third, third, static_cast<int32_t>(size.len)};
    const DeviceArray<int32_t> device_offsets(offsets);
    std::vector<float> mean(Sides::kBatch * Sides::kInHeads * size.dim);
    for (size_t i = 0; i < mean.size(); ++i) mean[i] = static_cast<float>(i % 7) * 0.25f;
    const DeviceArray<float> device_mean(mean);
    for (const ByteFormat format : {ByteFormat::e4m3, ByteFormat::int8}) {
      for (const int kind : {0, 1, 2}) {         // pieces, heads, rows
        for (const int with_mean : {0, 1, 2}) {  // none, taken away, multiplied
          std::vector<uint8_t> out(count * size.dim, 0x55);
          std::vector<float> scale(count, -1), largest(Sides::kAll), dot(count, -1);
          const DeviceArray<uint8_t> device_out(out);
          const DeviceArray<float> device_scale(scale), device_largest(largest), device_dot(dot);
          const auto run = [&](bool on_device) {
            ByteRowsArgs args;
            args.from = sides.from(on_device, true), args.format = format;
            args.mean_heads = Sides::kInHeads, args.dot_factor = 0.5f;
            if (with_mean > 0) args.mean = on_device ? device_mean.data() : mean.data();
            if (with_mean == 2) args.dot = on_device ? device_dot.data() : dot.data();
            if (kind == 0) {
              args.offsets = on_device ? device_offsets.data() : offsets.data();
              args.num_pieces = 3;
            }
            if (kind == 1) args.largest = on_device ? device_largest.data() : largest.data();
            args.out = on_device ? device_out.data() : out.data();
            args.scale = on_device ? device_scale.data() : scale.data();
            args.scale_len = size.len;
            if (!on_device) return byte_rows_cpu(args), Status{};
            return byte_rows_cuda(args, {});
          };
          ASSERT_TRUE(run(true).ok());
          ASSERT_TRUE(run(false).ok());
          SCOPED_TRACE("dim " + std::to_string(size.dim) + ", kind " + std::to_string(kind) +
                       ", mean " + std::to_string(with_mean));
          EXPECT_EQ(device_scale.read(), scale);
          EXPECT_EQ(device_out.read(), out);
          if (with_mean == 2) {
            const std::vector<float> got = device_dot.read();
            for (size_t i = 0; i < count; ++i) {
              ASSERT_NEAR(got[i], dot[i], 1e-3 + 1e-5 * std::abs(dot[i])) << i;
            }
          }
        }
      }
    }
    EXPECT_EQ(sides.fault, 0);
    EXPECT_EQ(sides.device_fault.read()[0], 0);
  }
}

// Scales that are infinite, or not numbers, or so small that quotients are not what they should be.
TEST_F(Sm90QuantizeBytes, StrangeNumbers) {
  const Size size = {128, 64, 40, DType::bf16};
  for (const uint16_t strange : {0x7f80, 0xff80, 0x7fc0, 0x0001, 0x7f7f, 0x0000}) {
    Sides sides(size, 5);
    for (size_t i = 0; i < sides.bits.size(); i += strange < 2 ? 1 : 700) sides.bits[i] = strange;
    const DeviceArray<uint16_t> device_bits(sides.bits);
    const auto count = static_cast<size_t>(Sides::kAll * size.len);
    for (const ByteFormat format : {ByteFormat::e4m3, ByteFormat::int8}) {
      std::vector<uint8_t> out(count * size.dim, 0x55);
      std::vector<float> scale(count, -1);
      const DeviceArray<uint8_t> device_out(out);
      const DeviceArray<float> device_scale(scale);
      ByteRowsArgs args;
      args.format = format, args.scale_len = size.len;
      args.from = sides.from(false, true), args.out = out.data(), args.scale = scale.data();
      byte_rows_cpu(args);
      args.from = sides.from(true, true), args.from.x.data = device_bits.data();
      args.out = device_out.data(), args.scale = device_scale.data();
      ASSERT_TRUE(byte_rows_cuda(args, {}).ok());
      SCOPED_TRACE("bits " + std::to_string(strange) +
                   (format == ByteFormat::e4m3 ? ", e4m3" : ", int8"));
      const std::vector<float> got = device_scale.read();
      for (size_t i = 0; i < count; ++i) {
        ASSERT_EQ(std::isnan(got[i]), std::isnan(scale[i])) << i;
        if (!std::isnan(got[i])) ASSERT_EQ(got[i], scale[i]) << i;
      }
      const std::vector<uint8_t> bytes = device_out.read();
      for (size_t i = 0; i < bytes.size(); ++i) {
        // The sign of a NaN is anything.
        const bool is_nan = format == ByteFormat::e4m3 && (out[i] & 0x7f) == 0x7f;
        ASSERT_EQ(is_nan ? bytes[i] | 0x80 : bytes[i], is_nan ? 0xff : out[i]) << i;
      }
    }
  }
}

TEST_F(Sm90QuantizeBytes, Columns) {
  int seed = 10;
  for (const Size& size : kSizes) {
    Sides sides(size, ++seed);
    const auto in_columns = static_cast<size_t>(Sides::kBatch * Sides::kInHeads * size.dim);
    const auto columns = static_cast<size_t>(Sides::kAll * size.dim);
    std::vector<float> largest(in_columns), mean(in_columns);
    const DeviceArray<float> device_largest(largest), device_mean(mean);
    const DeviceArray<float> sums(std::vector<float>(Sides::kBatch * Sides::kInHeads *
                                                     column_chunks(size.in_rows) * (size.dim + 1)));
    ColumnStatsArgs stats;
    stats.from = sides.from(false, false);
    stats.largest = largest.data(), stats.mean = mean.data();
    column_stats_cpu(stats);
    stats.from = sides.from(true, false);
    stats.largest = device_largest.data(), stats.mean = device_mean.data();
    stats.sums = sums.data();
    ASSERT_TRUE(column_stats_cuda(stats, {}).ok());
    EXPECT_EQ(device_largest.read(), largest);
    const std::vector<float> got = device_mean.read();
    for (size_t i = 0; i < in_columns; ++i) ASSERT_NEAR(got[i], mean[i], 1e-5) << i;
    // Means alone are the same.
    const DeviceArray<float> device_mean_alone(std::vector<float>(in_columns, -1));
    stats.largest = nullptr, stats.mean = device_mean_alone.data();
    ASSERT_TRUE(column_stats_cuda(stats, {}).ok());
    EXPECT_EQ(device_mean_alone.read(), got);
    for (const bool by_head : {false, true}) {
      std::vector<uint8_t> out(columns * byte_places(size.len), 0x55);
      std::vector<float> scale(columns, -1);
      const DeviceArray<uint8_t> device_out(out);
      const DeviceArray<float> device_scale(scale);
      ByteColumnsArgs args;
      args.from = sides.from(false, true);
      args.largest = largest.data(), args.by_head = by_head;
      args.out = out.data(), args.scale = scale.data();
      byte_columns_cpu(args);
      args.from = sides.from(true, true);
      args.largest = device_largest.data();
      args.out = device_out.data(), args.scale = device_scale.data();
      ASSERT_TRUE(byte_columns_cuda(args, {}).ok());
      SCOPED_TRACE("dim " + std::to_string(size.dim) + (by_head ? ", by head" : ""));
      EXPECT_EQ(device_scale.read(), scale);
      EXPECT_EQ(device_out.read(), out);
    }
  }
}

}  // namespace
}  // namespace fovea::kernels
