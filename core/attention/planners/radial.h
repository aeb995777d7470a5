#pragma once

#include "core/attention/planner.h"
#include "core/config.h"

namespace fovea {

/// Radial Attention (Li et al., 2025, section 4.2): the further apart two frames are, the narrower
/// the band of tokens around the same place that see each other, by powers of two; between frames
/// very far apart only every n-th pair is left. Other segments see and are seen by all.
///
/// With P the power of two above the tokens of a frame, and g the number of bits of the distance of
/// two frames: all pairs up to distance 1; beyond, tokens at most max(P / 2^g · decay, block)
/// apart, and where P / 2^g is below a block only distances that are multiples of block · 2^g / P.
/// A block is kept when of its columns with any such pair more than 0.6 have one with more than a
/// third of the block's rows.
///
/// options  decay        default 0.2
///          block        tokens of a block; default 128
///          sink_frames  first frames whose keys all see; default 1
class RadialPlanner : public Planner {
 public:
  explicit RadialPlanner(Config& options);
  std::string name() const override { return "radial"; }
  std::string cache_key(const AttentionCall& call) const override;
  AttentionPlan plan(const AttentionCall& call) override;

 private:
  double decay_;
  int64_t block_, sink_frames_;
};

}  // namespace fovea
