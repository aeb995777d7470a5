#pragma once

#include <array>

#include "core/attention/planner.h"
#include "core/config.h"

namespace fovea {

/// Sliding Tile Attention (Zhang et al., "Fast Video Generation with Sliding Tile Attention", 2025,
/// section 3): the grid is cut into tiles, and each tile of queries sees the window of tiles around
/// it, moved inwards at the borders. Other segments see and are seen by all.
///
/// options  tile    three sides in tokens: frames, height, width; default 4, 8, 8
///          window  three sides in tiles; default 3, 3, 3; a window larger than the grid is all of
///          it
class WindowPlanner : public Planner {
 public:
  explicit WindowPlanner(Config& options);
  std::string name() const override { return "window"; }
  std::string cache_key(const AttentionCall& call) const override;
  AttentionPlan plan(const AttentionCall& call) override;

 private:
  std::array<int64_t, 3> tile_, window_;
};

}  // namespace fovea
