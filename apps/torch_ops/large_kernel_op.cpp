#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <torch/library.h>

#include "apps/torch_ops/boxed_ops.h"
#include "core/ops/large_kernel_attention.h"

namespace fovea::apps {
namespace {

const std::string kName = "large_kernel_attention";
const std::string kArguments =
    "Tensor x, Tensor w_local, Tensor b_local, Tensor w_dilated, Tensor b_dilated, int dilation, "
    "Tensor w_point, Tensor b_point";

std::vector<at::Tensor> compute(const Arguments& arguments) {
  return {
      large_kernel_attention(arguments.tensor("x"), {.local = arguments.tensor("w_local"),
                                                     .local_bias = arguments.tensor("b_local"),
                                                     .dilated = arguments.tensor("w_dilated"),
                                                     .dilated_bias = arguments.tensor("b_dilated"),
                                                     .dilation = arguments.integer("dilation"),
                                                     .point = arguments.tensor("w_point"),
                                                     .point_bias = arguments.tensor("b_point")})};
}

void meta(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const at::Tensor x = take_arguments(op, stack).tensor("x");
  stack->emplace_back(at::empty_symint(x.sym_sizes(), x.options()));
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(fovea, m) {
  define_with_backward(m, kName, kArguments, "Tensor", "Tensor grad_out");
}
TORCH_LIBRARY_IMPL(fovea, CPU, m) { implement_with_backward<compute>(m, kName); }
TORCH_LIBRARY_IMPL(fovea, CUDA, m) { implement_with_backward<compute>(m, kName); }
TORCH_LIBRARY_IMPL(fovea, Meta, m) {
  m.impl(kName.c_str(), boxed<meta>());
  m.impl((kName + "_backward").c_str(), boxed<backward_meta>());
}
TORCH_LIBRARY_IMPL(fovea, Autograd, m) { implement_autograd(m, kName); }

}  // namespace fovea::apps
