#include "pipelines/schedulers/flow_match_euler.h"

#include <ATen/ATen.h>

#include "core/check.h"
#include "pipelines/schedulers/sigmas.h"

namespace fovea::pipelines {

FlowMatchEulerOptions FlowMatchEulerOptions::read(Config& config, Report& report) {
  constexpr int64_t kMaxTrainTimesteps = 1'000'000;
  FlowMatchEulerOptions options;
  options.num_train_timesteps = config.integer("num_train_timesteps", 1000, 1, kMaxTrainTimesteps);
  options.shift = positive_number(config, "shift", 1.0);
  options.invert_sigmas = config.boolean("invert_sigmas", false);
  options.shift_terminal = optional_number(config, "shift_terminal").value_or(0);
  const bool karras = config.boolean("use_karras_sigmas", false);
  const bool exponential = config.boolean("use_exponential_sigmas", false);
  if (karras && exponential)
    config.refuse("use_karras_sigmas", "expected false with use_exponential_sigmas");
  if (karras) options.spacing = Spacing::karras;
  if (exponential) options.spacing = Spacing::exponential;
  options.sigma_min = optional_number(config, "sigma_min");
  options.sigma_max = optional_number(config, "sigma_max");
  if (config.boolean("use_dynamic_shifting", false)) {
    config.refuse("use_dynamic_shifting", "not supported, the pipeline gives no mu");
  }
  for (const char* key : {"use_beta_sigmas", "stochastic_sampling"}) {
    if (config.boolean(key, false)) config.refuse(key, "not supported");
  }
  const std::string time_shift = config.text("time_shift_type", "exponential");
  if (time_shift != "exponential" && time_shift != "linear") {
    config.refuse("time_shift_type", "expected exponential or linear");
  }
  // Without effect as long as dynamic shifting is off.
  config.ignore({"base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len",
                 "quantization_config"});
  config.finish(report);
  return options;
}

FlowMatchEulerScheduler::FlowMatchEulerScheduler(FlowMatchEulerOptions options)
    : Scheduler(options.num_train_timesteps), options_(std::move(options)) {}

Json FlowMatchEulerScheduler::describe() const {
  Json json;
  json["class"] = "FlowMatchEulerDiscreteScheduler";
  json["shift"] = options_.shift;
  json["shift_terminal"] = options_.shift_terminal;
  json["invert_sigmas"] = options_.invert_sigmas;
  json["use_karras_sigmas"] = options_.spacing == FlowMatchEulerOptions::Spacing::karras;
  json["use_exponential_sigmas"] = options_.spacing == FlowMatchEulerOptions::Spacing::exponential;
  return json;
}

Scheduler::Schedule FlowMatchEulerScheduler::make_schedule(int64_t num_steps) const {
  const double train_steps = static_cast<double>(num_train_timesteps());
  // The training schedule's ends, shifted in fp32 as the reference's constructor does.
  at::Tensor ends =
      at::tensor(std::vector<double>{1.0, train_steps}, at::kDouble).to(at::kFloat) / train_steps;
  ends = options_.shift * ends / (1 + (options_.shift - 1) * ends);
  std::vector<double> sigmas = linspace(ends[1].item<double>() * train_steps,
                                        ends[0].item<double>() * train_steps, num_steps);
  for (double& sigma : sigmas) sigma /= train_steps;
  shift_sigmas(sigmas, options_.shift);
  if (options_.shift_terminal != 0) stretch_to_terminal(sigmas, options_.shift_terminal);
  const double high = options_.sigma_max.value_or(sigmas.front());
  const double low = options_.sigma_min.value_or(sigmas.back());
  if (options_.spacing == FlowMatchEulerOptions::Spacing::karras)
    sigmas = karras_sigmas(high, low, num_steps);
  if (options_.spacing == FlowMatchEulerOptions::Spacing::exponential) {
    sigmas = exponential_sigmas(high, low, num_steps);
  }
  at::Tensor levels = at::tensor(to_fp32(sigmas));
  if (options_.invert_sigmas) levels = 1.0 - levels;
  const at::Tensor last = at::full({1}, options_.invert_sigmas ? 1.0 : 0.0, levels.options());
  return {at::cat({levels, last}), levels * train_steps};
}

at::Tensor FlowMatchEulerScheduler::do_step(const at::Tensor& model_output, int64_t step_index,
                                            const at::Tensor& sample) {
  const at::Tensor delta = sigmas()[step_index + 1] - sigmas()[step_index];
  return (sample.to(at::kFloat) + delta * model_output).to(model_output.scalar_type());
}

}  // namespace fovea::pipelines
