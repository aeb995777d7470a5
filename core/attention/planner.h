#pragma once

#include <memory>
#include <string>
#include <vector>

#include "core/attention/call.h"
#include "core/attention/plan.h"
#include "core/attention/plan_recipe.h"
#include "core/json.h"

namespace fovea {

/// Decides which part of an attention is computed. One planner per paper, one file each.
class Planner {
 public:
  virtual ~Planner() = default;
  virtual std::string name() const = 0;
  /// Roles that it plans; the others run dense.
  virtual bool plans(AttentionRole role) const {
    return role == AttentionRole::self || role == AttentionRole::joint;
  }
  /// What learned tensors `AttentionCall::params` holds for it; the planner's header says their
  /// shapes and what a call without any means.
  virtual std::vector<std::string> param_names() const { return {}; }
  /// Calls with equal keys have equal plans, so that one is made for all of them; empty: each call
  /// has its own. Depends on what the host knows.
  virtual std::string cache_key(const AttentionCall&) const { return ""; }
  /// What makes a planner that decides the same, for other shapes too, and needs no file:
  /// `options`, those it was made of, with what it read from files in their place. What is for one
  /// shape only is left out.
  virtual PlanRecipe recipe(const Json& options) const { return {name(), options}; }
  /// Never touches the host: no device-to-host copy, no data-dependent size.
  ///
  /// throws  Error usage when the options do not fit the call, such as a window beyond the grid
  virtual AttentionPlan plan(const AttentionCall& call) = 0;
};

/// Options as a user writes them: KEY=VALUE with numbers, true, false, words, and lists of them
/// with commas between.
///
/// where   what the options were given to, for messages, such as "--attn"
/// throws  Error usage for a text without a key, "=" and a value
Json parse_planner_options(const std::vector<std::string>& texts, const std::string& where);

/// Names of all planners, in the order of `planner_list.cpp`.
std::vector<std::string> planner_names();
/// options  JSON object; the keys are those of the planner's header, and all of them have defaults
///          but the folder of `saved`
/// throws   Error usage for a name that is not on the list, and for options
std::unique_ptr<Planner> make_planner(const std::string& name,
                                      const Json& options = Json::object());

}  // namespace fovea
