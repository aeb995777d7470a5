#include "core/attention/plan_recipe.h"

#include "core/config.h"

namespace fovea {

Json to_json(const PlanRecipe& recipe) {
  return {{"attention", recipe.planner}, {"options", recipe.options}};
}

PlanRecipe recipe_from_json(const Json& json, const std::string& where) {
  Config config(json, where);
  PlanRecipe out{config.text("attention", ""), Json::object()};
  if (out.planner.empty()) config.refuse("attention", "expected a method's name");
  config.ignore({"options"});
  if (config.has("options")) out.options = config.json()["options"];
  if (!out.options.is_object()) config.refuse("options", "expected an object");
  Report strict(/*strict=*/true);
  config.finish(strict);
  return out;
}

}  // namespace fovea
