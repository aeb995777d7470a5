#include "core/ops/large_kernel_attention.h"

#include <ATen/ATen.h>

#include "core/check.h"

namespace fovea {
namespace {

void need(const char* name, const at::Tensor& tensor, bool good, const at::Tensor& x,
          const char* expected) {
  require(good && tensor.scalar_type() == x.scalar_type() && tensor.device() == x.device(),
          ErrorCode::bad_data, "large_kernel_attention", "tensor '", name, "': expected ", expected,
          " like x of shape ", x.sizes(), ", got ", tensor.sizes(), " of ", tensor.scalar_type());
}

void check_depthwise(const char* name, const at::Tensor& weight, const at::Tensor& x) {
  const bool shaped = weight.dim() == 4 && weight.size(0) == x.size(1) && weight.size(1) == 1 &&
                      weight.size(2) == weight.size(3) && weight.size(2) % 2 == 1;
  need(name, weight, shaped, x, "[channels, 1, k, k] with odd k");
}

void check_bias(const char* name, const at::Tensor& bias, const at::Tensor& x) {
  need(name, bias, bias.dim() == 1 && bias.size(0) == x.size(1), x, "[channels]");
}

at::Tensor depthwise(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                     int64_t dilation) {
  const int64_t padding = (weight.size(2) - 1) / 2 * dilation;
  return at::conv2d(x, weight, bias, /*stride=*/{1, 1}, {padding, padding}, {dilation, dilation},
                    /*groups=*/x.size(1));
}

}  // namespace

at::Tensor large_kernel_attention(const at::Tensor& x, const LargeKernelWeights& weights) {
  require(x.dim() == 4 && at::isFloatingType(x.scalar_type()), ErrorCode::bad_data,
          "large_kernel_attention", "tensor 'x': expected [batch, channels, height, width], got ",
          x.sizes(), " of ", x.scalar_type());
  require(weights.dilation >= 1, ErrorCode::usage, "large_kernel_attention", "a dilation of ",
          weights.dilation);
  check_depthwise("w_local", weights.local, x);
  check_bias("b_local", weights.local_bias, x);
  check_depthwise("w_dilated", weights.dilated, x);
  check_bias("b_dilated", weights.dilated_bias, x);
  const bool is_point = weights.point.sizes() == at::IntArrayRef{x.size(1), x.size(1), 1, 1};
  need("w_point", weights.point, is_point, x, "[channels, channels, 1, 1]");
  check_bias("b_point", weights.point_bias, x);
  const at::Tensor local = depthwise(x, weights.local, weights.local_bias, 1);
  const at::Tensor wide = depthwise(local, weights.dilated, weights.dilated_bias, weights.dilation);
  return x * at::conv2d(wide, weights.point, weights.point_bias);
}

}  // namespace fovea
