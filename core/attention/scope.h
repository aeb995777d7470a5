#pragma once

#include <map>
#include <optional>
#include <string>

#include "core/attention/attention.h"

namespace fovea {

struct ScopeOptions {
  std::string planner = "dense";
  Json planner_options = Json::object();
  /// What the tokens of calls of its length are; others are planned as plain sequences.
  std::optional<TokenLayout> layout;
};

/// While it lives, every `at::scaled_dot_product_attention` of its thread runs by a plan, also in
/// code that knows nothing of it, with or without gradients.
///
/// Calls with as many queries as keys are planned; the rest, and those with dropout, run as they
/// would without. Scopes nest: the inner one counts. Not to be moved to another thread.
class AttentionScope {
 public:
  /// throws  Error usage for an unknown planner or option
  explicit AttentionScope(const ScopeOptions& options);
  ~AttentionScope();
  AttentionScope(const AttentionScope&) = delete;
  AttentionScope& operator=(const AttentionScope&) = delete;

  /// Tells planners that the network is evaluated once more: layers are counted by calls since.
  void next_step();
  /// Calls so far, as `Attention::counts`; and "left alone" for those that ran as without a scope.
  std::map<std::string, int64_t> counts() const;

 private:
  friend struct ScopedSdpa;

  ScopeOptions options_;
  Attention attention_;
  StepContext context_;
  int64_t layer_ = 0;
  int64_t left_alone_ = 0;
  AttentionScope* outer_;
};

}  // namespace fovea
