#include "pipelines/schedulers/sigmas.h"
#include "pipelines/schedulers/unipc.h"

namespace fovea::pipelines {
namespace {

UniPcOptions::Prediction read_prediction(Config& config) {
  const std::string text = config.text("prediction_type", "epsilon");
  if (text == "epsilon") return UniPcOptions::Prediction::epsilon;
  if (text == "sample") return UniPcOptions::Prediction::sample;
  if (text == "v_prediction") return UniPcOptions::Prediction::v_prediction;
  if (text == "flow_prediction") return UniPcOptions::Prediction::flow_prediction;
  config.refuse("prediction_type", "expected epsilon, sample, v_prediction or flow_prediction");
}

const char* prediction_name(UniPcOptions::Prediction prediction) {
  switch (prediction) {
    case UniPcOptions::Prediction::epsilon:
      return "epsilon";
    case UniPcOptions::Prediction::sample:
      return "sample";
    case UniPcOptions::Prediction::v_prediction:
      return "v_prediction";
    case UniPcOptions::Prediction::flow_prediction:
      return "flow_prediction";
  }
  return "?";
}

UniPcOptions::Spacing read_spacing(Config& config) {
  const std::string text = config.text("timestep_spacing", "linspace");
  if (text == "linspace") return UniPcOptions::Spacing::linspace;
  if (text == "leading") return UniPcOptions::Spacing::leading;
  if (text == "trailing") return UniPcOptions::Spacing::trailing;
  config.refuse("timestep_spacing", "expected linspace, leading or trailing");
}

bool read_is_bh2(Config& config) {
  const std::string text = config.text("solver_type", "bh2");
  if (text == "bh1") return false;
  // Names of other schedulers' solvers, which the reference takes for bh2.
  if (text == "bh2" || text == "midpoint" || text == "heun" || text == "logrho") return true;
  config.refuse("solver_type", "expected bh1 or bh2");
}

bool read_is_zero(Config& config) {
  const std::string text = config.text("final_sigmas_type", "zero");
  if (text == "zero") return true;
  if (text == "sigma_min") return false;
  config.refuse("final_sigmas_type", "expected zero or sigma_min");
}

/// Values that would need what this project does not run.
void refuse_unsupported(Config& config) {
  if (config.boolean("use_dynamic_shifting", false)) {
    config.refuse("use_dynamic_shifting", "not supported, the pipeline gives no mu");
  }
  if (config.boolean("thresholding", false)) config.refuse("thresholding", "not supported");
  if (config.has("solver_p")) config.refuse("solver_p", "not supported, expected null");
  for (const char* key : {"use_exponential_sigmas", "use_beta_sigmas"}) {
    if (config.boolean(key, false)) config.refuse(key, "not supported");
  }
}

}  // namespace

UniPcOptions UniPcOptions::read(Config& config, Report& report) {
  constexpr int64_t kMaxOrder = 16;
  constexpr int64_t kMaxStep = 1'000'000;
  UniPcOptions options;
  options.betas = BetaSchedule::read(config);
  options.solver_order = config.integer("solver_order", 2, 1, kMaxOrder);
  options.prediction_type = read_prediction(config);
  options.predict_x0 = config.boolean("predict_x0", true);
  if (!options.predict_x0 && options.prediction_type == Prediction::flow_prediction) {
    config.refuse("predict_x0", "expected true with prediction_type flow_prediction");
  }
  options.bh2 = read_is_bh2(config);
  options.lower_order_final = config.boolean("lower_order_final", true);
  for (const int64_t step : config.integers("disable_corrector", {}, -kMaxStep, kMaxStep)) {
    options.disable_corrector.insert(step);
  }
  options.use_flow_sigmas = config.boolean("use_flow_sigmas", false);
  options.use_karras_sigmas = config.boolean("use_karras_sigmas", false);
  if (options.use_karras_sigmas && !options.use_flow_sigmas) {
    config.refuse("use_karras_sigmas", "supported with use_flow_sigmas only");
  }
  options.flow_shift = positive_number(config, "flow_shift", 1.0);
  options.timestep_spacing = read_spacing(config);
  options.steps_offset = config.integer("steps_offset", 0, -kMaxStep, kMaxStep);
  options.final_sigma_zero = read_is_zero(config);
  options.sigma_min = optional_number(config, "sigma_min");
  options.sigma_max = optional_number(config, "sigma_max");
  options.shift_terminal = optional_number(config, "shift_terminal").value_or(0);
  if (config.has("shift_terminal") && !options.use_flow_sigmas) {
    config.refuse("shift_terminal", "supported with use_flow_sigmas only");
  }
  refuse_unsupported(config);
  if (options.final_sigma_zero && !options.bh2) {
    config.refuse("solver_type",
                  "bh1 needs final_sigmas_type sigma_min, its last step divides by zero");
  }
  const int64_t last_order = options.lower_order_final ? 1 : options.solver_order;
  if (last_order > 2 || (last_order == 2 && options.final_sigma_zero)) {
    config.refuse("lower_order_final", "expected true here, the last step divides by zero");
  }
  // Without effect as long as thresholding and dynamic shifting are off; then options of other
  // schedulers of the same family, which the reference drops without a word.
  config.ignore({"dynamic_thresholding_ratio", "sample_max_value", "time_shift_type"});
  config.ignore({"algorithm_type", "clip_sample", "clip_sample_range", "euler_at_final",
                 "interpolation_type", "lambda_min_clipped", "rho", "set_alpha_to_one",
                 "sigma_data", "sigma_schedule", "skip_prk_steps", "timestep_type",
                 "use_lu_lambdas", "variance_type", "quantization_config"});
  config.finish(report);
  return options;
}

Json UniPcScheduler::describe() const {
  Json json;
  json["class"] = "UniPCMultistepScheduler";
  json["solver_order"] = options_.solver_order;
  json["solver_type"] = options_.bh2 ? "bh2" : "bh1";
  json["prediction_type"] = prediction_name(options_.prediction_type);
  json["use_flow_sigmas"] = options_.use_flow_sigmas;
  json["use_karras_sigmas"] = options_.use_karras_sigmas;
  json["flow_shift"] = options_.flow_shift;
  json["shift_terminal"] = options_.shift_terminal;
  return json;
}

}  // namespace fovea::pipelines
