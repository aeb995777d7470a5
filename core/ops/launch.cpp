#include "core/ops/launch.h"

#include <algorithm>

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include "core/check.h"
#include "core/parallel.h"

namespace fovea::ops {

void check_devices(const char* op, std::initializer_list<Argument> arguments) {
  const Argument& first = *arguments.begin();
  for (const Argument& argument : arguments) {
    if (!argument.tensor.defined()) continue;
    require(argument.tensor.layout() == at::kStrided, ErrorCode::bad_data, op, "tensor '",
            argument.name, "': expected a dense tensor");
    require(argument.tensor.device() == first.tensor.device(), ErrorCode::bad_data, op, "tensor '",
            argument.name, "': expected device ", first.tensor.device(), " as tensor '", first.name,
            "', got ", argument.tensor.device());
  }
}

void check_input(const char* op, const Argument& x, int64_t min_dim) {
  require(x.tensor.defined(), ErrorCode::bad_data, op, "tensor '", x.name, "' is missing");
  const auto dtype = x.tensor.scalar_type();
  require(
      dtype == at::kFloat || dtype == at::kHalf || dtype == at::kBFloat16 || dtype == at::kDouble,
      ErrorCode::bad_data, op, "tensor '", x.name, "': expected fp32, fp16, bf16 or fp64, got ",
      dtype);
  require(x.tensor.dim() >= min_dim, ErrorCode::bad_data, op, "tensor '", x.name,
          "': expected at least ", min_dim, " dimensions, got shape ", x.tensor.sizes());
}

void check_shape(const char* op, const Argument& argument, at::IntArrayRef shape) {
  require(argument.tensor.defined(), ErrorCode::bad_data, op, "tensor '", argument.name,
          "' is missing");
  bool equal = argument.tensor.dim() == static_cast<int64_t>(shape.size());
  for (size_t i = 0; equal && i < shape.size(); ++i) {
    equal = shape[i] == -1 || shape[i] == argument.tensor.size(static_cast<int64_t>(i));
  }
  require(equal, ErrorCode::bad_data, op, "tensor '", argument.name, "': expected shape ", shape,
          ", got ", argument.tensor.sizes());
}

void check_fp32(const char* op, const Argument& argument, const at::Tensor& x) {
  const auto dtype = argument.tensor.scalar_type();
  require(dtype == at::kFloat || (dtype == at::kDouble && x.scalar_type() == at::kDouble),
          ErrorCode::bad_data, op, "tensor '", argument.name, "': expected fp32, got ", dtype);
}

bool kernels_apply(const at::Tensor& x, std::initializer_list<Argument> arguments) {
  if (x.scalar_type() == at::kDouble) return false;
#if FOVEA_HAS_CUDA
  if (!x.is_cpu() && !x.is_cuda()) return false;
#else
  if (!x.is_cpu()) return false;
#endif
  if (!c10::GradMode::is_enabled()) return true;
  return std::none_of(arguments.begin(), arguments.end(), [](const Argument& argument) {
    return argument.tensor.defined() && argument.tensor.requires_grad();
  });
}

kernels::DType kernel_dtype(at::ScalarType dtype) {
  if (dtype == at::kHalf) return kernels::DType::f16;
  if (dtype == at::kBFloat16) return kernels::DType::bf16;
  FOVEA_ASSERT(dtype == at::kFloat, "got ", dtype);
  return kernels::DType::f32;
}

std::optional<kernels::Rows> rows_of(const at::Tensor& x, int64_t row_dims) {
  int64_t expected = 1;
  for (int64_t d = x.dim() - 1; d >= x.dim() - row_dims; --d) {
    if (x.size(d) != 1 && x.stride(d) != expected) return std::nullopt;
    expected *= x.size(d);
  }
  // The dimensions before must step through one sequence of rows; those of size 1 do not step.
  int64_t row_stride = -1;
  int64_t next = 0;
  for (int64_t d = x.dim() - row_dims - 1; d >= 0; --d) {
    if (x.size(d) == 1) continue;
    if (row_stride == -1) {
      row_stride = x.stride(d);
    } else if (x.stride(d) != next) {
      return std::nullopt;
    }
    next = x.stride(d) * x.size(d);
  }
  return kernels::Rows{x.data_ptr(), kernel_dtype(x.scalar_type()),
                       row_stride == -1 ? expected : row_stride};
}

kernels::ConstRows constant(const kernels::Rows& rows) {
  return {rows.data, rows.dtype, rows.stride};
}

kernels::ConstChannels channels_of(const at::Tensor& values) {
  return {values.const_data_ptr<float>(), values.size(0) == 1 ? 0 : values.stride(0)};
}

bool accepted(const char* op, const kernels::Status& status) {
  if (status.code == kernels::StatusCode::device)
    throw Error(ErrorCode::device, op, status.message);
  FOVEA_ASSERT(status.code != kernels::StatusCode::invalid, op, ": ", status.message);
  return status.ok();
}

kernels::CudaTarget cuda_target(c10::Device device) {
  const c10::impl::VirtualGuardImpl guard(device.type());
  return {device.index(), guard.getStream(device).native_handle()};
}

void parallel_rows(const RowWork& work, const std::function<void(kernels::RowRange)>& f) {
  constexpr int64_t kElements = 32768;  // as LibTorch's own grain: a thread is not woken for less
  const int64_t grain = std::max<int64_t>(1, kElements / std::max<int64_t>(1, work.dim));
  parallel_for(work.num_rows, grain, [&](int64_t begin, int64_t end) { f({begin, end}); });
}

}  // namespace fovea::ops
