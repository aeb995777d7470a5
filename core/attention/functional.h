#pragma once

#include <string>

#include "core/attention/executor.h"
#include "core/attention/planner.h"

namespace fovea {

/// How `attention` computes; all that is not given has the default of dense attention.
struct AttentionOptions {
  std::string planner = "dense";          ///< see `planner_names`
  Json planner_options = Json::object();  ///< see `make_planner` and `parse_planner_options`
  /// What the tokens are; without segments one sequence without geometry.
  TokenLayout q_layout, kv_layout;
  AttentionRole role = AttentionRole::self;
  at::Tensor bias;                 ///< added to the logits, broadcasts to [batch, heads, q, kv]
  std::optional<double> sm_scale;  ///< default 1 / sqrt(head_dim)
  bool is_causal = false;          ///< keys after the query's row are hidden
  std::string executor = "auto";   ///< a name of the executors' list, or any that can
  StepContext context;
  int64_t layer = 0;
};

/// Attention by a plan, beside LibTorch's `scaled_dot_product_attention`. Differentiable.
///
/// q, k, v  [batch, heads, q_len, head_dim], [batch, kv_heads, kv_len, head_dim], [batch, kv_heads,
///          kv_len, value_dim]: one dtype and device, kv_heads divides heads, any strides
/// returns  out of q's dtype, and the log-sum-exp
/// throws   Error bad_data for tensors that do not go together; usage for an unknown planner,
///          executor or option, and options that do not fit the layout; device when no executor
///          can; resource when memory does not suffice
AttentionResult attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                          const AttentionOptions& options = {});

/// A plan made by the caller. What lies in it is refused by name, see `validate` and `check_data`.
///
/// throws  as `attention`
AttentionResult run_plan(const AttentionPlan& plan, const AttentionCall& call,
                         const std::string& executor = "auto");

/// Refuses tensors that do not go together.
///
/// throws  Error bad_data
void check_call(const AttentionCall& call);

}  // namespace fovea
