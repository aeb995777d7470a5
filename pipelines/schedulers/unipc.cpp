#include "pipelines/schedulers/unipc.h"

#include <algorithm>
#include <cmath>
#include <tuple>

#include <ATen/ATen.h>

#include "core/check.h"
#include "pipelines/schedulers/sigmas.h"

namespace fovea::pipelines {

namespace {

/// Truncated, as the reference hands them to the network.
at::Tensor int64_timesteps(const std::vector<double>& values) {
  return at::tensor(values, at::kDouble).to(at::kLong);
}

/// Sum over k of weights[k] · differences[k].
at::Tensor weighted_sum(const at::Tensor& weights, const std::vector<at::Tensor>& differences) {
  const at::Tensor stacked = at::stack(differences, 1);
  return at::einsum("k,bk...->b...", {weights.to(stacked.options()), stacked});
}

/// scale · weighted sum, or the reference's plain zero when there is nothing to sum.
at::Tensor scaled_sum(const at::Tensor& scale, const at::Tensor& weights,
                      const std::vector<at::Tensor>& differences) {
  return differences.empty() ? scale * 0 : scale * weighted_sum(weights, differences);
}

}  // namespace

/// Coefficients of one step between two noise levels.
struct UniPcScheduler::Solver {
  at::Tensor alpha_from, sigma_from, alpha_to, sigma_to;
  at::Tensor h_phi_1;                   ///< exp(h) − 1
  at::Tensor b_h;                       ///< B(h)
  std::vector<at::Tensor> ratios;       ///< r_k of the earlier noise levels
  std::vector<at::Tensor> differences;  ///< D_k = (m_k − m_0) / r_k
  at::Tensor matrix;                    ///< R, [order, order]
  at::Tensor vector;                    ///< b, [order]
};

UniPcScheduler::UniPcScheduler(UniPcOptions options)
    : Scheduler(options.betas.num_train_timesteps), options_(std::move(options)) {
  reset();
}

void UniPcScheduler::reset() {
  outputs_.assign(options_.solver_order, at::Tensor());
  last_sample_ = at::Tensor();
  warm_steps_ = 0;
  order_ = 1;
}

Scheduler::Schedule UniPcScheduler::make_schedule(int64_t num_steps) const {
  if (!options_.use_flow_sigmas) return training_schedule(num_steps);
  const double train_steps = static_cast<double>(num_train_timesteps());
  std::vector<double> sigmas;
  if (options_.use_karras_sigmas) {
    const at::Tensor trained = options_.betas.sigmas();
    sigmas = karras_sigmas(options_.sigma_max.value_or(trained[-1].item<double>()),
                           options_.sigma_min.value_or(trained[0].item<double>()), num_steps);
    for (double& sigma : sigmas) sigma = sigma / (sigma + 1);
  } else {
    sigmas = linspace(1, 1 / train_steps, num_steps + 1);
    sigmas.pop_back();
    shift_sigmas(sigmas, options_.flow_shift);
    if (options_.shift_terminal != 0) stretch_to_terminal(sigmas, options_.shift_terminal);
    // Pure noise has alpha 0 and an infinite log-SNR.
    constexpr double kEpsilon = 1e-6;
    if (std::fabs(sigmas[0] - 1) < kEpsilon) sigmas[0] -= kEpsilon;
  }
  std::vector<double> timesteps = sigmas;
  for (double& timestep : timesteps) timestep *= train_steps;
  sigmas.push_back(options_.final_sigma_zero ? 0.0 : sigmas.back());
  const at::Tensor levels = at::tensor(to_fp32(sigmas));
  check_distinct(levels);
  return {levels, int64_timesteps(timesteps)};
}

/// Timesteps of the training schedule, spaced as table 2 of arXiv 2305.08891 names it.
Scheduler::Schedule UniPcScheduler::training_schedule(int64_t num_steps) const {
  const int64_t train_steps = num_train_timesteps();
  std::vector<double> timesteps;
  if (options_.timestep_spacing == UniPcOptions::Spacing::linspace) {
    const std::vector<double> ascending =
        linspace(0, static_cast<double>(train_steps - 1), num_steps + 1);
    for (int64_t i = num_steps; i > 0; --i) timesteps.push_back(std::nearbyint(ascending[i]));
  } else if (options_.timestep_spacing == UniPcOptions::Spacing::leading) {
    const int64_t ratio = train_steps / (num_steps + 1);
    for (int64_t i = num_steps; i > 0; --i) {
      timesteps.push_back(static_cast<double>(i * ratio + options_.steps_offset));
    }
  } else {
    const double ratio = static_cast<double>(train_steps) / static_cast<double>(num_steps);
    // The count of NumPy's arange, which rounding may make one larger than num_steps.
    const int64_t count =
        static_cast<int64_t>(std::ceil(static_cast<double>(0 - train_steps) / -ratio));
    const double second = static_cast<double>(train_steps) + -ratio;
    const double delta = second - static_cast<double>(train_steps);
    for (int64_t i = 0; i < count; ++i) {
      const double value = static_cast<double>(train_steps) + static_cast<double>(i) * delta;
      timesteps.push_back(std::nearbyint(i == 1 ? second : value) - 1);
    }
  }
  const at::Tensor trained = options_.betas.sigmas();
  const int64_t last = trained.size(0) - 1;
  std::vector<float> sigmas;
  for (const double timestep : timesteps) {
    const int64_t index = std::min(std::max(static_cast<int64_t>(timestep), int64_t{0}), last);
    sigmas.push_back(trained[index].item<float>());
  }
  sigmas.push_back(options_.final_sigma_zero ? 0.0f : trained[0].item<float>());
  const at::Tensor levels = at::tensor(sigmas);
  check_distinct(levels);
  return {levels, int64_timesteps(timesteps)};
}

std::pair<at::Tensor, at::Tensor> UniPcScheduler::alpha_sigma(const at::Tensor& sigma) const {
  if (options_.use_flow_sigmas) return {1 - sigma, sigma};
  const at::Tensor alpha = 1 / (sigma.pow(2) + 1).pow(0.5);
  return {alpha, sigma * alpha};
}

at::Tensor UniPcScheduler::half_log_snr(const at::Tensor& sigma) const {
  const auto [signal, noise] = alpha_sigma(sigma);
  return signal.log() - noise.log();
}

/// A step between equal noise levels divides by zero; the last one may, it is of first order.
void UniPcScheduler::check_distinct(const at::Tensor& sigmas) const {
  const at::Tensor steps = half_log_snr(sigmas.slice(0, 0, -1)).diff();
  require((steps != 0).all().item<bool>(), ErrorCode::bad_data, "unipc scheduler", "two of the ",
          sigmas.size(0) - 1,
          " noise levels are equal, take fewer steps or a smaller shift: ", describe().dump());
}

/// The prediction as predicted data (predict_x0) or predicted noise.
at::Tensor UniPcScheduler::convert(const at::Tensor& model_output, int64_t step_index,
                                   const at::Tensor& sample) const {
  using Prediction = UniPcOptions::Prediction;
  const auto [alpha, sigma] = alpha_sigma(sigmas()[step_index]);
  if (options_.predict_x0) {
    switch (options_.prediction_type) {
      case Prediction::epsilon:
        return (sample - sigma * model_output) / alpha;
      case Prediction::sample:
        return model_output;
      case Prediction::v_prediction:
        return alpha * sample - sigma * model_output;
      case Prediction::flow_prediction:
        return sample - sigmas()[step_index] * model_output;
    }
  }
  switch (options_.prediction_type) {
    case Prediction::epsilon:
      return model_output;
    case Prediction::sample:
      return (sample - alpha * model_output) / sigma;
    case Prediction::v_prediction:
      return alpha * model_output + sigma * sample;
    case Prediction::flow_prediction:
      break;
  }
  FOVEA_ASSERT(false, "flow_prediction without predict_x0 is refused when options are read");
}

/// Equations 9 to 11 of the paper for the step from noise level `from` to `to`; D_k come from the
/// kept predictions, whose noise levels are the ones before `from`.
UniPcScheduler::Solver UniPcScheduler::solver(int64_t from, int64_t to, int64_t order,
                                              at::ScalarType dtype) const {
  Solver solver;
  std::tie(solver.alpha_from, solver.sigma_from) = alpha_sigma(sigmas()[from]);
  std::tie(solver.alpha_to, solver.sigma_to) = alpha_sigma(sigmas()[to]);
  const at::Tensor lambda_from = half_log_snr(sigmas()[from]);
  const at::Tensor h = half_log_snr(sigmas()[to]) - lambda_from;
  const at::Tensor& newest = outputs_.back();
  for (int64_t k = 1; k < order; ++k) {
    const at::Tensor ratio = (half_log_snr(sigmas()[from - k]) - lambda_from) / h;
    const at::Tensor& earlier = outputs_[outputs_.size() - 1 - k];
    solver.ratios.push_back(ratio);
    solver.differences.push_back(((earlier - newest) / ratio).to(dtype));
  }
  std::vector<at::Tensor> all_ratios = solver.ratios;
  all_ratios.push_back(at::ones({}));
  const at::Tensor ratios = at::stack(all_ratios);

  const at::Tensor hh = options_.predict_x0 ? -h : h;
  solver.h_phi_1 = at::expm1(hh);
  solver.b_h = options_.bh2 ? at::expm1(hh) : hh;
  at::Tensor h_phi_k = solver.h_phi_1 / hh - 1;
  double factorial = 1;
  std::vector<at::Tensor> rows, values;
  for (int64_t k = 1; k <= order; ++k) {
    rows.push_back(at::pow(ratios, k - 1));
    values.push_back(h_phi_k * factorial / solver.b_h);
    factorial *= static_cast<double>(k + 1);
    h_phi_k = h_phi_k / hh - 1 / factorial;
  }
  solver.matrix = at::stack(rows);
  solver.vector = at::stack(values);
  return solver;
}

at::Tensor UniPcScheduler::first_order(const Solver& solver, const at::Tensor& sample) const {
  const at::Tensor& newest = outputs_.back();
  if (options_.predict_x0) {
    return solver.sigma_to / solver.sigma_from * sample - solver.alpha_to * solver.h_phi_1 * newest;
  }
  return solver.alpha_to / solver.alpha_from * sample - solver.sigma_to * solver.h_phi_1 * newest;
}

/// UniP: from noise level `step_index` to the next.
at::Tensor UniPcScheduler::predict(int64_t step_index, const at::Tensor& sample) const {
  const at::ScalarType dtype = sample.scalar_type();
  const Solver parts = solver(step_index, step_index + 1, order_, dtype);
  at::Tensor weights;
  if (order_ == 2) {
    weights = at::full({1}, 0.5);
  } else if (order_ > 2) {
    const int64_t rank = order_ - 1;
    weights = at::linalg_solve(parts.matrix.slice(0, 0, rank).slice(1, 0, rank),
                               parts.vector.slice(0, 0, rank));
  }
  const at::Tensor scale = (options_.predict_x0 ? parts.alpha_to : parts.sigma_to) * parts.b_h;
  return (first_order(parts, sample) - scaled_sum(scale, weights, parts.differences)).to(dtype);
}

/// UniC: repeats the step that led to `step_index`, now that the prediction there is known.
at::Tensor UniPcScheduler::correct(int64_t step_index, const at::Tensor& converted,
                                   const at::Tensor& sample) const {
  const at::ScalarType dtype = last_sample_.scalar_type();
  const Solver parts = solver(step_index - 1, step_index, order_, dtype);
  const at::Tensor weights =
      order_ == 1 ? at::full({1}, 0.5) : at::linalg_solve(parts.matrix, parts.vector);
  at::Tensor change = weights[-1].to(dtype) * (converted - outputs_.back());
  if (!parts.differences.empty()) {
    change = weighted_sum(weights.slice(0, 0, -1), parts.differences) + change;
  }
  const at::Tensor scale = (options_.predict_x0 ? parts.alpha_to : parts.sigma_to) * parts.b_h;
  FOVEA_ASSERT(last_sample_.sizes() == sample.sizes(), "the sample's shape changed between steps");
  return (first_order(parts, last_sample_) - scale * change).to(dtype);
}

at::Tensor UniPcScheduler::do_step(const at::Tensor& model_output, int64_t step_index,
                                   const at::Tensor& given_sample) {
  at::Tensor sample = given_sample;
  const at::Tensor converted = convert(model_output, step_index, sample);
  if (step_index > 0 && !options_.disable_corrector.contains(step_index - 1)) {
    sample = correct(step_index, converted, sample);
  }
  outputs_.erase(outputs_.begin());
  outputs_.push_back(converted);

  const int64_t left = num_steps() - step_index;
  order_ =
      options_.lower_order_final ? std::min(options_.solver_order, left) : options_.solver_order;
  order_ = std::min(order_, warm_steps_ + 1);
  last_sample_ = sample;
  at::Tensor next = predict(step_index, sample);
  warm_steps_ = std::min(warm_steps_ + 1, options_.solver_order);
  return next;
}

void UniPcScheduler::save(TensorMap& state) const {
  state["warm_steps"] = at::scalar_tensor(warm_steps_, at::kLong);
  state["order"] = at::scalar_tensor(order_, at::kLong);
  if (last_sample_.defined()) state["last_sample"] = last_sample_;
  for (size_t i = 0; i < outputs_.size(); ++i) {
    if (outputs_[i].defined()) state[str("output.", i)] = outputs_[i];
  }
}

void UniPcScheduler::restore(const TensorMap& state, at::Device device, const std::string& where) {
  warm_steps_ = counter(state, "warm_steps", 0, options_.solver_order, where);
  order_ = counter(state, "order", 1, options_.solver_order, where);
  const auto take = [&](const std::string& name) {
    const auto found = state.find(name);
    require(found != state.end(), ErrorCode::bad_data, where, "key '", name, "' is missing");
    require(found->second.is_floating_point(), ErrorCode::bad_data, where, "key '", name,
            "': expected floating-point numbers, got ", at::toString(found->second.scalar_type()));
    return found->second.to(device);
  };
  if (warm_steps_ == 0) return;
  last_sample_ = take("last_sample");
  for (int64_t i = options_.solver_order - warm_steps_; i < options_.solver_order; ++i) {
    outputs_[i] = take(str("output.", i));
    require(outputs_[i].sizes() == last_sample_.sizes(), ErrorCode::bad_data, where, "key 'output.",
            i, "': expected the shape of last_sample ", last_sample_.sizes(), ", got ",
            outputs_[i].sizes());
  }
}

}  // namespace fovea::pipelines
