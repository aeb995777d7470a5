#include "kernels/attention/quantize_bytes.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/common/e4m3.h"
#include "kernels/common/half.h"

namespace fovea::kernels {
namespace {

/// The row of a position, or null.
const uint16_t* row_of(const BytesFrom& from, int64_t item, int64_t head, int64_t position) {
  int64_t row = position;
  if (from.order.rows != nullptr) {
    row =
        from.order.rows[item * from.order.batch_stride + head * from.order.head_stride + position];
  }
  if (row < 0 || row >= from.in_rows) {
    if (row != -1) *from.fault = 1;
    return nullptr;
  }
  const int64_t in_head = head / (from.heads / from.in_heads);
  return static_cast<const uint16_t*>(from.x.data) + item * from.x.batch_stride +
         in_head * from.x.head_stride + row * from.x.row_stride;
}

float number(const BytesFrom& from, uint16_t bits) {
  return from.x.dtype == DType::bf16 ? to_float(BFloat16{bits}) : to_float(Half{bits});
}

// NaN is larger than all.
float larger(float a, float b) { return std::isnan(a) || a > b ? a : b; }

/// What of (item, head) is quantized at a position.
struct RowsOf {
  const ByteRowsArgs& args;
  int64_t item, head;

  const float* mean() const {
    if (args.mean == nullptr) return nullptr;
    const int64_t own = head / (args.from.heads / args.mean_heads);
    return args.mean + (item * args.mean_heads + own) * args.from.dim;
  }
  std::vector<float> values(int64_t position) const {
    const uint16_t* row = row_of(args.from, item, head, position);
    std::vector<float> out(static_cast<size_t>(args.from.dim), 0);
    if (row == nullptr) return out;
    for (int64_t d = 0; d < args.from.dim; ++d) {
      const float x = number(args.from, row[d]);
      out[static_cast<size_t>(d)] = args.mean != nullptr && args.dot == nullptr ? x - mean()[d] : x;
    }
    return out;
  }
  float largest(int64_t begin, int64_t end) const {
    float out = 0;
    for (int64_t position = begin; position < end; ++position) {
      for (const float x : values(position)) out = larger(std::fabs(x), out);
    }
    return out;
  }
  void write(int64_t begin, int64_t end) const {
    const float scale = byte_scale(largest(begin, end), args.format);
    const int64_t of_head = item * args.from.heads + head;
    for (int64_t position = begin; position < end; ++position) {
      args.scale[of_head * args.scale_len + position] = scale;
      const std::vector<float> row = values(position);
      auto* const out =
          static_cast<uint8_t*>(args.out) + (of_head * args.from.len + position) * args.from.dim;
      double dot = 0;
      for (int64_t d = 0; d < args.from.dim; ++d) {
        const float x = row[static_cast<size_t>(d)];
        if (args.format == ByteFormat::e4m3) {
          out[d] = to_e4m3(x / scale);
        } else {
          const float units = std::nearbyint(x / scale);
          out[d] =
              std::isnan(units)
                  ? 0
                  : static_cast<uint8_t>(static_cast<int8_t>(std::clamp(units, -127.0f, 127.0f)));
        }
        if (args.dot != nullptr) dot += static_cast<double>(x) * mean()[d];
      }
      if (args.dot != nullptr) {
        args.dot[of_head * args.from.len + position] = static_cast<float>(dot) * args.dot_factor;
      }
    }
  }
};

}  // namespace

Status check(const BytesFrom& from) {
  if (from.dim != 64 && from.dim != 128) {
    return {StatusCode::unsupported, "takes 64 or 128 channels a head"};
  }
  if (from.x.dtype == DType::f32) return {StatusCode::unsupported, "takes bf16 and fp16"};
  if (from.in_heads <= 0 || from.heads % from.in_heads != 0 || from.fault == nullptr ||
      from.x.data == nullptr) {
    return {StatusCode::invalid, "rows of bytes: heads, data or fault"};
  }
  return {};
}

void column_stats_cpu(const ColumnStatsArgs& args) {
  const BytesFrom& from = args.from;
  for (int64_t i = 0; i < from.batch * from.heads; ++i) {
    std::vector<double> sum(static_cast<size_t>(from.dim), 0);
    std::vector<float> largest(static_cast<size_t>(from.dim), 0);
    int64_t count = 0;
    for (int64_t position = 0; position < from.len; ++position) {
      const uint16_t* row = row_of(from, i / from.heads, i % from.heads, position);
      if (row == nullptr) continue;
      ++count;
      for (int64_t d = 0; d < from.dim; ++d) {
        const float x = number(from, row[d]);
        float& own = largest[static_cast<size_t>(d)];
        own = larger(std::fabs(x), own);
        sum[static_cast<size_t>(d)] += x;
      }
    }
    if (args.largest != nullptr) {
      std::copy(largest.begin(), largest.end(), args.largest + i * from.dim);
    }
    if (args.mean == nullptr) continue;
    for (int64_t d = 0; d < from.dim; ++d) {
      args.mean[i * from.dim + d] = static_cast<float>(
          sum[static_cast<size_t>(d)] / static_cast<double>(std::max<int64_t>(count, 1)));
    }
  }
}

void byte_rows_cpu(const ByteRowsArgs& args) {
  const BytesFrom& from = args.from;
  for (int64_t i = 0; i < from.batch * from.heads; ++i) {
    const RowsOf rows{args, i / from.heads, i % from.heads};
    if (args.offsets != nullptr) {
      const int64_t map = rows.item * args.map_batch_stride + rows.head * args.map_head_stride;
      const int32_t* offsets = args.offsets + map * (args.num_pieces + 1);
      for (int64_t piece = 0; piece < args.num_pieces; ++piece) {
        const int64_t begin = offsets[piece], end = offsets[piece + 1];
        if (begin < 0 || end > from.len) {
          *from.fault = 1;
        } else {
          rows.write(begin, end);
        }
      }
    } else if (args.largest != nullptr) {
      rows.write(0, from.len);
    } else {
      for (int64_t position = 0; position < from.len; ++position) {
        rows.write(position, position + 1);
      }
    }
  }
}

void byte_columns_cpu(const ByteColumnsArgs& args) {
  const BytesFrom& from = args.from;
  const int64_t places = byte_places(from.len);
  for (int64_t i = 0; i < from.batch * from.heads; ++i) {
    const int64_t item = i / from.heads, head = i % from.heads;
    const float* largest =
        args.largest + (item * from.in_heads + head / (from.heads / from.in_heads)) * from.dim;
    float of_head = 0;
    for (int64_t d = 0; d < from.dim; ++d) of_head = larger(largest[d], of_head);
    for (int64_t d = 0; d < from.dim; ++d) {
      args.scale[i * from.dim + d] =
          byte_scale(args.by_head ? of_head : largest[d], ByteFormat::e4m3);
    }
    for (int64_t place = 0; place < places; ++place) {
      const int64_t key = place / 16 * 16 + key_of_place(static_cast<int>(place % 16));
      const uint16_t* row = key < from.len ? row_of(from, item, head, key) : nullptr;
      for (int64_t d = 0; d < from.dim; ++d) {
        static_cast<uint8_t*>(args.out)[(i * from.dim + d) * places + place] =
            row == nullptr ? 0 : to_e4m3(number(from, row[d]) / args.scale[i * from.dim + d]);
      }
    }
  }
}

}  // namespace fovea::kernels
