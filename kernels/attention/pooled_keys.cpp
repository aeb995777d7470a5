#include "kernels/attention/pooled_keys.h"

#include <algorithm>
#include <vector>

#include "kernels/attention/listed_keys.h"
#include "kernels/common/half.h"

namespace fovea::kernels {
namespace {

template <typename T>
void add_row(const void* data, int64_t at, std::vector<float>& sum) {
  const T* row = static_cast<const T*>(data) + at;
  for (size_t i = 0; i < sum.size(); ++i) sum[i] += to_float(row[i]);
}

void add_row(const HeadRows& in, int64_t at, std::vector<float>& sum) {
  if (in.dtype == DType::bf16) return add_row<BFloat16>(in.data, at, sum);
  if (in.dtype == DType::f16) return add_row<Half>(in.data, at, sum);
  add_row<float>(in.data, at, sum);
}

struct Place {
  int64_t item, head, place;
};

void pool(const PooledKeysArgs& args, const Place& at, Positions positions) {
  const int32_t* order = args.order.rows;
  if (order) order += at.item * args.order.batch_stride + at.head * args.order.head_stride;
  const int64_t out = (at.item * args.heads + at.head) * args.places + at.place;
  for (int which = 0; which < args.count; ++which) {
    const HeadRows& in = args.in[which];
    const int64_t first =
        at.item * in.batch_stride + at.head / (args.heads / args.in_heads) * in.head_stride;
    std::vector<float> sum(static_cast<size_t>(args.dim), 0);
    int64_t count = 0;
    for (int32_t i = positions.begin; i < positions.end; ++i) {
      const int64_t row = order ? order[i] : i;
      if (row < 0 || row >= args.len) continue;
      add_row(in, first + row * in.row_stride, sum);
      ++count;
    }
    const float share = 1.0f / static_cast<float>(std::max<int64_t>(count, 1));
    for (int64_t i = 0; i < args.dim; ++i) args.mean[which][out * args.dim + i] = sum[i] * share;
    args.rows_in_mean[out] = static_cast<float>(count);
  }
}

}  // namespace

void pooled_keys_cpu(const PooledKeysArgs& args) {
  for (int64_t item = 0; item < args.batch; ++item) {
    for (int64_t head = 0; head < args.heads; ++head) {
      const int32_t* offsets =
          args.offsets.rows + item * args.offsets.batch_stride + head * args.offsets.head_stride;
      for (int level = 0; level < args.num_summaries; ++level) {
        const SummaryKeys& summary = args.summaries[level];
        for (int64_t j = 0; j < args.num_blocks * summary.per_block; ++j) {
          const Positions block =
              block_of(offsets, j / summary.per_block, static_cast<int32_t>(args.len), args.fault);
          pool(args, {item, head, summary.begin + j},
               piece_of(block, summary, j % summary.per_block));
        }
      }
    }
  }
}

}  // namespace fovea::kernels
