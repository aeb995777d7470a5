#pragma once

// Kernels that exist on both sides and take tensors where they lie. Not part of the interface of
// core/ops.

#include <type_traits>

#include "core/check.h"
#include "core/ops/launch.h"

namespace fovea::ops {

/// Runs a kernel where its tensors are.
///
/// cuda    may be null in a build without CUDA kernels
/// throws  Error device where the driver refuses, or the kernel does not cover the problem
template <typename Args>
void run_on(const char* op, c10::Device device, const Args& args, void (*cpu)(const Args&),
            std::type_identity_t<CudaLauncher<Args>> cuda) {
  if (device.is_cpu()) return cpu(args);
  FOVEA_ASSERT(device.is_cuda() && cuda != nullptr, op, " on ", device);
  const kernels::Status status = cuda(args, cuda_target(device));
  require(accepted(op, status), ErrorCode::device, op, status.message);
}

}  // namespace fovea::ops
