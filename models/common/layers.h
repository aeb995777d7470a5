#pragma once

#include <string>

#include <ATen/core/Tensor.h>

#include "core/weights.h"

namespace fovea::models {

/// y = x · weightᵀ + bias, as torch.nn.Linear.
struct Linear {
  at::Tensor weight;  ///< [out_features, in_features]
  at::Tensor bias;    ///< [out_features], or undefined

  Linear() = default;
  /// Takes `name`.weight and, with `has_bias`, `name`.bias.
  Linear(ParameterSource& source, const std::string& name, int64_t in_features,
         int64_t out_features, bool has_bias = true, bool keep_fp32 = false);
  /// x [..., in_features] → [..., out_features], in x's dtype
  at::Tensor operator()(const at::Tensor& x) const;
  bool defined() const { return weight.defined(); }
};

/// Layer normalization over the last dimension with weight and bias, computed in fp32 at least.
struct LayerNorm {
  at::Tensor weight;
  at::Tensor bias;
  double eps = 1e-5;

  LayerNorm() = default;
  LayerNorm(ParameterSource& source, const std::string& name, int64_t dim, double eps,
            bool keep_fp32 = false);
  at::Tensor operator()(const at::Tensor& x) const;
};

}  // namespace fovea::models
