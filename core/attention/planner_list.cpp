#include "core/attention/planner.h"
#include "core/attention/planners/dense.h"
#include "core/check.h"

namespace fovea {
namespace {

struct Entry {
  const char* name;
  std::unique_ptr<Planner> (*make)();
};

template <typename T>
std::unique_ptr<Planner> make() {
  return std::make_unique<T>();
}

// One line per planner, sorted.
constexpr Entry kPlanners[] = {
    {"dense", make<DensePlanner>},
};

}  // namespace

std::vector<std::string> planner_names() {
  std::vector<std::string> names;
  for (const Entry& entry : kPlanners) names.emplace_back(entry.name);
  return names;
}

std::unique_ptr<Planner> make_planner(const std::string& name) {
  std::string known;
  for (const Entry& entry : kPlanners) {
    if (name == entry.name) return entry.make();
    known += known.empty() ? entry.name : str(", ", entry.name);
  }
  throw Error(ErrorCode::usage, "attention", str("unknown planner '", name, "'; known: ", known));
}

}  // namespace fovea
