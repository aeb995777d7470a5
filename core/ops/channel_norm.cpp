#include "core/ops/channel_norm.h"

#include <cmath>

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "core/check.h"
#include "core/ops/launch.h"
#include "core/ops/widened.h"
#include "kernels/ops/channel_norm.h"

namespace fovea {
namespace {

constexpr const char* kOp = "channel_norm_silu";
constexpr double kFloor = 1e-12;  // of torch.nn.functional.normalize

#if FOVEA_HAS_CUDA
constexpr int64_t kParts = 1024;  // sums of gamma's gradient
constexpr auto kFormat = at::MemoryFormat::ChannelsLast3d;

kernels::ChannelNormArgs arguments(const at::Tensor& x, const at::Tensor& gamma) {
  return {.x = x.const_data_ptr(),
          .dtype = ops::kernel_dtype(x.scalar_type()),
          .gamma = gamma.const_data_ptr<float>(),
          .num_rows = x.numel() / x.size(1),
          .dim = x.size(1),
          .rows_per_item = x.numel() / x.size(1) / x.size(0),
          .y_item_stride = x.numel() / x.size(0),
          .floor = static_cast<float>(kFloor)};
}

bool covered(const at::Tensor& x) {
  const int64_t channels = x.size(1);
  return x.is_cuda() && x.element_size() == 2 && x.numel() > 0 &&
         channels % (channels <= 256 ? 8 : 16) == 0 && channels <= 512 &&
         x.is_contiguous(kFormat) && reinterpret_cast<uintptr_t>(x.const_data_ptr()) % 16 == 0;
}

at::Tensor fp32_vector(const at::Tensor& gamma) {
  return gamma.detach().flatten().to(at::kFloat).contiguous();
}

class ChannelNormSilu : public torch::autograd::Function<ChannelNormSilu> {
 public:
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x,
                            const at::Tensor& gamma) {
    const at::Tensor flat = fp32_vector(gamma);
    at::Tensor y = at::empty_like(x, x.options(), kFormat);
    kernels::ChannelNormArgs args = arguments(x, flat);
    args.y = y.mutable_data_ptr();
    FOVEA_ASSERT(
        ops::accepted(kOp, kernels::channel_norm_silu_cuda(args, ops::cuda_target(x.device()))));
    context->save_for_backward({x, gamma});
    return y;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list gradients) {
    const auto saved = context->get_saved_variables();
    const at::Tensor &x = saved[0], &gamma = saved[1];
    const at::Tensor y_gradient = gradients[0].to(x.scalar_type()).contiguous(kFormat);
    const at::Tensor flat = fp32_vector(gamma);
    at::Tensor x_gradient = at::empty_like(x, x.options(), kFormat);
    at::Tensor parts = at::empty({kParts, x.size(1)}, flat.options());
    const kernels::ChannelNormBackwardArgs args{.forward = arguments(x, flat),
                                                .y_gradient = y_gradient.const_data_ptr(),
                                                .x_gradient = x_gradient.mutable_data_ptr(),
                                                .gamma_gradients = parts.mutable_data_ptr<float>(),
                                                .num_parts = kParts};
    FOVEA_ASSERT(ops::accepted(
        kOp, kernels::channel_norm_silu_backward_cuda(args, ops::cuda_target(x.device()))));
    return {x_gradient, parts.sum(0).to(gamma.scalar_type()).view(gamma.sizes())};
  }
};
#endif

}  // namespace

namespace composition {

at::Tensor channel_norm_silu(const at::Tensor& x, const at::Tensor& gamma) {
  const at::Tensor wide = ops::widened(x);
  const at::Tensor norm =
      at::linalg_vector_norm(wide, 2, at::IntArrayRef{1}, /*keepdim=*/true).clamp_min(kFloor);
  const at::Tensor scale = ops::widened(gamma) * std::sqrt(static_cast<double>(x.size(1)));
  return at::silu((wide / norm * scale).to(x.scalar_type()));
}

}  // namespace composition

at::Tensor channel_norm_silu(const at::Tensor& x, const at::Tensor& gamma) {
  ops::check_input(kOp, {"x", x}, 5);
  ops::check_devices(kOp, {{"x", x}, {"gamma", gamma}});
  ops::check_shape(kOp, {"gamma", gamma}, {x.size(1), 1, 1, 1});
#if FOVEA_HAS_CUDA
  if (covered(x)) return ChannelNormSilu::apply(x, gamma);
#endif
  return composition::channel_norm_silu(x, gamma);
}

bool channel_norm_silu_into(at::Tensor& y, const at::Tensor& x, const at::Tensor& gamma) {
  ops::check_shape(kOp, {"y", y}, x.sizes());
  ops::check_shape(kOp, {"gamma", gamma}, {x.size(1), 1, 1, 1});
#if FOVEA_HAS_CUDA
  // Frames of an item one after another, as in x; only the next item may be farther away.
  const at::Tensor item = y.select(0, 0).permute({1, 2, 3, 0});
  if (!covered(x) || y.scalar_type() != x.scalar_type() || !item.is_contiguous() ||
      reinterpret_cast<uintptr_t>(y.const_data_ptr()) % 16 != 0 || y.stride(0) % 8 != 0) {
    return false;
  }
  const at::Tensor flat = fp32_vector(gamma);
  kernels::ChannelNormArgs args = arguments(x, flat);
  args.y = y.mutable_data_ptr();
  args.y_item_stride = y.stride(0);
  return ops::accepted(kOp, kernels::channel_norm_silu_cuda(args, ops::cuda_target(x.device())));
#else
  return false;
#endif
}

}  // namespace fovea
