// TORCH_LIBRARY(fovea): the operators of core/ops for LibTorch and Python.
//
// CPU, CUDA and Meta run the functions of core/ops. Autograd runs their compositions when a
// gradient is asked for, and otherwise hands the call on.

#include <optional>
#include <type_traits>

#include <ATen/ATen.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <c10/core/GradMode.h>
#include <torch/library.h>

#include "core/check.h"
#include "core/ops/modulate.h"
#include "core/ops/norm.h"
#include "core/ops/rope.h"

namespace fovea::apps {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

Tensor given(const OptionalTensor& tensor) { return tensor ? *tensor : Tensor(); }
const Tensor& given(const Tensor& tensor) { return tensor; }

/// Results are contiguous whichever way they were computed, as Meta says they are.
Tensor run_rms_norm(const Tensor& x, const OptionalTensor& weight, double eps) {
  return rms_norm(x, given(weight), eps).contiguous();
}
Tensor run_layer_norm(const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias,
                      double eps) {
  return layer_norm(x, given(weight), given(bias), eps).contiguous();
}
Tensor run_rope(const Tensor& x, const Tensor& cos, const Tensor& sin) {
  return rope(x, cos, sin).contiguous();
}
Tensor run_rms_norm_rope(const Tensor& x, const OptionalTensor& weight, const Tensor& cos,
                         const Tensor& sin, double eps) {
  return rms_norm_rope(x, given(weight), cos, sin, eps).contiguous();
}
Tensor run_layer_norm_modulate(const Tensor& x, const Tensor& scale, const Tensor& shift,
                               double eps) {
  return layer_norm_modulate(x, scale, shift, eps).contiguous();
}
Tensor run_gate_residual(const Tensor& x, const Tensor& y, const Tensor& gate) {
  return gate_residual(x, y, gate).contiguous();
}

/// Hands a call on to the backend's kernel, which has the signature of `backend`.
template <typename... Parameters>
Tensor below_autograd(const char* name, Tensor (* /*backend*/)(Parameters...),
                      std::type_identity_t<Parameters>... arguments) {
  const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Tensor(Parameters...)>();
  at::AutoDispatchBelowADInplaceOrView guard;
  return op.call(arguments...);
}

template <typename... Tensors>
bool wants_gradient(const Tensors&... tensors) {
  return c10::GradMode::is_enabled() &&
         ((given(tensors).defined() && given(tensors).requires_grad()) || ...);
}

}  // namespace

TORCH_LIBRARY(fovea, m) {
  m.def("rms_norm(Tensor x, Tensor? weight=None, float eps=1e-06) -> Tensor");
  m.def("layer_norm(Tensor x, Tensor? weight=None, Tensor? bias=None, float eps=1e-06) -> Tensor");
  m.def("rope(Tensor x, Tensor cos, Tensor sin) -> Tensor");
  m.def(
      "rms_norm_rope(Tensor x, Tensor? weight, Tensor cos, Tensor sin, float eps=1e-06) -> Tensor");
  m.def("layer_norm_modulate(Tensor x, Tensor scale, Tensor shift, float eps=1e-06) -> Tensor");
  m.def("gate_residual(Tensor x, Tensor y, Tensor gate) -> Tensor");
}

#define FOVEA_REGISTER_BACKEND(key)                         \
  TORCH_LIBRARY_IMPL(fovea, key, m) {                       \
    m.impl("rms_norm", run_rms_norm);                       \
    m.impl("layer_norm", run_layer_norm);                   \
    m.impl("rope", run_rope);                               \
    m.impl("rms_norm_rope", run_rms_norm_rope);             \
    m.impl("layer_norm_modulate", run_layer_norm_modulate); \
    m.impl("gate_residual", run_gate_residual);             \
  }

FOVEA_REGISTER_BACKEND(CPU)
FOVEA_REGISTER_BACKEND(CUDA)
FOVEA_REGISTER_BACKEND(Meta)

// The functions of core/ops check their arguments and take their composition by themselves when a
// gradient is asked for.
TORCH_LIBRARY_IMPL(fovea, Autograd, m) {
  m.impl("rms_norm", [](const Tensor& x, const OptionalTensor& weight, double eps) {
    return wants_gradient(x, weight)
               ? run_rms_norm(x, weight, eps)
               : below_autograd("fovea::rms_norm", run_rms_norm, x, weight, eps);
  });
  m.impl("layer_norm",
         [](const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias, double eps) {
           return wants_gradient(x, weight, bias)
                      ? run_layer_norm(x, weight, bias, eps)
                      : below_autograd("fovea::layer_norm", run_layer_norm, x, weight, bias, eps);
         });
  m.impl("rope", [](const Tensor& x, const Tensor& cos, const Tensor& sin) {
    return wants_gradient(x, cos, sin) ? run_rope(x, cos, sin)
                                       : below_autograd("fovea::rope", run_rope, x, cos, sin);
  });
  m.impl("rms_norm_rope", [](const Tensor& x, const OptionalTensor& weight, const Tensor& cos,
                             const Tensor& sin, double eps) {
    return wants_gradient(x, weight, cos, sin)
               ? run_rms_norm_rope(x, weight, cos, sin, eps)
               : below_autograd("fovea::rms_norm_rope", run_rms_norm_rope, x, weight, cos, sin,
                                eps);
  });
  m.impl("layer_norm_modulate",
         [](const Tensor& x, const Tensor& scale, const Tensor& shift, double eps) {
           return wants_gradient(x, scale, shift)
                      ? run_layer_norm_modulate(x, scale, shift, eps)
                      : below_autograd("fovea::layer_norm_modulate", run_layer_norm_modulate, x,
                                       scale, shift, eps);
         });
  m.impl("gate_residual", [](const Tensor& x, const Tensor& y, const Tensor& gate) {
    return wants_gradient(x, y, gate)
               ? run_gate_residual(x, y, gate)
               : below_autograd("fovea::gate_residual", run_gate_residual, x, y, gate);
  });
}

}  // namespace fovea::apps
