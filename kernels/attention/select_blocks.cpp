#include "kernels/attention/select_blocks.h"

#include <limits>

#include "kernels/attention/chosen_blocks.h"

namespace fovea::kernels {
namespace {

Taken taken_from(const float* scores, int32_t blocks, uint32_t key) {
  Taken out;
  for (int32_t i = 0; i < blocks; ++i) {
    if (key_of(scores[i]) < key) continue;
    ++out.count;
    out.mass += scores[i];
  }
  return out;
}

void select_row(const SelectBlocksArgs& args, const float* scores, bool* chosen) {
  uint32_t last = 0;
  int32_t left = args.blocks;
  if (!is_covered(args, taken_from(scores, args.blocks, 0))) {
    for (int bit = 31; bit >= 0; --bit) {
      const uint32_t next = last | 1u << bit;
      if (!is_covered(args, taken_from(scores, args.blocks, next))) last = next;
    }
    Taken above;
    if (last != 0xffffffffu) above = taken_from(scores, args.blocks, last + 1);
    int32_t equals = 0;
    double score = 0;
    for (int32_t i = 0; i < args.blocks; ++i) {
      if (key_of(scores[i]) != last) continue;
      ++equals;
      score = scores[i];
    }
    left = chosen_of_equals(args, above, score, equals);
  }
  for (int32_t i = 0; i < args.blocks; ++i) {
    const uint32_t key = key_of(scores[i]);
    const bool is_lowest = scores[i] == -std::numeric_limits<float>::infinity();
    const bool is_in = key > last || (key == last && left-- > 0);
    chosen[i] = is_in && (args.takes_lowest || !is_lowest);
  }
}

}  // namespace

void select_blocks_cpu(const SelectBlocksArgs& args) {
  for (int64_t row = 0; row < args.rows; ++row) {
    select_row(args, args.scores + row * args.blocks, args.chosen + row * args.blocks);
  }
}

}  // namespace fovea::kernels
