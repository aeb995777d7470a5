#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/attention/plan_store.h"
#include "core/attention/planner.h"
#include "core/config.h"

namespace fovea {

/// Plans of an earlier run once more, from a folder as `PlanStore` writes it (`fovea plan --save`):
/// that of the call's layer, role, part of the schedule and guidance branch.
///
/// options  file    the folder; has no default
///          replan  where the folder has no plan, or one for another shape, plan by the folder's
///                  recipe; default false: such calls are refused
///          model   fingerprint of the model's files, which has to be the folder's; the program
///                  fills it in; default: not compared
///
/// throws  Error bad_data for a folder that cannot be read or is damaged; usage for another model,
///         and when a call has no plan
class SavedPlanner : public Planner {
 public:
  explicit SavedPlanner(Config& options);
  std::string name() const override { return "saved"; }
  /// Roles that the folder has plans for, or that the recipe's planner plans.
  bool plans(AttentionRole role) const override;
  std::vector<std::string> param_names() const override;
  std::string cache_key(const AttentionCall& call) const override;
  /// The folder's.
  PlanRecipe recipe(const Json&) const override { return store_.recipe(); }
  AttentionPlan plan(const AttentionCall& call) override;

 private:
  /// The number of the plan for the call, or why there is none.
  std::optional<size_t> find(const AttentionCall& call, std::string& reason) const;

  std::string file_;
  PlanStore store_;
  std::unique_ptr<Planner> replan_;  // by the recipe, where it is asked for
};

}  // namespace fovea
