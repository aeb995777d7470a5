#pragma once

#include <ATen/core/Tensor.h>

#include "core/attention/call.h"
#include "core/attention/plan.h"

// Linear branches by kernels/attention/linear_blocks.h, where the call's tensors are: on a GPU, or
// on the CPU in tests. Nothing waits for a GPU, and the same bits come in every run.

namespace fovea {

/// Whether the kernels compute a branch: bf16, 64 or 128 channels, as many heads of keys as of
/// queries, no padding, a complement of blocks of up to 128 tokens that the host knows and all
/// heads share, no gradients.
bool has_linear_kernel(const AttentionPlan& plan, const LinearBranch& branch,
                       const AttentionCall& call);

/// added + what the branch gives, bf16 [batch, heads, q_len, dim], tokens before heads in memory.
///
/// added  such a tensor, any strides, or undefined: 0
at::Tensor run_linear_kernel(const AttentionPlan& plan, const LinearBranch& branch,
                             const AttentionCall& call, const at::Tensor& added);

// What run_linear_kernel does, part by part, for programs that measure; the branch is one that
// `has_linear_kernel` says yes to.

/// States of blocks of keys, or of each block of queries the sum of those that it takes.
struct LinearStates {
  at::Tensor states;  ///< bf16 [batch, heads, blocks, dim * dim]: sum of phi(k)^T v
  at::Tensor totals;  ///< fp32 [batch, heads, blocks, dim]: sum of phi(k)
};
LinearStates linear_states_of_keys(const AttentionPlan& plan, const LinearBranch& branch,
                                   const AttentionCall& call);
/// The keys that each block of queries skips.
LinearStates skipped_linear_states(const AttentionPlan& plan, const LinearBranch& branch,
                                   const LinearStates& keys);
at::Tensor linear_result(const AttentionPlan& plan, const LinearBranch& branch,
                         const AttentionCall& call, const LinearStates& sums,
                         const at::Tensor& added);

/// The linear branch of a plan that is nothing but a softmax and such a one, each in a group
/// without a weight: its kernel adds the softmax's result. Else null.
const LinearBranch* linear_to_add(const AttentionPlan& plan, const AttentionCall& call);

}  // namespace fovea
