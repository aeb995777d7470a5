#include "kernels/attention/linear_blocks.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/common/half.h"

namespace fovea::kernels {
namespace {

float rounded(float x) { return to_float(from_float<BFloat16>(x)); }

/// Rows of a block that are there.
std::vector<int64_t> rows_of(const LinearBlocks& blocks, int64_t item, int64_t head,
                             int64_t block) {
  const int32_t* order = blocks.order.rows;
  if (order) order += item * blocks.order.batch_stride + head * blocks.order.head_stride;
  const int64_t begin = std::max<int64_t>(blocks.offsets[block], 0);
  const int64_t end =
      std::min<int64_t>({blocks.offsets[block + 1], blocks.len, begin + blocks.most_rows});
  std::vector<int64_t> out;
  for (int64_t at = begin; at < end; ++at) {
    const int64_t row = order ? order[at] : at;
    if (row >= 0 && row < blocks.len) out.push_back(row);
  }
  return out;
}

const BFloat16* row_of(const HeadRows& rows, int64_t item, int64_t head, int64_t row) {
  return static_cast<const BFloat16*>(rows.data) + item * rows.batch_stride +
         head * rows.head_stride + row * rows.row_stride;
}

float bias_of(const LinearOutArgs& args, int64_t channel) {
  if (args.bias == nullptr) return 0;
  return args.bias_type == DType::bf16 ? to_float(static_cast<const BFloat16*>(args.bias)[channel])
                                       : static_cast<const float*>(args.bias)[channel];
}

std::vector<float> features(const BFloat16* x, int64_t dim, LinearFeature feature) {
  std::vector<float> out(static_cast<size_t>(dim));
  float top = to_float(x[0]), sum = 0;
  for (int64_t c = 0; c < dim; ++c) top = std::max(top, to_float(x[c]));
  for (int64_t c = 0; c < dim; ++c) {
    const float own = to_float(x[c]);
    if (feature == LinearFeature::softmax) {
      sum += out[c] = std::exp(own - top);
    } else if (feature == LinearFeature::relu) {
      out[c] = own > 0 ? own : own * 0;
    } else {
      out[c] = own > 0 ? own + 1 : std::exp(own);
    }
  }
  for (float& value : out) {
    value = rounded(feature == LinearFeature::softmax ? value / sum : value);
  }
  return out;
}

}  // namespace

void linear_states_cpu(const LinearStatesArgs& args) {
  const int64_t dim = args.dim, blocks = args.keys.blocks;
  for (int64_t i = 0; i < args.batch * args.heads * blocks; ++i) {
    const int64_t block = i % blocks, head = i / blocks % args.heads;
    const int64_t item = i / blocks / args.heads;
    std::vector<float> state(static_cast<size_t>(dim * dim), 0);
    float* total = args.totals + i * dim;
    std::fill_n(total, dim, 0.0f);
    for (const int64_t row : rows_of(args.keys, item, head, block)) {
      const auto phi = features(row_of(args.k, item, head, row), dim, args.feature);
      const BFloat16* v = row_of(args.v, item, head, row);
      for (int64_t m = 0; m < dim; ++m) {
        total[m] += phi[m];
        for (int64_t n = 0; n < dim; ++n) state[m * dim + n] += phi[m] * to_float(v[n]);
      }
    }
    BFloat16* to = static_cast<BFloat16*>(args.states) + i * dim * dim;
    for (int64_t m = 0; m < dim * dim; ++m) to[m] = from_float<BFloat16>(state[m]);
  }
}

void linear_taken_cpu(const LinearTakenArgs& args) {
  for (int64_t i = 0; i < args.batch * args.heads * args.rows; ++i) {
    const int64_t head = i / args.rows, row = i % args.rows;
    const uint8_t* classes = args.classes + head / args.heads * args.batch_stride +
                             head % args.heads * args.head_stride + row * args.blocks;
    float* sum = args.sums + i * args.dim;
    std::fill_n(sum, args.dim, 0.0f);
    for (int64_t j = 0; j < args.blocks; ++j) {
      const bool is_taken = classes[j] == args.taken;
      static_cast<BFloat16*>(args.factors)[i * args.blocks + j] =
          from_float<BFloat16>(is_taken ? 1.0f : 0.0f);
      const float* total = args.totals + (head * args.blocks + j) * args.dim;
      for (int64_t c = 0; is_taken && c < args.dim; ++c) sum[c] += total[c];
    }
  }
}

void linear_out_cpu(const LinearOutArgs& args) {
  const int64_t dim = args.dim, blocks = args.queries.blocks;
  const auto* weight = static_cast<const BFloat16*>(args.weight);
  std::vector<float> own(static_cast<size_t>(dim)), out(own);
  for (int64_t i = 0; i < args.batch * args.heads * blocks; ++i) {
    const int64_t block = i % blocks, head = i / blocks % args.heads;
    const int64_t item = i / blocks / args.heads;
    const BFloat16* state = static_cast<const BFloat16*>(args.states) + i * dim * dim;
    const float* totals = args.totals + i * dim;
    for (const int64_t row : rows_of(args.queries, item, head, block)) {
      const auto phi = features(row_of(args.q, item, head, row), dim, args.feature);
      float total = 0;
      std::fill(own.begin(), own.end(), 0.0f);
      for (int64_t m = 0; m < dim; ++m) {
        total += phi[m] * totals[m];
        for (int64_t n = 0; n < dim; ++n) own[n] += phi[m] * to_float(state[m * dim + n]);
      }
      const float factor = total == 0 ? 0 : 1 / (total + args.epsilon);
      for (float& value : own) value *= factor;
      for (int64_t n = 0; n < dim; ++n) {
        out[n] = bias_of(args, n);
        if (weight == nullptr) out[n] += own[n];
        for (int64_t m = 0; weight != nullptr && m < dim; ++m) {
          out[n] += rounded(own[m]) * to_float(weight[n * dim + m]);
        }
        if (args.added.data) out[n] += to_float(row_of(args.added, item, head, row)[n]);
      }
      BFloat16* to = static_cast<BFloat16*>(args.out.data) + item * args.out.batch_stride +
                     head * args.out.head_stride + row * args.out.row_stride;
      for (int64_t n = 0; n < dim; ++n) to[n] = from_float<BFloat16>(out[n]);
    }
  }
}

}  // namespace fovea::kernels
