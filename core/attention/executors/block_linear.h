#pragma once

#include <optional>
#include <string>

#include <ATen/core/Tensor.h>

#include "core/attention/executors/partial.h"

namespace fovea {

/// φ(x), over the channels where it is a softmax.
at::Tensor features(const at::Tensor& x, FeatureMap map);

/// What a linear branch gives of its two sums, projection included.
///
/// weighted  [batch, heads, q_len, value_dim]: φ(q)·Σφ(k)ᵀv
/// total     [batch, heads, q_len, 1]: φ(q)·Σφ(k), exactly 0 where no key is taken
Partial finish_linear(const LinearBranch& branch, const at::Tensor& weighted,
                      const at::Tensor& total);

/// Why `run_block_linear` cannot run the branch, or nothing.
std::optional<std::string> why_not_block_linear(const AttentionPlan& plan,
                                                const LinearBranch& branch);

/// A linear branch in linear time: one state Σφ(k)ᵀv for all keys, or one for each block of keys,
/// of which each block of queries adds up those that it skips (Sparse-Linear Attention, Zhang et
/// al., 2025, section 4.2). Never a total minus a part. Differentiable.
Partial run_block_linear(const AttentionPlan& plan, const LinearBranch& branch,
                         const AttentionCall& call);

/// Why `run_linear_on_device` cannot run the branch, or nothing.
std::optional<std::string> why_not_linear_on_device(const AttentionPlan& plan,
                                                    const LinearBranch& branch,
                                                    const AttentionCall& call);

/// The same as `run_block_linear` where the tensors are, without waiting for a GPU: by the kernels
/// of `cuda_linear.h` where those take it, else by LibTorch's products, with blocks padded to the
/// size of the largest. Differentiable.
Partial run_linear_on_device(const AttentionPlan& plan, const LinearBranch& branch,
                             const AttentionCall& call);

}  // namespace fovea
