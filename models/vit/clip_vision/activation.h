#pragma once

#include <string>

#include <ATen/core/Tensor.h>

namespace fovea::models {

/// Whether `name` is one of the activations below.
bool is_activation(const std::string& name);
/// The names, separated by commas.
std::string activation_names();

/// The elementwise function that transformers knows by `name` (its `ACT2FN`).
///
/// throws  Error internal for another name
at::Tensor activation(const std::string& name, const at::Tensor& x);

}  // namespace fovea::models
