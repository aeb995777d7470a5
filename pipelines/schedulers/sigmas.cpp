#include "pipelines/schedulers/sigmas.h"

#include <cmath>

namespace fovea::pipelines {

std::vector<double> linspace(double start, double stop, int64_t num) {
  std::vector<double> values(num);
  const double delta = stop - start;
  const double intervals = static_cast<double>(num - 1);
  const double step = delta / intervals;
  for (int64_t i = 0; i < num; ++i) {
    values[i] = static_cast<double>(i) * (num > 1 ? step : delta) + start;
  }
  if (num > 1) values.back() = stop;
  return values;
}

void shift_sigmas(std::vector<double>& sigmas, double shift) {
  for (double& sigma : sigmas) sigma = shift * sigma / (1 + (shift - 1) * sigma);
}

void stretch_to_terminal(std::vector<double>& sigmas, double terminal) {
  const double scale = (1 - sigmas.back()) / (1 - terminal);
  for (double& sigma : sigmas) sigma = 1 - (1 - sigma) / scale;
}

std::vector<double> karras_sigmas(double sigma_max, double sigma_min, int64_t num) {
  constexpr double kRho = 7.0;
  const double low = std::pow(sigma_min, 1 / kRho);
  const double high = std::pow(sigma_max, 1 / kRho);
  std::vector<double> sigmas = linspace(0, 1, num);
  for (double& sigma : sigmas) sigma = std::pow(high + sigma * (low - high), kRho);
  return sigmas;
}

std::vector<double> exponential_sigmas(double sigma_max, double sigma_min, int64_t num) {
  std::vector<double> sigmas = linspace(std::log(sigma_max), std::log(sigma_min), num);
  for (double& sigma : sigmas) sigma = std::exp(sigma);
  return sigmas;
}

std::vector<float> to_fp32(const std::vector<double>& values) {
  return std::vector<float>(values.begin(), values.end());
}

double positive_number(Config& config, const std::string& key, double fallback) {
  const double value = config.number(key, fallback);
  if (!std::isfinite(value) || value <= 0) config.refuse(key, "expected a finite number above 0");
  return value;
}

std::optional<double> optional_number(Config& config, const std::string& key) {
  const double value = config.number(key, 0.0);
  if (!config.has(key)) return std::nullopt;
  if (!std::isfinite(value)) config.refuse(key, "expected a finite number");
  return value;
}

}  // namespace fovea::pipelines
