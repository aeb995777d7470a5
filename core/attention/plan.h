#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include <ATen/core/Tensor.h>

#include "core/attention/block_mask.h"
#include "core/attention/call.h"
#include "core/attention/precision.h"
#include "core/attention/predicate.h"
#include "core/attention/token_order.h"

namespace fovea {

/// What stands for a block of keys that is not looked at key by key.
struct Summary {
  /// Consecutive keys of the block, in order, that one pooled key and value are the mean of; 0: all
  /// of the block. Padding never enters a mean.
  int64_t pool = 0;
  /// Whether the logit gets + ln of the number of keys in the mean, so that the pooled key counts
  /// for all of them (Pyramid Sparse Attention, 2025, section 3.2).
  bool log_count = true;
  bool operator==(const Summary&) const = default;
};

/// Which keys a branch takes for which queries: blocks of both sides, and what becomes of each pair
/// of blocks.
struct Selection {
  BlockAxis q_blocks;
  BlockAxis kv_blocks;
  /// uint8 [batch or 1, heads or 1, q blocks, kv blocks] of `block_class`; undefined: all exact,
  /// and no blocks are needed.
  at::Tensor classes;
  std::vector<Summary> summaries;
  /// ANDed; for exact blocks. A summary block must be wholly visible.
  std::vector<Predicate> predicates;

  bool is_everything() const { return !classes.defined() && predicates.empty(); }
};

/// Keys and values that take the place of the call's own: pooled, gathered, merged, agents.
struct GivenKeys {
  at::Tensor k;     ///< [batch, kv_heads, keys, head_dim]
  at::Tensor v;     ///< [batch, kv_heads, keys, value_dim]
  at::Tensor bias;  ///< added to the logits, [batch or 1, heads or 1, keys], or undefined
};

/// softmax(q·kᵀ · sm_scale + bias)·v over the selected keys.
struct SoftmaxBranch {
  Selection selection;
  /// With them the selection's kv side, its classes too, speak of these keys.
  std::optional<GivenKeys> keys;
  /// A quantized branch has no summaries and no given keys.
  Precision precision;
};

enum class FeatureMap { softmax, elu_plus_one, relu };

/// φ(q)·Σφ(k)ᵀv / (φ(q)·Σφ(k) + epsilon), over all valid keys or those that a softmax branch skips
/// (Katharopoulos et al., 2020, equation 5; Sparse-Linear Attention, Zhang et al., 2025, section
/// 4).
struct LinearBranch {
  FeatureMap feature_map = FeatureMap::softmax;
  /// Number of the branch of the plan whose unselected keys are taken; none: all keys. A query all
  /// of whose keys are selected gets exactly 0.
  std::optional<size_t> complement_of;
  double epsilon = 1e-5;
  at::Tensor proj_weight;  ///< [value_dim, value_dim] applied to each head's result, or undefined
  at::Tensor proj_bias;    ///< [value_dim], or undefined
};

/// Σ over blocks of weights · mean of the block's values; the rows of a block of queries get the
/// same.
struct PooledValuesBranch {
  BlockAxis q_blocks;
  BlockAxis kv_blocks;
  at::Tensor weights;  ///< [batch or 1, heads or 1, q blocks, kv blocks]
};

/// An output from before.
struct ReuseBranch {
  at::Tensor out;  ///< [batch, heads, q_len, value_dim]
  at::Tensor lse;  ///< [batch, heads, q_len], or undefined
};

struct Branch {
  std::variant<SoftmaxBranch, LinearBranch, PooledValuesBranch, ReuseBranch> kind;
  /// Branches of one group are merged by their log-sum-exp, as if their keys had been one softmax.
  size_t group = 0;
};

/// What to compute for one `AttentionCall`: data, made by a planner and run by an executor.
///
/// The result is Σ over groups of weight · merged branches. Positions of all selections are those
/// of the plan's orders.
struct AttentionPlan {
  std::string planner;  ///< name of the planner that made it
  TokenOrder q_order;
  TokenOrder kv_order;
  std::vector<Branch> branches;
  /// One for each group, broadcasts to [batch, heads, q_len, value_dim]; undefined: 1.
  std::vector<at::Tensor> group_weights;

  /// One softmax branch over every valid key.
  static AttentionPlan dense(std::string planner);
  bool is_dense() const;
  size_t num_groups() const;
  /// All that the host knows, such as "radial: q identity, kv identity; softmax 104x104 blocks".
  std::string describe() const;
};

/// Refuses by name what the host can see is wrong: no branch, groups that are not 0, 1, 2 ..., more
/// weights than groups, branches of one group without a log-sum-exp, shapes of class maps,
/// summaries that are not there, a complement of a branch that is no softmax, scales per block
/// without blocks.
///
/// throws  Error usage
void validate(const AttentionPlan& plan, const AttentionCall& call);

/// Share of all query-key pairs whose product is computed, per item and head, fp32
/// [batch or 1, heads or 1] on the device of the class map: exact blocks with their sizes, summary
/// blocks with their pooled keys; predicates are not counted. Without a class map 1.
at::Tensor block_density(const Selection& selection, at::Device device);

}  // namespace fovea
