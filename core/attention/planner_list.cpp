#include "core/attention/planner.h"
#include "core/attention/planners/dense.h"
#include "core/attention/planners/fps.h"
#include "core/attention/planners/neighborhood.h"
#include "core/attention/planners/paro.h"
#include "core/attention/planners/psa.h"
#include "core/attention/planners/radial.h"
#include "core/attention/planners/saved.h"
#include "core/attention/planners/schedule.h"
#include "core/attention/planners/sla.h"
#include "core/attention/planners/sparge.h"
#include "core/attention/planners/svg2.h"
#include "core/attention/planners/topk.h"
#include "core/attention/planners/window.h"
#include "core/attention/planners/xattention.h"
#include "core/check.h"
#include "core/config.h"

namespace fovea {
namespace {

struct Entry {
  const char* name;
  std::unique_ptr<Planner> (*make)(Config& options);
};

template <typename T>
std::unique_ptr<Planner> make(Config& options) {
  if constexpr (std::is_constructible_v<T, Config&>) {
    return std::make_unique<T>(options);
  } else {
    return std::make_unique<T>();
  }
}

// One line per planner, sorted.
constexpr Entry kPlanners[] = {
    {"dense", make<DensePlanner>},  //
    {"fps", make<FpsPlanner>},      //
    {"neighborhood", make<NeighborhoodPlanner>},
    {"paro", make<ParoPlanner>},
    {"psa", make<PsaPlanner>},
    {"radial", make<RadialPlanner>},
    {"saved", make<SavedPlanner>},
    {"sla", make<SlaPlanner>},
    {"sparge", make<SpargePlanner>},
    {"svg2", make<Svg2Planner>},
    {"topk", make<TopKPlanner>},
    {"window", make<WindowPlanner>},
    {"xattention", make<XAttentionPlanner>},
};

std::unique_ptr<Planner> make_from(const Entry& entry, const Json& options) {
  Config config(options, entry.name);
  const DenseSchedule schedule = DenseSchedule::read(config);
  std::unique_ptr<Planner> planner = entry.make(config);
  config.refuse_unknown();  // a misspelt option must not pass unseen
  if (schedule.is_empty()) return planner;
  return std::make_unique<SchedulePlanner>(std::move(planner), schedule);
}

}  // namespace

Json parse_planner_options(const std::vector<std::string>& texts, const std::string& where) {
  Json out = Json::object();
  for (const std::string& text : texts) {
    const size_t equals = text.find('=');
    require(equals != std::string::npos && equals > 0 && equals + 1 < text.size(), ErrorCode::usage,
            where, "expected KEY=VALUE, got '", text, "'");
    const std::string value = text.substr(equals + 1);
    const bool is_list = value.find(',') != std::string::npos;
    const Json json = Json::parse(is_list ? "[" + value + "]" : value, nullptr,
                                  /*allow_exceptions=*/false);
    out[text.substr(0, equals)] = json.is_discarded() ? Json(value) : json;
  }
  return out;
}

std::vector<std::string> planner_names() {
  std::vector<std::string> names;
  for (const Entry& entry : kPlanners) names.emplace_back(entry.name);
  return names;
}

std::unique_ptr<Planner> make_planner(const std::string& name, const Json& options) {
  std::string known;
  for (const Entry& entry : kPlanners) {
    known += known.empty() ? entry.name : str(", ", entry.name);
    if (name != entry.name) continue;
    try {
      return make_from(entry, options);
    } catch (const Error& error) {
      if (error.where() != entry.name) throw;  // a file that an option names
      // Options are the user's, not a file's.
      throw Error(ErrorCode::usage, "attention " + name, error.reason());
    }
  }
  throw Error(ErrorCode::usage, "attention", str("unknown planner '", name, "'; known: ", known));
}

}  // namespace fovea
