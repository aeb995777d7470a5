#pragma once

#include <optional>
#include <string>

#include <ATen/core/Tensor.h>

#include "core/attention/executors/cuda.h"
#include "core/attention/executors/cuda_lists.h"
#include "core/attention/executors/partial.h"

// Softmax branches of `CudaExecutor` for LibTorch's autograd. What comes before the kernels (rows
// in other orders, means) and behind them (branches that merge) differentiates itself.

namespace fovea {

/// Whether gradients of what a softmax takes are wanted of its result.
bool wants_gradient(const SoftmaxBranch& branch, const AttentionCall& call);

/// Why a backend gives no gradients that are wanted, or nothing.
std::optional<std::string> why_not_gradients(const CudaBackend& backend, const AttentionPlan& plan,
                                             const AttentionCall& call);

/// What a kernel was run with.
struct SoftmaxLaunch {
  const CudaBackend& backend;
  kernels::CudaAttentionArgs args;  ///< those of the tensors below
  at::Tensor q, k, v;               ///< [batch, heads or kv_heads, len, dim], positions in order
  at::Tensor more_k, more_v;        ///< undefined where `args` has none
  at::Tensor key_bias;              ///< what `args` points to, as are the lists
  at::Tensor out_rows;              ///< int32 [batch or 1, heads or 1, q_len], or undefined
  std::optional<DeviceLists> lists, columns;  ///< both or none
  at::Tensor fault;                           ///< int32 [1], see `TileListsArgs`
};

/// The launch's result, differentiable once by its tensors, both out and lse, the same bits in
/// every run. Nothing waits for the GPU.
Partial with_gradients(const SoftmaxLaunch& launch, const Partial& result);

}  // namespace fovea
