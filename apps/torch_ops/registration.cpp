// TORCH_LIBRARY(fovea): the operators of core/ops and dense attention for LibTorch and Python.
//
// CPU, CUDA and Meta run the functions of core/ops. Autograd runs their compositions when a
// gradient is asked for, and otherwise hands the call on.

#include <optional>

#include <ATen/ATen.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <c10/core/GradMode.h>
#include <torch/library.h>

#include "core/attention/attention.h"
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

void check_attention(const Tensor& q, const Tensor& k, const Tensor& v) {
  constexpr const char* kOp = "attention";
  const auto shape = [](const char* name, const Tensor& tensor, bool good,
                        const auto&... expected) {
    require(good, ErrorCode::bad_data, kOp, "tensor '", name, "': expected ", expected...,
            ", got shape ", tensor.sizes(), " of ", tensor.scalar_type());
  };
  const auto dtype = q.scalar_type();
  shape("q", q, q.dim() == 4 && at::isFloatingType(dtype), "[batch, num_heads, q_len, head_dim]");
  shape("k", k, k.dim() == 4 && k.scalar_type() == dtype,
        "[batch, num_kv_heads, kv_len, head_dim] of ", dtype);
  shape("v", v, v.dim() == 4 && v.scalar_type() == dtype,
        "[batch, num_kv_heads, kv_len, value_dim] of ", dtype);
  shape("k", k, k.size(0) == q.size(0) && k.size(3) == q.size(3), "batch and head_dim of q ",
        q.sizes());
  shape("k", k, k.size(1) > 0 && q.size(1) % k.size(1) == 0, "heads that divide those of q ",
        q.sizes());
  shape("v", v, v.size(0) == k.size(0) && v.size(1) == k.size(1) && v.size(2) == k.size(2),
        "batch, heads and kv_len of k ", k.sizes());
  shape("q", q, q.size(2) > 0 && k.size(2) > 0, "at least one query and one key");
  require(k.device() == q.device() && v.device() == q.device(), ErrorCode::bad_data, kOp,
          "expected q, k and v on one device, got ", q.device(), ", ", k.device(), ", ",
          v.device());
}

Tensor run_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                     std::optional<double> sm_scale) {
  check_attention(q, k, v);
  AttentionCall call{.q_layout = TokenLayout::extra(q.size(2)),
                     .kv_layout = TokenLayout::extra(k.size(2)),
                     .q = q,
                     .k = k,
                     .v = v,
                     .sm_scale = sm_scale};
  return Attention().run(call).contiguous();
}

Tensor meta_attention(const Tensor& q, const Tensor& k, const Tensor& v, std::optional<double>) {
  check_attention(q, k, v);
  return at::empty({q.size(0), q.size(1), q.size(2), v.size(3)}, q.options());
}

/// Hands a call on to the backend's kernel.
template <typename... Args>
Tensor below_autograd(const char* name, const Args&... args) {
  const auto op = c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Tensor(Args...)>();
  at::AutoDispatchBelowADInplaceOrView guard;
  return op.call(args...);
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
  m.def("attention(Tensor q, Tensor k, Tensor v, float? sm_scale=None) -> Tensor");
}

#define FOVEA_REGISTER_BACKEND(key, attention_function)     \
  TORCH_LIBRARY_IMPL(fovea, key, m) {                       \
    m.impl("rms_norm", run_rms_norm);                       \
    m.impl("layer_norm", run_layer_norm);                   \
    m.impl("rope", run_rope);                               \
    m.impl("rms_norm_rope", run_rms_norm_rope);             \
    m.impl("layer_norm_modulate", run_layer_norm_modulate); \
    m.impl("gate_residual", run_gate_residual);             \
    m.impl("attention", attention_function);                \
  }

FOVEA_REGISTER_BACKEND(CPU, run_attention)
FOVEA_REGISTER_BACKEND(CUDA, run_attention)
FOVEA_REGISTER_BACKEND(Meta, meta_attention)

// The functions of core/ops check their arguments and take their composition by themselves when a
// gradient is asked for.
TORCH_LIBRARY_IMPL(fovea, Autograd, m) {
  m.impl("rms_norm", [](const Tensor& x, const OptionalTensor& weight, double eps) {
    return wants_gradient(x, weight) ? run_rms_norm(x, weight, eps)
                                     : below_autograd("fovea::rms_norm", x, weight, eps);
  });
  m.impl("layer_norm",
         [](const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias, double eps) {
           return wants_gradient(x, weight, bias)
                      ? run_layer_norm(x, weight, bias, eps)
                      : below_autograd("fovea::layer_norm", x, weight, bias, eps);
         });
  m.impl("rope", [](const Tensor& x, const Tensor& cos, const Tensor& sin) {
    return wants_gradient(x, cos, sin) ? run_rope(x, cos, sin)
                                       : below_autograd("fovea::rope", x, cos, sin);
  });
  m.impl("rms_norm_rope", [](const Tensor& x, const OptionalTensor& weight, const Tensor& cos,
                             const Tensor& sin, double eps) {
    return wants_gradient(x, weight, cos, sin)
               ? run_rms_norm_rope(x, weight, cos, sin, eps)
               : below_autograd("fovea::rms_norm_rope", x, weight, cos, sin, eps);
  });
  m.impl("layer_norm_modulate",
         [](const Tensor& x, const Tensor& scale, const Tensor& shift, double eps) {
           return wants_gradient(x, scale, shift)
                      ? run_layer_norm_modulate(x, scale, shift, eps)
                      : below_autograd("fovea::layer_norm_modulate", x, scale, shift, eps);
         });
  m.impl("gate_residual", [](const Tensor& x, const Tensor& y, const Tensor& gate) {
    return wants_gradient(x, y, gate) ? run_gate_residual(x, y, gate)
                                      : below_autograd("fovea::gate_residual", x, y, gate);
  });
  m.impl("attention",
         [](const Tensor& q, const Tensor& k, const Tensor& v, std::optional<double> sm_scale) {
           return wants_gradient(q, k, v) ? run_attention(q, k, v, sm_scale)
                                          : below_autograd("fovea::attention", q, k, v, sm_scale);
         });
}

}  // namespace fovea::apps
