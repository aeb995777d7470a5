#pragma once

#include "core/attention/planner.h"
#include "core/attention/planners/blocks.h"

namespace fovea {

/// Blocks chosen by the products of block means: of each block of queries the highest share of
/// blocks of keys. The selector of Sparse-Linear Attention (Zhang et al., 2025, section 4.1), which
/// subtracts the mean of all keys first. Other segments see and are seen by all.
///
/// options  density   share of the blocks of keys; default 0.25
///          block_q   tokens of a block of queries; default 128
///          block_kv  tokens of a block of keys; default 128
///          tile      three sides: blocks are these tiles of the grid instead
///          top_p     instead of the share: the fewest blocks whose softmax over block means
///                    reaches it
class TopKPlanner : public Planner {
 public:
  explicit TopKPlanner(Config& options);
  std::string name() const override { return "topk"; }
  AttentionPlan plan(const AttentionCall& call) override;

 private:
  double density_, top_p_;
  BlockSizes blocks_;
};

}  // namespace fovea
