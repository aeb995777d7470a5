#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "core/config.h"
#include "pipelines/train/trainable.h"

namespace fovea::pipelines {

/// What moves the parameters. Rates are per step.
struct OptimizerOptions {
  double learning_rate = 1e-3;      ///< largest rate of the schedule
  int64_t warmup_steps = 0;         ///< rate rises linearly over so many steps
  std::string schedule = "cosine";  ///< after that: "constant", "linear" or "cosine"
  double final_ratio = 0.0;         ///< rate at the last step, as a share of learning_rate
  double beta1 = 0.9;
  double beta2 = 0.99;
  double eps = 1e-8;
  double weight_decay = 0.0;  ///< decoupled; for parameters of two or more dimensions
  double clip_norm = 1.0;     ///< largest norm of all gradients together; 0: no clipping
  double ema = 0.999;         ///< share of the old average kept at each step; 0: no average

  /// throws Error bad_data naming the key
  static OptimizerOptions read(Config& config);
  /// Rate of step `step` (from 0) of `steps`.
  double rate(int64_t step, int64_t steps) const;
  /// Share of the old average kept at step `step`: rises from 0.1 towards `ema`, so that the
  /// average forgets the first weights.
  double ema_share(int64_t step) const;
};

/// AdamW with gradient clipping and an exponential moving average of the weights, over all
/// parameters at once.
///
/// A step whose gradients are not finite changes nothing; the decision is made on the device, so
/// that the host does not wait for it.
///
/// source  Loshchilov & Hutter, "Decoupled Weight Decay Regularization", 2019, algorithm 2
class Optimizer {
 public:
  /// `parameters` is kept.
  Optimizer(TrainableParameters& parameters, const OptimizerOptions& options);

  /// One update from `parameters.gradient()`, which is scaled in place when clipped.
  ///
  /// rate        learning rate of this step; step its number, from 0
  /// also_skip   scalar tensor, not finite: change nothing (the loss)
  /// returns     [2] on the device: norm of the gradients before clipping; 1 when skipped
  at::Tensor step(int64_t step, double rate, const at::Tensor& also_skip);

  at::Tensor& average() { return average_; }  ///< [numel] moving average of the master weights
  /// All that a step changes, for a process that takes over another one's state.
  std::vector<at::Tensor*> rows() {
    return {&parameters_.master(), &average_, &moment1_, &moment2_, &adam_steps_};
  }
  /// Swaps master weights and average; twice is nothing.
  void swap_average();

  /// State by name: "master/...", "average/...", "moment1/...", "moment2/...", "adam_steps".
  TensorMap state() const;
  /// throws Error bad_data naming what is missing or does not fit
  void restore(const TensorMap& state, const std::string& where);

 private:
  TrainableParameters& parameters_;
  OptimizerOptions options_;
  at::Tensor moment1_, moment2_, average_;
  at::Tensor adam_steps_;  // scalar: updates so far, skipped ones not counted
};

}  // namespace fovea::pipelines
