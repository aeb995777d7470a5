#include "pipelines/schedulers/beta_schedule.h"

#include <algorithm>
#include <cmath>

#include <ATen/ATen.h>

namespace fovea::pipelines {
namespace {

constexpr int64_t kMaxTrainTimesteps = 1'000'000;

/// Betas whose cumulated product of (1 − beta) follows cos². paper arXiv 2102.09672, equation 17
at::Tensor cosine_betas(int64_t num) {
  constexpr double kPi = 3.14159265358979323846;
  constexpr double kMaxBeta = 0.999;
  const auto alpha_bar = [](double t) {
    return std::pow(std::cos((t + 0.008) / 1.008 * kPi / 2), 2.0);
  };
  std::vector<double> betas(num);
  for (int64_t i = 0; i < num; ++i) {
    const double now = static_cast<double>(i) / static_cast<double>(num);
    const double next = static_cast<double>(i + 1) / static_cast<double>(num);
    betas[i] = std::min(1 - alpha_bar(next) / alpha_bar(now), kMaxBeta);
  }
  return at::tensor(betas, at::kDouble).to(at::kFloat);
}

/// Betas with the last ᾱ moved to 0. paper arXiv 2305.08891, algorithm 1
at::Tensor zero_terminal_snr(const at::Tensor& betas) {
  at::Tensor roots = (1.0 - betas).cumprod(0).sqrt();
  const at::Tensor first = roots[0].clone();
  const at::Tensor last = roots[-1].clone();
  roots = (roots - last) * (first / (first - last));
  const at::Tensor products = roots.pow(2);
  const at::Tensor alphas =
      at::cat({products.slice(0, 0, 1), products.slice(0, 1) / products.slice(0, 0, -1)});
  return 1 - alphas;
}

}  // namespace

BetaSchedule BetaSchedule::read(Config& config) {
  BetaSchedule schedule;
  schedule.num_train_timesteps = config.integer("num_train_timesteps", 1000, 1, kMaxTrainTimesteps);
  schedule.beta_start = config.number("beta_start", 0.0001);
  schedule.beta_end = config.number("beta_end", 0.02);
  schedule.trained_betas = config.numbers("trained_betas", {});
  schedule.kind = config.text("beta_schedule", "linear");
  if (schedule.kind != "linear" && schedule.kind != "scaled_linear" &&
      schedule.kind != "squaredcos_cap_v2") {
    config.refuse("beta_schedule", "expected linear, scaled_linear or squaredcos_cap_v2");
  }
  schedule.rescale_betas_zero_snr = config.boolean("rescale_betas_zero_snr", false);
  return schedule;
}

at::Tensor BetaSchedule::sigmas() const {
  at::Tensor betas;
  if (!trained_betas.empty()) {
    betas = at::tensor(trained_betas, at::kDouble).to(at::kFloat);
  } else if (kind == "linear") {
    betas = at::linspace(beta_start, beta_end, num_train_timesteps, at::kFloat);
  } else if (kind == "scaled_linear") {
    betas = at::linspace(std::pow(beta_start, 0.5), std::pow(beta_end, 0.5), num_train_timesteps,
                         at::kFloat)
                .pow(2);
  } else {
    betas = cosine_betas(num_train_timesteps);
  }
  if (rescale_betas_zero_snr) betas = zero_terminal_snr(betas);
  const at::Tensor products = (1.0 - betas).cumprod(0);
  // Zero would make the first noise level infinite; the reference takes fp16's smallest number.
  if (rescale_betas_zero_snr) products[-1] = std::ldexp(1.0, -24);
  return ((1 - products) / products).pow(0.5);
}

}  // namespace fovea::pipelines
