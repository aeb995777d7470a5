#include "core/attention/planners/grid.h"

#include <algorithm>

#include <ATen/ATen.h>

#include "core/attention/select.h"
#include "core/check.h"

namespace fovea {

GridPlace only_grid(const AttentionCall& call, const std::string& planner) {
  require(call.q_layout.describe() == call.kv_layout.describe(), ErrorCode::usage, planner,
          "queries and keys of one layout expected, got ", call.q_layout.describe(), " and ",
          call.kv_layout.describe());
  GridPlace out;
  int64_t first = 0, grids = 0;
  for (const Segment& segment : call.q_layout.segments()) {
    if (segment.kind == Segment::Kind::grid) {
      out = {segment.grid, first};
      ++grids;
    }
    first += segment.capacity;
  }
  require(grids == 1, ErrorCode::usage, planner, "expected one grid in ", call.q_layout.describe());
  return out;
}

int64_t first_block(const BlockAxis& axis, int64_t position) {
  const std::vector<int64_t>& offsets = axis.host_offsets();
  const auto found = std::lower_bound(offsets.begin(), offsets.end(), position);
  FOVEA_ASSERT(found != offsets.end() && *found == position);
  return found - offsets.begin();
}

void set_tile_classes(AttentionPlan& plan, const AttentionCall& call, std::array<int64_t, 3> tile,
                      const std::array<at::Tensor, 3>& maps) {
  const GridPlace place = only_grid(call, plan.planner);
  plan.q_order = plan.kv_order = TokenOrder::tiles(tile);
  Selection& selection = std::get<SoftmaxBranch>(plan.branches[0].kind).selection;
  selection.q_blocks = BlockAxis::tiles(call.q_layout, tile);
  selection.kv_blocks = BlockAxis::tiles(call.kv_layout, tile);
  at::Tensor map = at::ones({1, 1}, at::kByte);
  for (const at::Tensor& axis : maps) map = at::kron(map, axis.to(at::kByte));
  at::Tensor classes = at::zeros(
      {1, 1, selection.q_blocks.num_blocks(), selection.kv_blocks.num_blocks()}, at::kByte);
  const int64_t first = first_block(selection.q_blocks, place.first_token);
  classes.slice(2, first, first + map.size(0)).slice(3, first, first + map.size(1)).copy_(map);
  set_classes(selection, classes, call);
}

std::array<int64_t, 3> three(Config& options, const std::string& key,
                             std::array<int64_t, 3> fallback) {
  constexpr int64_t kMax = 1 << 20;
  const std::vector<int64_t> values =
      options.integers(key, {fallback.begin(), fallback.end()}, 1, kMax);
  if (values.size() != 3) options.refuse(key, "expected three numbers: frames, height, width");
  return {values[0], values[1], values[2]};
}

std::string layouts_key(const AttentionCall& call) {
  return fovea::str(call.q_layout.describe(), "; ", call.kv_layout.describe(), "; ",
                    call.q.device());
}

}  // namespace fovea
