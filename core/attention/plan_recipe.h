#pragma once

#include <string>

#include "core/json.h"

namespace fovea {

/// How plans were made: what of saved plans travels to other shapes, and what a preset file holds.
struct PlanRecipe {
  std::string planner;  ///< a name of `planner_names()`
  Json options = Json::object();
  bool operator==(const PlanRecipe&) const = default;
};

/// {"attention": NAME, "options": {..}}
Json to_json(const PlanRecipe& recipe);
/// where   file named in errors
/// throws  Error bad_data for something else; `make_planner` says whether it knows them
PlanRecipe recipe_from_json(const Json& json, const std::string& where);

}  // namespace fovea
