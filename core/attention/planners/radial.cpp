#include "core/attention/planners/radial.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <map>
#include <tuple>
#include <vector>

#include <ATen/ATen.h>

#include "core/attention/planners/grid.h"
#include "core/attention/select.h"

namespace fovea {
namespace {

constexpr double kDenseRows = 1.0 / 3, kDenseColumns = 0.6;  // of the released code
constexpr int64_t kEverything = std::numeric_limits<int64_t>::max() / 2;

int bits(int64_t value) { return std::bit_width(static_cast<uint64_t>(value)); }

// Blocks of one pair of frames that survive: [rows, columns] from the blocks with their first
// tokens on. Frames begin somewhere in a block.
struct FramePair {
  int64_t tokens, block, row_offset, column_offset, width;

  int64_t blocks(int64_t offset) const { return (offset + tokens + block - 1) / block; }

  // Whether the block with these rows and columns of the frames, the ends exclusive, is kept.
  bool keeps(int64_t row, int64_t row_end, int64_t column, int64_t column_end) const {
    int64_t dense = 0, alive = 0;
    for (int64_t c = column; c < column_end; ++c) {
      const int64_t seen = std::min(row_end, c + width + 1) - std::max(row, c - width);
      alive += seen > 0;
      dense += static_cast<double>(seen) > kDenseRows * static_cast<double>(block);
    }
    return alive > 0 && static_cast<double>(dense) > kDenseColumns * static_cast<double>(alive);
  }

  std::vector<uint8_t> map() const {
    std::vector<uint8_t> out;
    const auto part = [&](int64_t number, int64_t offset) {
      return std::max<int64_t>(number * block - offset, 0);
    };
    for (int64_t r = 0; r < blocks(row_offset); ++r) {
      for (int64_t c = 0; c < blocks(column_offset); ++c) {
        out.push_back(width == kEverything ||
                      keeps(part(r, row_offset), std::min(part(r + 1, row_offset), tokens),
                            part(c, column_offset), std::min(part(c + 1, column_offset), tokens)));
      }
    }
    return out;
  }
};

}  // namespace

RadialPlanner::RadialPlanner(Config& options)
    : decay_(options.number("decay", 0.2)),
      block_(options.integer("block", 128, 16, 1024)),
      sink_frames_(options.integer("sink_frames", 1, 0, 1 << 20)) {
  if (!(decay_ > 0)) options.refuse("decay", "expected a positive number");
}

std::string RadialPlanner::cache_key(const AttentionCall& call) const { return layouts_key(call); }

AttentionPlan RadialPlanner::plan(const AttentionCall& call) {
  AttentionPlan plan = AttentionPlan::dense(name());
  Selection& selection = std::get<SoftmaxBranch>(plan.branches[0].kind).selection;
  selection.q_blocks = BlockAxis::uniform(call.q_layout, block_);
  selection.kv_blocks = BlockAxis::uniform(call.kv_layout, block_);
  const GridPlace place = only_grid(call, name());
  const int64_t frames = place.grid[0], tokens = place.grid[1] * place.grid[2];
  const int64_t first = first_block(selection.q_blocks, place.first_token);
  at::Tensor classes = at::zeros(
      {1, 1, selection.q_blocks.num_blocks(), selection.kv_blocks.num_blocks()}, at::kByte);
  uint8_t* data = classes.mutable_data_ptr<uint8_t>();
  const int64_t stride = classes.size(3), power = int64_t{1} << bits(tokens);

  const auto width_of = [&](int64_t distance) -> int64_t {
    if (distance <= 1) return kEverything;
    const int64_t part = power >> std::min(bits(distance), 62);
    // Written without a division by a part that has become 0.
    if (part < block_) {
      const int64_t every = part == 0 ? kEverything : block_ / part;
      if (distance % every != 0) return -1;
    }
    return static_cast<int64_t>(
        std::max(static_cast<double>(part) * decay_, static_cast<double>(block_)));
  };
  std::map<std::tuple<int64_t, int64_t, int64_t>, std::vector<uint8_t>> maps;
  for (int64_t i = 0; i < frames; ++i) {
    for (int64_t j = 0; j < frames; ++j) {
      const int64_t width = j < sink_frames_ ? kEverything : width_of(std::abs(i - j));
      if (width < 0) continue;
      const FramePair pair{tokens, block_, i * tokens % block_, j * tokens % block_, width};
      auto& map = maps[{pair.row_offset, pair.column_offset, width}];
      if (map.empty()) map = pair.map();
      const int64_t columns = pair.blocks(pair.column_offset);
      const int64_t corner = (first + i * tokens / block_) * stride + first + j * tokens / block_;
      for (size_t at = 0; at < map.size(); ++at) {
        const auto number = static_cast<int64_t>(at);
        data[corner + number / columns * stride + number % columns] |= map[at];
      }
    }
  }
  set_classes(selection, classes, call);
  return plan;
}

}  // namespace fovea
