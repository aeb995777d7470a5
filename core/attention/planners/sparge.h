#pragma once

#include "core/attention/planner.h"
#include "core/attention/planners/blocks.h"

namespace fovea {

/// SpargeAttn (Zhang et al., 2025, section 3.2): a mean speaks for a block only where the block's
/// tokens are alike. The likeness of a block is the mean cosine of all its pairs of tokens; keys
/// are centred first. Of the blocks of alike keys those with the highest softmax over products of
/// block means are kept, as long as their sum does not pass `top_p`, and at least one. Blocks of
/// keys that are not alike are seen by all, blocks of queries that are not alike see all. Other
/// segments see and are seen by all.
///
/// options  similarity  a block is alike above this mean cosine; default 0.6; -1: every block is
///          top_p       sum of the kept shares, the block that passes it excluded; default 0.98
///          density     instead of top_p: the share of blocks of keys with the highest scores
///          sink        whether all see the first block of keys; default false
///          block_q     tokens of a block of queries; default 128
///          block_kv    tokens of a block of keys; default 64
///          tile        three sides: blocks are these tiles of the grid instead
///
/// differs  Rows are cut into blocks as they come, or in tiles; the paper sorts them along a
///          Hilbert curve, its code does not.
class SpargePlanner : public Planner {
 public:
  explicit SpargePlanner(Config& options);
  std::string name() const override { return "sparge"; }
  AttentionPlan plan(const AttentionCall& call) override;

 private:
  double similarity_, top_p_, density_;
  bool sink_;
  BlockSizes blocks_;
};

}  // namespace fovea
