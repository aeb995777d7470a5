#include "core/attention/planners/window.h"

#include <algorithm>

#include <ATen/ATen.h>

#include "core/attention/planners/grid.h"

namespace fovea {
namespace {

// uint8 [tiles, tiles] of one axis: the centre of a window is moved so far inwards that the window
// fits (paper, section 3.2).
at::Tensor axis_map(int64_t tiles, int64_t window) {
  at::Tensor out = at::zeros({tiles, tiles}, at::kByte);
  const int64_t size = std::min(window, tiles), half = size / 2;
  for (int64_t i = 0; i < tiles; ++i) {
    const int64_t begin = std::clamp<int64_t>(i - half, 0, tiles - size);
    out[i].slice(0, begin, begin + size).fill_(block_class::exact);
  }
  return out;
}

}  // namespace

WindowPlanner::WindowPlanner(Config& options)
    : tile_(three(options, "tile", {4, 8, 8})), window_(three(options, "window", {3, 3, 3})) {}

std::string WindowPlanner::cache_key(const AttentionCall& call) const { return layouts_key(call); }

AttentionPlan WindowPlanner::plan(const AttentionCall& call) {
  AttentionPlan plan = AttentionPlan::dense(name());
  const GridPlace place = only_grid(call, name());
  std::array<at::Tensor, 3> maps;
  for (size_t axis = 0; axis < 3; ++axis) {
    const int64_t tiles = (place.grid[axis] + tile_[axis] - 1) / tile_[axis];
    maps[axis] = axis_map(tiles, window_[axis]);
  }
  set_tile_classes(plan, call, tile_, maps);
  return plan;
}

}  // namespace fovea
