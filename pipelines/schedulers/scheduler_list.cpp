#include <array>
#include <cmath>
#include <string_view>

#include "core/check.h"
#include "pipelines/schedulers/flow_match_euler.h"
#include "pipelines/schedulers/scheduler.h"
#include "pipelines/schedulers/unipc.h"

namespace fovea::pipelines {
namespace {

struct KnownScheduler {
  const char* name;
  const char* class_name;
  const char* shift_key;
  std::vector<const char*> own_keys;  ///< options that the other class does not have
  std::unique_ptr<Scheduler> (*make)(Config& config, Report& report);
};

const std::array<KnownScheduler, 2>& known_schedulers() {
  static const std::array<KnownScheduler, 2> schedulers{{
      {"unipc",
       "UniPCMultistepScheduler",
       "flow_shift",
       {"beta_start",        "beta_end",        "beta_schedule",     "trained_betas",
        "solver_order",      "prediction_type", "thresholding",      "dynamic_thresholding_ratio",
        "sample_max_value",  "predict_x0",      "solver_type",       "lower_order_final",
        "disable_corrector", "solver_p",        "use_flow_sigmas",   "flow_shift",
        "timestep_spacing",  "steps_offset",    "final_sigmas_type", "rescale_betas_zero_snr"},
       [](Config& config, Report& report) -> std::unique_ptr<Scheduler> {
         return std::make_unique<UniPcScheduler>(UniPcOptions::read(config, report));
       }},
      {"euler",
       "FlowMatchEulerDiscreteScheduler",
       "shift",
       {"shift", "base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len",
        "invert_sigmas", "stochastic_sampling"},
       [](Config& config, Report& report) -> std::unique_ptr<Scheduler> {
         return std::make_unique<FlowMatchEulerScheduler>(
             FlowMatchEulerOptions::read(config, report));
       }},
  }};
  return schedulers;
}

const KnownScheduler* find(const std::string& name) {
  for (const KnownScheduler& known : known_schedulers()) {
    if (name == known.name || name == known.class_name) return &known;
  }
  return nullptr;
}

/// The object without keys that its writer says hold defaults of that time.
Json without_recorded_defaults(const Json& object) {
  Json kept = object;
  const auto recorded = object.find("_use_default_values");
  if (recorded != object.end() && recorded->is_array()) {
    for (const Json& key : *recorded) {
      if (key.is_string()) kept.erase(key.get<std::string>());
    }
  }
  return kept;
}

/// `options` of the class `own` as `wanted` takes them over.
Json converted(Json options, const KnownScheduler& own, const KnownScheduler& wanted) {
  for (const char* key : own.own_keys) options.erase(key);
  if (wanted.name == std::string_view("unipc")) {
    if (!options.contains("prediction_type")) options["prediction_type"] = "flow_prediction";
    if (!options.contains("use_flow_sigmas")) options["use_flow_sigmas"] = true;
  }
  return options;
}

}  // namespace

std::unique_ptr<Scheduler> make_scheduler(const Config& config, const SchedulerChoice& choice,
                                          Report& report) {
  Config given(config.json(), config.where());
  const std::string own_name = given.text("_class_name", "");
  const KnownScheduler* own = find(own_name);
  const KnownScheduler* wanted = choice.name.empty() ? own : find(choice.name);
  if (choice.name.empty() && !wanted) {
    given.refuse("_class_name",
                 "expected UniPCMultistepScheduler or FlowMatchEulerDiscreteScheduler");
  }
  require(wanted != nullptr, ErrorCode::usage, "--scheduler", "expected unipc or euler, got ",
          choice.name);

  Json options = without_recorded_defaults(config.json());
  if (own && own != wanted) options = converted(options, *own, *wanted);
  if (choice.flow_shift) {
    const double shift = *choice.flow_shift;
    require(std::isfinite(shift) && shift > 0, ErrorCode::usage, "--flow-shift",
            "expected a finite number above 0, got ", shift);
    options[wanted->shift_key] = shift;
  }
  Config resolved(options, config.where());
  return wanted->make(resolved, report);
}

}  // namespace fovea::pipelines
