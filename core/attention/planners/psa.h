#pragma once

#include <vector>

#include "core/attention/planner.h"
#include "core/attention/planners/blocks.h"

namespace fovea {

/// Pyramid Sparse Attention (Li et al., 2025, section 3): the more important a block of keys, the
/// less it is pooled. Level 1 is exact; at level t the means of 2^(t − 1) consecutive keys and
/// values stand for them, with + ln(count) on their logits; the least important blocks are skipped.
///
/// A block's importance to a block of queries is the largest probability that any sampled query
/// gives any sampled key of it, under the softmax over all sampled keys, as a share of the row's
/// sum. Of each four consecutive tokens one is sampled, the same in every head, item and step.
/// Blocks in descending order are of the first level whose threshold the sum of shares, their own
/// included, does not pass. Other segments see and are seen by all.
///
/// options  thresholds  ascending sums of shares, up to five of them for pools of 1, 2, 4, 8 and
///                      16; default 0.4, 0.5, 0.6, 0.8
///          shares      instead: the share of blocks that each level gets, such as 0.1, 0.05, 0,
///                      0.2; their counts are rounded down
///          min_exact   share of blocks that are exact at least; default 0.06
///          block_q     tokens of a block of queries; default 128
///          block_kv    tokens of a block of keys; default 128
///          tile        three sides: blocks are these tiles of the grid instead
///
/// differs  The released code draws a quarter of each block at random, and rounds levels so that
///          pooled pieces fill its tiles of 32 keys.
class PsaPlanner : public Planner {
 public:
  explicit PsaPlanner(Config& options);
  std::string name() const override { return "psa"; }
  AttentionPlan plan(const AttentionCall& call) override;

 private:
  at::Tensor levels(const at::Tensor& importance) const;

  std::vector<double> thresholds_, shares_;
  double min_exact_;
  BlockSizes blocks_;
};

}  // namespace fovea
