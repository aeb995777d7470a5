#pragma once

#include <array>
#include <vector>

#include "core/attention/planner.h"
#include "core/config.h"

namespace fovea {

/// FPSAttention (Liu et al., 2025, section 3): one tile of the grid is the unit of all three: what
/// is kept, what shares an FP8 scale, and what a kernel computes. A tile of queries sees the tiles
/// of keys whose distance on each axis, in tiles, is at most window / (2 · tile). Queries and keys
/// are e4m3 with a scale per tile, values per channel, weights relative to powers of 2 (there with
/// the fixed scale 1 / 448). Tile and window may change twice during the steps. Other segments see
/// and are seen by all.
///
/// options  tile       three sides in tokens: frames, height, width; or nine: of the early, the
///                     middle and the late steps; default 4, 8, 8
///          window     three sides in tokens, or nine; default three times the tile
///          switch     the shares of the steps at which the middle and the late ones begin;
///                     default 0.25, 0.75
///          precision  "fp8" (default), or "storage" for none
///
/// differs  The paper trains with it, and does not print when it switches.
class FpsPlanner : public Planner {
 public:
  explicit FpsPlanner(Config& options);
  std::string name() const override { return "fps"; }
  std::string cache_key(const AttentionCall& call) const override;
  AttentionPlan plan(const AttentionCall& call) override;

 private:
  struct Stage {
    std::array<int64_t, 3> tile{}, window{};
  };
  size_t stage_of(const AttentionCall& call) const;

  std::array<Stage, 3> stages_;
  std::vector<double> switch_;
  Precision precision_;
};

}  // namespace fovea
