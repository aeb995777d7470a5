#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "core/config.h"
#include "core/weights.h"

namespace fovea::pipelines {

/// Turns a network's predictions into the next, less noisy sample; one object serves one run.
///
/// Use: `set_timesteps`, then `step` for step_index 0, 1, ... in order. A run always starts at
/// index 0. Not thread-safe.
class Scheduler {
 public:
  virtual ~Scheduler() = default;

  /// "unipc" or "euler".
  virtual std::string name() const = 0;
  /// The settings in force, for the report.
  virtual Json describe() const = 0;

  /// Makes the schedule and forgets everything remembered about earlier steps.
  ///
  /// num_steps  1 to 100,000
  /// throws     Error usage when out of range, bad_data when the options give a schedule that is
  ///            not finite
  void set_timesteps(int64_t num_steps);

  /// Steps of the schedule; may differ by one from what `set_timesteps` was given where the
  /// reference's "trailing" spacing rounds so.
  int64_t num_steps() const { return timesteps_.defined() ? timesteps_.size(0) : 0; }
  /// What the network gets, on the CPU: [num_steps], int64 (UniPC) or fp32 (Euler).
  const at::Tensor& timesteps() const { return timesteps_; }
  /// The same values for the host; they are exact.
  const std::vector<double>& timestep_values() const { return timestep_values_; }
  /// Noise levels, fp32 on the CPU: [num_steps + 1].
  const at::Tensor& sigmas() const { return sigmas_; }
  /// Timesteps are counted in [0, num_train_timesteps].
  int64_t num_train_timesteps() const { return num_train_timesteps_; }
  /// Standard deviation of the initial noise.
  double init_noise_sigma() const { return 1.0; }

  /// One step; types promote as in PyTorch (a bf16 prediction with an fp32 sample is fine).
  ///
  /// model_output  the network's prediction at timestep number `step_index`, any shape
  /// step_index    number of steps done since `set_timesteps` or since the restored state
  /// sample        same shape and device as model_output
  /// returns       sample at the next timestep; dtype as the reference's (see the classes)
  /// throws        Error internal when called out of order or with unequal shapes
  at::Tensor step(const at::Tensor& model_output, int64_t step_index, const at::Tensor& sample);

  /// Index of the step that comes next.
  int64_t next_step() const { return next_step_; }

  /// What has to be kept to go on later: named tensors, counters among them as int64 scalars.
  TensorMap state() const;
  /// Goes on where `state()` was taken; call `set_timesteps` with the same number first. The steps
  /// after it are bit-identical to those of the uninterrupted run.
  ///
  /// device  where the samples will be
  /// where   file named in errors
  /// throws  Error bad_data when an entry is missing or does not belong to this schedule
  void load_state(const TensorMap& state, at::Device device, const std::string& where);

 protected:
  struct Schedule {
    at::Tensor sigmas;     ///< [steps + 1], fp32
    at::Tensor timesteps;  ///< [steps], int64 or fp32
  };

  explicit Scheduler(int64_t num_train_timesteps) : num_train_timesteps_(num_train_timesteps) {}

  virtual Schedule make_schedule(int64_t num_steps) const = 0;
  virtual void reset() = 0;
  virtual at::Tensor do_step(const at::Tensor& model_output, int64_t step_index,
                             const at::Tensor& sample) = 0;
  virtual void save(TensorMap& state) const = 0;
  virtual void restore(const TensorMap& state, at::Device device, const std::string& where) = 0;

  /// The int64 scalar `name` in [low, high]. throws Error bad_data
  static int64_t counter(const TensorMap& state, const std::string& name, int64_t low, int64_t high,
                         const std::string& where);

 private:
  int64_t num_train_timesteps_;
  int64_t next_step_ = 0;
  at::Tensor sigmas_;
  at::Tensor timesteps_;
  std::vector<double> timestep_values_;
};

/// What a command line may change about a folder's scheduler.
struct SchedulerChoice {
  std::string name;  ///< "unipc", "euler", a diffusers class name, or empty: as the config says
  std::optional<double> flow_shift;  ///< replaces `flow_shift` (UniPC) or `shift` (Euler)
};

/// The scheduler of a `scheduler_config.json`.
///
/// A class other than the config's `_class_name` gets the keys that both classes know, as
/// diffusers' `from_config` does: a shift is not among them. UniPC made from a flow-matching Euler
/// config predicts flow (diffusers' would predict noise, which no flow network gives).
///
/// throws  Error bad_data naming the key for a value that is not supported, usage for a wrong
/// choice
std::unique_ptr<Scheduler> make_scheduler(const Config& config, const SchedulerChoice& choice,
                                          Report& report);

}  // namespace fovea::pipelines
