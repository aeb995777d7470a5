#pragma once

#include <cmath>
#include <cstdlib>
#include <limits>
#include <string>

#include <ATen/ATen.h>

#include "core/file.h"

namespace fovea::test {

/// Folder that tests/golden/make_NAME.py has written.
inline fs::path golden(const std::string& name) {
  const char* folder = std::getenv("FOVEA_GOLDEN_DIR");
  return fs::path(folder == nullptr ? "golden" : folder) / name;
}

/// ‖x − reference‖ / ‖reference‖ in fp64; infinite when shapes differ or x is not finite.
inline double relative_error(const at::Tensor& x, const at::Tensor& reference) {
  if (x.sizes() != reference.sizes()) return std::numeric_limits<double>::infinity();
  const at::Tensor r = reference.to(at::kCPU, at::kDouble);
  const double error = (x.to(at::kCPU, at::kDouble) - r).norm().item<double>();
  if (!std::isfinite(error)) return std::numeric_limits<double>::infinity();
  const double norm = r.norm().item<double>();
  return norm == 0 ? error : error / norm;
}

}  // namespace fovea::test
