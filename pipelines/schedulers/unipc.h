#pragma once

#include <set>
#include <string>
#include <vector>

#include "pipelines/schedulers/beta_schedule.h"
#include "pipelines/schedulers/scheduler.h"

namespace fovea::pipelines {

/// Options of `UniPcScheduler`, by their names in diffusers' scheduler_config.json.
struct UniPcOptions {
  enum class Prediction { epsilon, sample, v_prediction, flow_prediction };
  enum class Spacing { linspace, leading, trailing };

  BetaSchedule betas;
  int64_t solver_order = 2;
  Prediction prediction_type = Prediction::epsilon;
  bool predict_x0 = true;
  bool bh2 = true;  ///< solver_type: B(h) = exp(h) − 1, else B(h) = h
  bool lower_order_final = true;
  std::set<int64_t> disable_corrector;  ///< steps after which no corrector runs
  bool use_karras_sigmas = false;
  bool use_flow_sigmas = false;
  double flow_shift = 1.0;
  Spacing timestep_spacing = Spacing::linspace;
  int64_t steps_offset = 0;
  bool final_sigma_zero = true;  ///< final_sigmas_type: zero, else sigma_min
  std::optional<double> sigma_min;
  std::optional<double> sigma_max;
  double shift_terminal = 0;  ///< 0: none

  /// throws Error bad_data naming a key whose value is not supported: use_dynamic_shifting (the
  /// pipelines give no mu), thresholding, solver_p, use_exponential_sigmas, use_beta_sigmas,
  /// use_karras_sigmas without use_flow_sigmas, combinations whose last step gives NaN in the
  /// reference (solver_type bh1, or lower_order_final false, with a final sigma of zero), and what
  /// the reference refuses itself
  static UniPcOptions read(Config& config, Report& report);
};

/// UniPC, the multistep predictor-corrector, with the schedules of diffusers'
/// `UniPCMultistepScheduler`: equal sigmas, equal timesteps (truncated to int64), equal steps.
///
/// The coefficients of a step are fp32 scalars computed on the CPU whatever the samples' device.
/// The returned sample has the dtype of the given one. Schedules with two equal noise levels are
/// refused (Error bad_data); the reference gives NaN for them.
///
/// differs  A run always starts at index 0. The reference's image-to-video pipeline sets no begin
///          index; it fails where the first two timesteps are equal and agrees elsewhere.
/// paper    UniPC, arXiv 2302.04867, algorithms 5 to 8
class UniPcScheduler : public Scheduler {
 public:
  explicit UniPcScheduler(UniPcOptions options);

  std::string name() const override { return "unipc"; }
  Json describe() const override;

 protected:
  Schedule make_schedule(int64_t num_steps) const override;
  void reset() override;
  at::Tensor do_step(const at::Tensor& model_output, int64_t step_index,
                     const at::Tensor& sample) override;
  void save(TensorMap& state) const override;
  void restore(const TensorMap& state, at::Device device, const std::string& where) override;

 private:
  struct Solver;

  Schedule training_schedule(int64_t num_steps) const;
  void check_distinct(const at::Tensor& sigmas) const;
  /// Signal and noise scale of noise levels, and the log of their ratio; fp32, any shape.
  std::pair<at::Tensor, at::Tensor> alpha_sigma(const at::Tensor& sigma) const;
  at::Tensor half_log_snr(const at::Tensor& sigma) const;
  at::Tensor convert(const at::Tensor& model_output, int64_t step_index,
                     const at::Tensor& sample) const;
  Solver solver(int64_t from, int64_t to, int64_t order, at::ScalarType dtype) const;
  at::Tensor predict(int64_t step_index, const at::Tensor& sample) const;
  at::Tensor correct(int64_t step_index, const at::Tensor& converted,
                     const at::Tensor& sample) const;
  at::Tensor first_order(const Solver& solver, const at::Tensor& sample) const;

  UniPcOptions options_;
  std::vector<at::Tensor>
      outputs_;             ///< converted predictions, the newest last; solver_order of them
  at::Tensor last_sample_;  ///< where the last predictor started
  int64_t warm_steps_ = 0;  ///< predictions kept so far, at most solver_order
  int64_t order_ = 1;       ///< order of the last predictor
};

}  // namespace fovea::pipelines
