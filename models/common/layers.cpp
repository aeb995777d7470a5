#include "models/common/layers.h"

#include <ATen/ATen.h>

#include "core/ops/widened.h"

namespace fovea::models {

Linear::Linear(ParameterSource& source, const std::string& name, int64_t in_features,
               int64_t out_features, bool has_bias, bool keep_fp32)
    : weight(source.get(name + ".weight", {out_features, in_features}, keep_fp32)) {
  if (has_bias) bias = source.get(name + ".bias", {out_features}, keep_fp32);
}

at::Tensor Linear::operator()(const at::Tensor& x) const { return at::linear(x, weight, bias); }

LayerNorm::LayerNorm(ParameterSource& source, const std::string& name, int64_t dim,
                     double eps_value, bool keep_fp32)
    : weight(source.get(name + ".weight", {dim}, keep_fp32)),
      bias(source.get(name + ".bias", {dim}, keep_fp32)),
      eps(eps_value) {}

at::Tensor LayerNorm::operator()(const at::Tensor& x) const {
  const at::Tensor wide = ops::widened(x);
  const at::Tensor y = at::layer_norm(wide, {x.size(-1)}, weight.to(wide.scalar_type()),
                                      bias.to(wide.scalar_type()), eps);
  return y.to(x.scalar_type());
}

}  // namespace fovea::models
