#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "core/attention/call.h"
#include "core/attention/plan.h"

namespace fovea {

/// What a plan's first softmax branch over the call's own keys takes of one head, block by block,
/// on the host: to be drawn and counted.
struct PlanMap {
  std::vector<int64_t> q_offsets;   ///< first positions of blocks in the plan's order, and the end
  std::vector<int64_t> kv_offsets;  ///< the same of keys
  std::vector<uint8_t> classes;     ///< [q blocks, kv blocks] of `block_class`
  std::vector<float> seen;          ///< [q blocks, kv blocks] share of an exact block's pairs that
                                    ///< predicates leave
  std::vector<double> row_density;  ///< [q blocks] share of all keys that the rows of a block see
  double density = 0;               ///< share of all pairs whose product is computed

  int64_t q_blocks() const { return static_cast<int64_t>(q_offsets.size()) - 1; }
  int64_t kv_blocks() const { return static_cast<int64_t>(kv_offsets.size()) - 1; }
  bool operator==(const PlanMap&) const = default;
};

/// The maps of one item of a batch: one for each head, or a single one that all heads share. Blocks
/// that a predicate cuts through count as a whole: that is what executors pay. Waits for the
/// device.
///
/// returns  nothing for plans without such a branch
std::vector<PlanMap> plan_maps(const AttentionPlan& plan, const AttentionCall& call,
                               int64_t item = 0);

/// The share of query-key products that a plan computes, mean over items and heads: those of its
/// softmax over the call's own keys, pooled ones included. Linear attention, pooled values and
/// earlier results need none. nullopt for plans of no or several softmax branches, or of one over
/// other keys. Waits for the device.
std::optional<double> plan_density(const AttentionPlan& plan, const AttentionCall& call);

}  // namespace fovea
