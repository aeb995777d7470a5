#pragma once

#include <array>

#include "core/attention/planner.h"
#include "core/config.h"

namespace fovea {

/// Neighborhood attention in one, two or three dimensions (Hassani et al., 2023; generalized:
/// 2025): a window of tokens along each axis, see `AxisWindow`. Other segments see and are seen by
/// all.
///
/// options  window    tokens along frames, height, width; default 3, 7, 7; an axis that is shorter
///                    is taken whole
///          stride    default 1, 1, 1
///          dilation  default 1, 1, 1
///          causal    three booleans; default false
class NeighborhoodPlanner : public Planner {
 public:
  explicit NeighborhoodPlanner(Config& options);
  std::string name() const override { return "neighborhood"; }
  std::string cache_key(const AttentionCall& call) const override;
  AttentionPlan plan(const AttentionCall& call) override;

 private:
  std::array<AxisWindow, 3> axes_;
};

}  // namespace fovea
