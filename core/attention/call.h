#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include <ATen/core/Tensor.h>

#include "core/token_layout.h"

namespace fovea {

/// What an attention is for; planners say which roles they plan, the rest runs dense.
enum class AttentionRole {
  self,   ///< a picture's or video's tokens among themselves
  joint,  ///< video and text tokens in one sequence
  cross,  ///< video tokens to text or image tokens
  text,   ///< tokens of a text encoder
};

/// Which pass of classifier-free guidance a call belongs to.
enum class GuidanceBranch { conditional = 0, unconditional = 1 };

/// Where in a run a network is evaluated; made by the pipeline, handed through by the network.
struct StepContext {
  int64_t step = 0;  ///< index in the schedule
  int64_t num_steps = 1;
  double timestep = 0;  ///< the network's time value
  GuidanceBranch guidance_branch = GuidanceBranch::conditional;
  int64_t seed = 0;  ///< of planners that draw samples
};

/// One attention that is asked for.
struct AttentionCall {
  AttentionRole role = AttentionRole::self;
  TokenLayout q_layout;
  TokenLayout kv_layout;
  at::Tensor q;     ///< [batch, num_heads, q_len, head_dim], any strides
  at::Tensor k;     ///< [batch, num_kv_heads, kv_len, head_dim]
  at::Tensor v;     ///< [batch, num_kv_heads, kv_len, value_dim]
  at::Tensor bias;  ///< added to q·k after scaling; broadcasts to [batch, num_heads, q_len, kv_len]
  std::optional<double> sm_scale;  ///< default 1 / sqrt(head_dim)
  StepContext context;
  int64_t layer = 0;
  bool needs_lse = false;  ///< executors that give no log-sum-exp are passed over
  /// Learned tensors of the planner for this layer, those of `Planner::param_names`; empty: none.
  std::vector<at::Tensor> params;
};

}  // namespace fovea
