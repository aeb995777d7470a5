#pragma once

#include <vector>

#include <ATen/core/Tensor.h>

#include "core/attention/executor.h"

namespace fovea {

/// What one branch of a plan gives, before branches become one result; fp32, or fp64 where q is.
struct Partial {
  at::Tensor out;  ///< [batch, heads, q_len, value_dim]
  at::Tensor lse;  ///< [batch, heads, q_len]; undefined where the branch has none
};

/// As if the keys of both had been in one softmax; both have a log-sum-exp. Differentiable.
Partial merge(const Partial& a, const Partial& b);

/// The result of a plan from one partial for each of its branches, in their order.
///
/// dtype  of the result's `out`
AttentionResult combine(const AttentionPlan& plan, const std::vector<Partial>& branches,
                        at::ScalarType dtype);

}  // namespace fovea
