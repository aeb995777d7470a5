#pragma once

// What norm.cpp, rope.cpp and modulate.cpp share. Not part of the interface of core/ops.

#include <functional>
#include <initializer_list>
#include <optional>
#include <type_traits>

#include <ATen/core/Tensor.h>

#include "kernels/common/isa.h"
#include "kernels/common/status.h"
#include "kernels/common/tensor_view.h"

#if FOVEA_HAS_CUDA
#define FOVEA_CUDA_LAUNCHER(name) (&kernels::name)
namespace fovea::ops {
constexpr bool kHasCudaKernels = true;
}
#else
#define FOVEA_CUDA_LAUNCHER(name) nullptr
namespace fovea::ops {
constexpr bool kHasCudaKernels = false;
}
#endif

namespace fovea::ops {

/// A tensor argument and its name in errors; an undefined tensor is an argument left out.
struct Argument {
  const char* name;
  const at::Tensor& tensor;
};

/// Throws Error bad_data unless every tensor is strided and on the first one's device.
void check_devices(const char* op, std::initializer_list<Argument> arguments);
/// Throws Error bad_data unless x is floating point with at least `min_dim` dimensions.
void check_input(const char* op, const Argument& x, int64_t min_dim);
/// Throws Error bad_data unless the shape is as given; -1 stands for any size.
void check_shape(const char* op, const Argument& argument, at::IntArrayRef shape);
/// Throws Error bad_data unless the dtype is fp32; fp64 is fine beside an fp64 x.
void check_fp32(const char* op, const Argument& argument, const at::Tensor& x);

/// Whether kernels may compute this: their device and dtype, and no gradient is asked for.
bool kernels_apply(const at::Tensor& x, std::initializer_list<Argument> arguments);

/// x as a matrix whose rows are its last `row_dims` dimensions; nothing when no matrix with
/// contiguous rows at equal distances lies there.
std::optional<kernels::Rows> rows_of(const at::Tensor& x, int64_t row_dims = 1);
kernels::ConstRows constant(const kernels::Rows& rows);
/// [batch or 1, dim] fp32 with contiguous channels as per-item channels.
kernels::ConstChannels channels_of(const at::Tensor& values);

kernels::DType kernel_dtype(at::ScalarType dtype);

/// The size of one launch.
struct RowWork {
  const char* op;
  c10::Device device;
  int64_t num_rows;
  int64_t dim;
};

/// True when ok, false when the kernel does not cover the problem. throws Error otherwise
bool accepted(const char* op, const kernels::Status& status);
/// Where the current stream of `device` runs.
kernels::CudaTarget cuda_target(c10::Device device);
/// Calls f(range) from LibTorch's threads until all rows are done.
void parallel_rows(const RowWork& work, const std::function<void(kernels::RowRange)>& f);

template <typename Args>
using CudaLauncher = kernels::Status (*)(const Args&, kernels::CudaTarget);

/// Runs a kernel on the device of the work. Returns false, with nothing computed, when the kernel
/// does not cover the problem. cuda may be null in a build without CUDA kernels.
template <typename Args>
bool launch(const RowWork& work, const Args& args,
            kernels::Status (*cpu)(const Args&, kernels::RowRange, kernels::Isa),
            std::type_identity_t<CudaLauncher<Args>> cuda) {
  if (!accepted(work.op, check(args))) return false;
  if (work.device.is_cuda()) return accepted(work.op, cuda(args, cuda_target(work.device)));
  parallel_rows(work, [&](kernels::RowRange range) {
    accepted(work.op, cpu(args, range, kernels::best_isa()));
  });
  return true;
}

}  // namespace fovea::ops
