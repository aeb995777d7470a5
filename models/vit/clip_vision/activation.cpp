#include "models/vit/clip_vision/activation.h"

#include <array>
#include <cmath>

#include <ATen/ATen.h>

#include "core/check.h"

namespace fovea::models {
namespace {

struct Activation {
  const char* name;
  at::Tensor (*apply)(const at::Tensor& x);
};

/// GELU through tanh, with the inner argument's rounding of the original BERT code.
at::Tensor gelu_new(const at::Tensor& x) {
  const double scale = std::sqrt(2.0 / 3.14159265358979323846);
  return 0.5 * x * (1.0 + at::tanh(scale * (x + 0.044715 * at::pow(x, 3))));
}

at::Tensor gelu_fast(const at::Tensor& x) {
  return 0.5 * x * (1.0 + at::tanh(x * 0.7978845608 * (1.0 + 0.044715 * x * x)));
}

const std::array<Activation, 14> kActivations{{
    {"quick_gelu", [](const at::Tensor& x) { return x * at::sigmoid(1.702 * x); }},
    {"gelu", [](const at::Tensor& x) { return at::gelu(x); }},
    {"gelu_python", [](const at::Tensor& x) { return at::gelu(x); }},
    {"gelu_pytorch_tanh", [](const at::Tensor& x) { return at::gelu(x, "tanh"); }},
    {"gelu_new", gelu_new},
    {"gelu_accurate", gelu_new},
    {"gelu_fast", gelu_fast},
    {"relu", [](const at::Tensor& x) { return at::relu(x); }},
    {"relu2", [](const at::Tensor& x) { return at::square(at::relu(x)); }},
    {"silu", [](const at::Tensor& x) { return at::silu(x); }},
    {"swish", [](const at::Tensor& x) { return at::silu(x); }},
    {"mish", [](const at::Tensor& x) { return at::mish(x); }},
    {"sigmoid", [](const at::Tensor& x) { return at::sigmoid(x); }},
    {"tanh", [](const at::Tensor& x) { return at::tanh(x); }},
}};

const Activation* find(const std::string& name) {
  for (const Activation& known : kActivations) {
    if (name == known.name) return &known;
  }
  return nullptr;
}

}  // namespace

bool is_activation(const std::string& name) { return find(name) != nullptr; }

std::string activation_names() {
  std::string names;
  for (const Activation& known : kActivations) names += str(names.empty() ? "" : ", ", known.name);
  return names;
}

at::Tensor activation(const std::string& name, const at::Tensor& x) {
  const Activation* known = find(name);
  FOVEA_ASSERT(known, "activation ", name);
  return known->apply(x);
}

}  // namespace fovea::models
