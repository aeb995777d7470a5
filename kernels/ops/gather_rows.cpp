#include "kernels/ops/gather_rows.h"

#include <cstring>

namespace fovea::kernels {
namespace {

constexpr int64_t kUnit = 8;  // elements of 16 bytes

bool is_aligned(const void* data, int64_t batch, int64_t head, int64_t row) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && batch % kUnit == 0 && head % kUnit == 0 &&
         row % kUnit == 0;
}

void gather(const GatherRowsArgs& args, const GatheredRows& part) {
  const auto* const from = static_cast<const uint16_t*>(part.in.data);
  auto* const to = static_cast<uint16_t*>(part.out.data);
  for (int64_t item = 0; item < args.batch; ++item) {
    for (int64_t head = 0; head < part.heads; ++head) {
      const int64_t in_head = head / (part.heads / part.in_heads);
      const int32_t* order = part.order.rows;
      if (order) order += item * part.order.batch_stride + head * part.order.head_stride;
      for (int64_t i = 0; i < part.rows; ++i) {
        const int64_t row = order ? order[i] : i;
        uint16_t* const own = to + item * part.out.batch_stride + head * part.out.head_stride +
                              i * part.out.row_stride;
        const auto bytes = static_cast<size_t>(args.dim) * 2;
        if (row < 0 || row >= part.in_rows) {
          if (row != -1) *args.fault = 1;
          std::memset(own, 0, bytes);
          continue;
        }
        std::memcpy(own,
                    from + item * part.in.batch_stride + in_head * part.in.head_stride +
                        row * part.in.row_stride,
                    bytes);
      }
    }
  }
}

}  // namespace

Status check(const GatherRowsArgs& args) {
  if (args.count < 0 || args.count > kMaxGathered || args.batch < 0 || !args.fault) {
    return {StatusCode::invalid, "number of tensors, batch or fault"};
  }
  if (args.dim < kUnit || args.dim % kUnit != 0) {
    return {StatusCode::unsupported, "takes multiples of 8 channels"};
  }
  for (int i = 0; i < args.count; ++i) {
    const GatheredRows& part = args.parts[i];
    if (part.in_heads < 1 || part.heads % part.in_heads != 0 || part.rows < 0) {
      return {StatusCode::invalid, "heads or rows"};
    }
    if (dtype_bytes(part.in.dtype) != 2 || part.in.dtype != part.out.dtype) {
      return {StatusCode::unsupported, "takes half types"};
    }
    if (!is_aligned(part.in.data, part.in.batch_stride, part.in.head_stride, part.in.row_stride) ||
        !is_aligned(part.out.data, part.out.batch_stride, part.out.head_stride,
                    part.out.row_stride)) {
      return {StatusCode::unsupported, "takes rows that begin at multiples of 16 bytes"};
    }
  }
  return {};
}

void gather_rows_cpu(const GatherRowsArgs& args) {
  for (int i = 0; i < args.count; ++i) gather(args, args.parts[i]);
}

}  // namespace fovea::kernels
