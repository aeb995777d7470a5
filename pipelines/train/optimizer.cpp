#include "pipelines/train/optimizer.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include "core/check.h"

namespace fovea::pipelines {
namespace {

// A number in [low, high].
double bounded(Config& config, const std::string& key, double fallback, double low, double high) {
  const double value = config.number(key, fallback);
  if (!(value >= low && value <= high)) {
    config.refuse(key, str("expected a number from ", low, " to ", high));
  }
  return value;
}

}  // namespace

OptimizerOptions OptimizerOptions::read(Config& config) {
  OptimizerOptions out;
  out.learning_rate = bounded(config, "learning_rate", out.learning_rate, 0, 10);
  out.warmup_steps = config.integer("warmup_steps", out.warmup_steps, 0, 1 << 30);
  out.schedule = config.text("schedule", out.schedule);
  if (out.schedule != "constant" && out.schedule != "linear" && out.schedule != "cosine") {
    config.refuse("schedule", "expected constant, linear or cosine");
  }
  out.final_ratio = bounded(config, "final_ratio", out.final_ratio, 0, 1);
  out.beta1 = bounded(config, "beta1", out.beta1, 0, 0.9999);
  out.beta2 = bounded(config, "beta2", out.beta2, 0, 0.999999);
  out.eps = bounded(config, "eps", out.eps, 1e-16, 1);
  out.weight_decay = bounded(config, "weight_decay", out.weight_decay, 0, 10);
  out.clip_norm = bounded(config, "clip_norm", out.clip_norm, 0, 1e9);
  out.ema = bounded(config, "ema", out.ema, 0, 0.999999);
  return out;
}

double OptimizerOptions::rate(int64_t step, int64_t steps) const {
  if (step < warmup_steps) {
    return learning_rate * static_cast<double>(step + 1) / static_cast<double>(warmup_steps);
  }
  if (schedule == "constant") return learning_rate;
  const double done = static_cast<double>(step - warmup_steps) /
                      static_cast<double>(std::max<int64_t>(steps - warmup_steps, 1));
  const double left =
      schedule == "linear" ? 1 - done : 0.5 * (1 + std::cos(std::numbers::pi * done));
  return learning_rate * (final_ratio + (1 - final_ratio) * left);
}

double OptimizerOptions::ema_share(int64_t step) const {
  return std::min(ema, static_cast<double>(1 + step) / static_cast<double>(10 + step));
}

Optimizer::Optimizer(TrainableParameters& parameters, const OptimizerOptions& options)
    : parameters_(parameters), options_(options) {
  moment1_ = at::zeros_like(parameters.master());
  moment2_ = at::zeros_like(parameters.master());
  average_ = parameters.master().clone();
  adam_steps_ = at::zeros({}, parameters.master().options().dtype(at::kFloat));
}

at::Tensor Optimizer::step(int64_t step, double rate, const at::Tensor& also_skip) {
  const c10::NoGradGuard no_grad;
  at::Tensor& gradient = parameters_.gradient();
  const at::Tensor norm = at::linalg_vector_norm(gradient, 2).to(at::kFloat);
  const at::Tensor skip =
      at::logical_and(at::isfinite(norm), at::isfinite(also_skip)).logical_not().to(at::kFloat);
  if (options_.clip_norm > 0) {
    gradient.mul_((options_.clip_norm / (norm + 1e-6)).clamp_max(1.0).to(gradient.scalar_type()));
  }
  adam_steps_.add_(1 - skip);
  for (const TrainableParameters::Range& range : parameters_.ranges()) {
    const auto part = [&](const at::Tensor& row) {
      return row.narrow(0, range.begin, range.end - range.begin);
    };
    at::_fused_adamw_({part(parameters_.master())}, {part(gradient)}, {part(moment1_)},
                      {part(moment2_)}, {}, {adam_steps_}, rate, options_.beta1, options_.beta2,
                      range.decays ? options_.weight_decay : 0.0, options_.eps, /*amsgrad=*/false,
                      /*maximize=*/false, /*grad_scale=*/{}, /*found_inf=*/skip);
  }
  parameters_.publish();
  if (options_.ema > 0) {
    const at::Tensor weight = (1 - skip) * (1 - options_.ema_share(step));
    average_.lerp_(parameters_.master(), weight.to(average_.scalar_type()));
  } else {
    average_.copy_(parameters_.master());
  }
  return at::stack({norm, skip});
}

void Optimizer::swap_average() {
  const c10::NoGradGuard no_grad;
  const at::Tensor master = parameters_.master().clone();
  parameters_.master().copy_(average_);
  average_.copy_(master);
  parameters_.publish();
}

TensorMap Optimizer::state() const {
  TensorMap out;
  const auto put = [&](const std::string& kind, const at::Tensor& row) {
    for (const auto& [name, tensor] : parameters_.split(row)) {
      out.emplace(kind + "/" + name, tensor.detach());
    }
  };
  put("master", parameters_.master());
  put("average", average_);
  put("moment1", moment1_);
  put("moment2", moment2_);
  out.emplace("adam_steps", adam_steps_);
  return out;
}

void Optimizer::restore(const TensorMap& state, const std::string& where) {
  const c10::NoGradGuard no_grad;
  const auto take = [&](const std::string& kind, at::Tensor& row) {
    TensorMap tensors;
    for (const auto& [name, tensor] : state) {
      if (name.starts_with(kind + "/")) tensors.emplace(name.substr(kind.size() + 1), tensor);
    }
    parameters_.join(row, tensors, where + ": " + kind);
  };
  take("master", parameters_.master());
  take("average", average_);
  take("moment1", moment1_);
  take("moment2", moment2_);
  const auto steps = state.find("adam_steps");
  require(steps != state.end() && steps->second.numel() == 1, ErrorCode::bad_data, where,
          "missing tensor 'adam_steps'");
  adam_steps_.copy_(steps->second.reshape({}));
  parameters_.publish();
}

}  // namespace fovea::pipelines
