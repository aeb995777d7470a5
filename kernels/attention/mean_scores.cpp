#include "kernels/attention/mean_scores.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "kernels/attention/select_blocks.h"
#include "kernels/common/half.h"

namespace fovea::kernels {
namespace {

template <typename T>
void make_means(const BlockMeansArgs& args, const BlockMeansArgs::Side& side) {
  const int64_t dim = args.dim;
  for (int64_t i = 0; i < args.batch * side.heads * side.blocks; ++i) {
    const int64_t block = i % side.blocks, head = i / side.blocks % side.heads;
    const auto* x = static_cast<const T*>(side.x.data) +
                    i / side.blocks / side.heads * side.x.batch_stride + head * side.x.head_stride;
    float* to = side.means + i * dim;
    std::fill_n(to, dim, 0.0f);
    const int32_t begin = side.offsets[block], end = side.offsets[block + 1];
    for (int32_t at = begin; at < end; ++at) {
      const T* row = x + (side.order ? side.order[at] : at) * side.x.row_stride;
      for (int64_t c = 0; c < dim; ++c) to[c] += to_float(row[c]);
    }
    for (int64_t c = 0; c < dim; ++c) to[c] /= static_cast<float>(std::max(end - begin, 1));
  }
}

/// The mean of all keys, of blocks by their sizes.
std::vector<float> centre_of(const MeanScoresArgs& args, const float* k) {
  const int32_t* const ends = args.kv_offsets;
  const auto all = static_cast<float>(std::max(ends[args.kv_blocks] - ends[0], 1));
  std::vector<float> out(static_cast<size_t>(args.dim), 0);
  for (int64_t j = 0; j < args.kv_blocks; ++j) {
    const auto rows = static_cast<float>(ends[j + 1] - ends[j]);
    for (int64_t c = 0; c < args.dim; ++c) out[c] += k[j * args.dim + c] * rows;
  }
  for (float& x : out) x /= all;
  return out;
}

}  // namespace

void block_means_cpu(const BlockMeansArgs& args) {
  for (int i = 0; i < args.num_sides; ++i) {
    const BlockMeansArgs::Side& side = args.sides[i];
    switch (side.x.dtype) {
      case DType::f32:
        make_means<float>(args, side);
        break;
      case DType::f16:
        make_means<Half>(args, side);
        break;
      case DType::bf16:
        make_means<BFloat16>(args, side);
        break;
    }
  }
}

void mean_scores_cpu(const MeanScoresArgs& args) {
  const int64_t dim = args.dim;
  std::vector<float> own(static_cast<size_t>(args.kv_blocks));
  for (int64_t head = 0; head < args.batch * args.heads; ++head) {
    const int64_t item = head / args.heads;
    const int64_t group = head % args.heads / (args.heads / args.kv_heads);
    const float* k = args.k + (item * args.kv_heads + group) * args.kv_blocks * dim;
    const std::vector<float> centre = centre_of(args, k);
    for (int64_t i = 0; i < args.q_blocks; ++i) {
      const int64_t row = head * args.q_blocks + i;
      for (int64_t j = 0; j < args.kv_blocks; ++j) {
        float sum = 0;
        for (int64_t c = 0; c < dim; ++c)
          sum += args.q[row * dim + c] * (k[j * dim + c] - centre[c]);
        const bool is_empty = args.kv_offsets[j + 1] <= args.kv_offsets[j];
        own[j] = is_empty ? -std::numeric_limits<float>::infinity() : sum * args.scale;
      }
      if (args.scores) std::copy(own.begin(), own.end(), args.scores + row * args.kv_blocks);
      if (!args.chosen) continue;
      select_blocks_cpu({.scores = own.data(),
                         .rows = 1,
                         .blocks = static_cast<int32_t>(args.kv_blocks),
                         .least = args.least,
                         .takes_lowest = false,
                         .chosen = args.chosen + row * args.kv_blocks});
    }
  }
}

}  // namespace fovea::kernels
