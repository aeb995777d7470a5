#pragma once

#include <string>

#include "core/attention/planner.h"
#include "core/attention/planners/blocks.h"

namespace fovea {

/// What `sla_plan` makes.
struct SlaOptions {
  double density = 0.1;  ///< share of the blocks of keys whose softmax is computed
  BlockSizes blocks = {.q = 64, .kv = 64, .tile = {}};
  FeatureMap feature_map = FeatureMap::softmax;
  /// The linear branch takes all keys, not only those that the softmax skips.
  bool linear_over_all = false;
  double epsilon = 1e-5;  ///< added to the linear branch's normaliser
};

/// "softmax", "elu" (elu + 1) or "relu".
///
/// throws  Error usage for another name
FeatureMap feature_map_of(const std::string& name);

/// Sparse-Linear Attention (Zhang et al., 2025, section 4): softmax over the blocks with the
/// highest products of block means, plus a linear attention over the other ones, whose result goes
/// through a projection that all heads of a layer share: O = O_softmax + O_linear · Wᵀ + b. Of each
/// block of queries max(1, floor(density · blocks + 1/2)) are kept. Other segments see and are seen
/// by all. Differentiable, but for the choice of blocks.
///
/// proj_weight  [value_dim, value_dim], or undefined: the identity
/// proj_bias    [value_dim], or undefined
/// block_mask   bool or uint8 [batch or 1, heads or 1, q blocks, kv blocks] of kept blocks that
///              takes the place of the choice, or undefined
/// throws       Error usage for a block mask of another type or shape
/// differs      The paper drops the last tenth of the blocks; its released code does not, and
///              neither do we.
AttentionPlan sla_plan(const AttentionCall& call, const SlaOptions& options,
                       const at::Tensor& proj_weight = {}, const at::Tensor& proj_bias = {},
                       const at::Tensor& block_mask = {});

/// Plans with `sla_plan`; the projection is the layer's `AttentionCall::params`.
///
/// options  density      default 0.1
///          linear_over  "unselected" (default) or "all" keys
///          feature_map  "softmax" (default, over the channels), "elu" (elu + 1) or "relu"
///          projection   what stands in for a layer without a learned one: "zero" (default, as
///                       training begins; leaves the linear branch out) or "identity"
///          block_q      tokens of a block of queries; default 64
///          block_kv     tokens of a block of keys; default 64
///          tile         three sides: blocks are these tiles of the grid instead
class SlaPlanner : public Planner {
 public:
  explicit SlaPlanner(Config& options);
  std::string name() const override { return "sla"; }
  std::vector<std::string> param_names() const override { return {"proj_weight", "proj_bias"}; }
  AttentionPlan plan(const AttentionCall& call) override;

 private:
  SlaOptions options_;
  bool identity_;
};

}  // namespace fovea
