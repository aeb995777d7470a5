#pragma once

#include <optional>
#include <string>

#include "pipelines/schedulers/scheduler.h"

namespace fovea::pipelines {

/// Options of `FlowMatchEulerScheduler`, by their names in diffusers' scheduler_config.json.
struct FlowMatchEulerOptions {
  enum class Spacing { linear, karras, exponential };

  int64_t num_train_timesteps = 1000;
  double shift = 1.0;
  bool invert_sigmas = false;
  double shift_terminal = 0;          ///< 0: none
  Spacing spacing = Spacing::linear;  ///< use_karras_sigmas, use_exponential_sigmas
  std::optional<double> sigma_min;    ///< ends of the karras and exponential spacings
  std::optional<double> sigma_max;

  /// throws Error bad_data naming a key whose value is not supported: use_dynamic_shifting (the
  /// pipelines give no mu), stochastic_sampling, use_beta_sigmas, and what the reference refuses
  static FlowMatchEulerOptions read(Config& config, Report& report);
};

/// First-order steps along a flow, with the schedule of diffusers'
/// `FlowMatchEulerDiscreteScheduler`: equal sigmas and timesteps (fp32, not truncated), equal
/// steps. The shift is applied twice at the low end: to the smallest training noise level, and
/// again to the values spaced down to it.
///
/// The returned sample has the dtype of the prediction, as the reference's has: in a bf16 run
/// samples are bf16 from the first step on.
/// paper  Rectified flow transformers, arXiv 2403.03206, equation 23 (shift)
class FlowMatchEulerScheduler : public Scheduler {
 public:
  explicit FlowMatchEulerScheduler(FlowMatchEulerOptions options);

  std::string name() const override { return "euler"; }
  Json describe() const override;

 protected:
  Schedule make_schedule(int64_t num_steps) const override;
  void reset() override {}
  at::Tensor do_step(const at::Tensor& model_output, int64_t step_index,
                     const at::Tensor& sample) override;
  void save(TensorMap&) const override {}
  void restore(const TensorMap&, at::Device, const std::string&) override {}

 private:
  FlowMatchEulerOptions options_;
};

}  // namespace fovea::pipelines
