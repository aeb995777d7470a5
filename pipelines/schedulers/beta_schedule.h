#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "core/config.h"

namespace fovea::pipelines {

/// The variance-preserving noise schedule that diffusers' older schedulers are configured with.
struct BetaSchedule {
  int64_t num_train_timesteps = 1000;
  double beta_start = 0.0001;
  double beta_end = 0.02;
  std::string kind = "linear";          ///< linear, scaled_linear, squaredcos_cap_v2
  std::vector<double> trained_betas;    ///< used instead of the above when not empty
  bool rescale_betas_zero_snr = false;  ///< arXiv 2305.08891, algorithm 1

  /// Reads num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas and
  /// rescale_betas_zero_snr. throws Error bad_data naming the key
  static BetaSchedule read(Config& config);

  /// Noise levels ((1 − ᾱ) / ᾱ)^½ of the training timesteps, fp32 [num_train_timesteps] on the CPU,
  /// smallest first, computed in fp32 as the reference computes them.
  at::Tensor sigmas() const;
};

}  // namespace fovea::pipelines
