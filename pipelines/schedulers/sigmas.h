#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/config.h"

namespace fovea::pipelines {

/// `num` evenly spaced values from `start` to `stop`, both included, rounded exactly as NumPy's
/// `linspace` in float64 rounds them.
std::vector<double> linspace(double start, double stop, int64_t num);

/// The flow-matching time shift s·σ / (1 + (s − 1)·σ).
void shift_sigmas(std::vector<double>& sigmas, double shift);

/// Stretches sigmas so that the last one is `terminal` (Lightricks LTX-Video's schedule).
void stretch_to_terminal(std::vector<double>& sigmas, double terminal);

/// Noise levels from `sigma_max` down to `sigma_min`, evenly spaced in σ^(1/7).
/// paper  Karras et al., arXiv 2206.00364, equation 5 with rho = 7
std::vector<double> karras_sigmas(double sigma_max, double sigma_min, int64_t num);

/// Noise levels from `sigma_max` down to `sigma_min`, evenly spaced in log σ.
std::vector<double> exponential_sigmas(double sigma_max, double sigma_min, int64_t num);

/// A schedule in float64 has to become fp32 only once: rounds each value.
std::vector<float> to_fp32(const std::vector<double>& values);

/// The number `key`, required to be finite and above 0 (null or absent: `fallback`).
double positive_number(Config& config, const std::string& key, double fallback);

/// The finite number `key`; nothing when it is absent or null.
std::optional<double> optional_number(Config& config, const std::string& key);

}  // namespace fovea::pipelines
