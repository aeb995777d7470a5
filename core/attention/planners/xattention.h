#pragma once

#include "core/attention/planner.h"
#include "core/attention/planners/blocks.h"

namespace fovea {

/// XAttention (Xu et al., 2025, section 2): a pair of blocks is as important as the sums of its
/// antidiagonals, which cross every vertical and slanted line of large products.
///
/// Each block is cut into pieces of `stride` tokens. A piece of queries and a piece of keys score
/// Σ over p of q[stride − 1 − p] · k[p], divided by stride, and scaled like any logit; the softmax
/// of a piece of queries over all pieces of keys is summed over each pair of blocks. Of each block
/// of queries the fewest blocks are kept whose share reaches `top_p`. Other segments see and are
/// seen by all.
///
/// options  top_p     share of the sum that is kept, the block that passes it included; default 0.9
///          stride    tokens of a piece; default 8
///          sink      whether all see the first block of keys; default false
///          block_q   tokens of a block of queries; default 128
///          block_kv  tokens of a block of keys; default 128
///          tile      three sides: blocks are these tiles of the grid instead
///
/// differs  A piece that is shorter, at the end of a block or before padding, repeats its tokens,
///          and counts by their number. The released code always keeps the first block of keys:
///          `sink`.
class XAttentionPlanner : public Planner {
 public:
  explicit XAttentionPlanner(Config& options);
  std::string name() const override { return "xattention"; }
  AttentionPlan plan(const AttentionCall& call) override;

 private:
  double top_p_;
  int64_t stride_;
  bool sink_;
  BlockSizes blocks_;
};

}  // namespace fovea
