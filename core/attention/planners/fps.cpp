#include "core/attention/planners/fps.h"

#include <algorithm>

#include <ATen/ATen.h>

#include "core/attention/planners/grid.h"
#include "core/check.h"

namespace fovea {
namespace {

// Three sides for all stages, or three for each.
std::array<std::array<int64_t, 3>, 3> sides(Config& options, const std::string& key,
                                            std::vector<int64_t> fallback) {
  const std::vector<int64_t> values = options.integers(key, std::move(fallback), 1, 1 << 20);
  if (values.size() != 3 && values.size() != 9) {
    options.refuse(key, "expected three numbers (frames, height, width), or three times three");
  }
  std::array<std::array<int64_t, 3>, 3> out;
  for (size_t i = 0; i < 9; ++i) out[i / 3][i % 3] = values[i % values.size()];
  return out;
}

// bool [tiles, tiles] of one axis.
at::Tensor axis_map(int64_t length, int64_t tile, int64_t window) {
  const at::Tensor number = at::arange((length + tile - 1) / tile);
  return (number.unsqueeze(1) - number.unsqueeze(0)).abs() * (2 * tile) <= window;
}

}  // namespace

FpsPlanner::FpsPlanner(Config& options) : switch_(options.numbers("switch", {0.25, 0.75})) {
  const auto tiles = sides(options, "tile", {4, 8, 8});
  std::vector<int64_t> windows;
  for (const auto& tile : tiles) {
    for (const int64_t side : tile) windows.push_back(3 * side);
  }
  const auto chosen = sides(options, "window", windows);
  for (size_t i = 0; i < stages_.size(); ++i) stages_[i] = {tiles[i], chosen[i]};
  if (switch_.size() != 2 || !(switch_[0] >= 0 && switch_[0] <= switch_[1] && switch_[1] <= 1)) {
    options.refuse("switch", "expected two ascending shares of the steps");
  }
  const std::string precision = options.text("precision", "fp8");
  if (precision != "fp8" && precision != "storage") {
    options.refuse("precision", "expected fp8 or storage");
  }
  if (precision == "fp8") {
    precision_.q = precision_.k = {.format = NumberFormat::e4m3, .unit = ScaleUnit::block};
    precision_.v = {.format = NumberFormat::e4m3, .unit = ScaleUnit::channel};
    precision_.p = {.format = NumberFormat::e4m3, .unit = ScaleUnit::head};
  }
}

size_t FpsPlanner::stage_of(const AttentionCall& call) const {
  const double share = static_cast<double>(call.context.step) /
                       static_cast<double>(std::max<int64_t>(call.context.num_steps, 1));
  return share < switch_[0] ? 0 : share < switch_[1] ? 1 : 2;
}

std::string FpsPlanner::cache_key(const AttentionCall& call) const {
  return fovea::str(layouts_key(call), "; stage ", stage_of(call));
}

AttentionPlan FpsPlanner::plan(const AttentionCall& call) {
  const Stage& stage = stages_[stage_of(call)];
  AttentionPlan plan = AttentionPlan::dense(name());
  const GridPlace place = only_grid(call, name());
  std::array<at::Tensor, 3> maps;
  for (size_t axis = 0; axis < 3; ++axis) {
    maps[axis] = axis_map(place.grid[axis], stage.tile[axis], stage.window[axis]);
  }
  set_tile_classes(plan, call, stage.tile, maps);
  std::get<SoftmaxBranch>(plan.branches[0].kind).precision = precision_;
  return plan;
}

}  // namespace fovea
