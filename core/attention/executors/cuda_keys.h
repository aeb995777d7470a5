#pragma once

#include <vector>

#include <ATen/core/Tensor.h>

#include "core/attention/call.h"
#include "core/attention/executors/partial.h"
#include "core/attention/plan.h"
#include "kernels/attention/tile_lists.h"

// Keys and values of plans where the call's tensors are: on a GPU, or on the CPU in tests. Nothing
// waits for a GPU.

namespace fovea {

bool has_padding(const TokenLayout& layout);

/// Whether padding is at the end of every segment in this order, and no block is of two segments,
/// as far as the host knows: then it is at the end of blocks.
bool keeps_padding_last(const TokenOrder& order, const BlockAxis& blocks,
                        const TokenLayout& layout);

/// int32 [batch, 1, blocks]: valid keys at the begin of each block, where padding is at their ends.
at::Tensor valid_of_blocks(const BlockAxis& blocks, const TokenLayout& layout, at::Device device);

/// Rows of positions whose padding is -1, int32 [batch, heads or 1, positions].
///
/// rows  int32 [batch or 1, heads or 1, positions], -1: none; or undefined: as they are
at::Tensor rows_without_padding(const at::Tensor& rows, const TokenLayout& layout);

/// Means of pieces of blocks, the same bits in every run.
struct DevicePools {
  std::vector<at::Tensor> mean;  ///< fp32 [batch, heads, places, dim] of each tensor
  at::Tensor count;              ///< fp32 [batch, heads, places]: rows in each; 0 in between
};

struct PooledOf {
  std::vector<at::Tensor> tensors;  ///< one or two [batch, kv_heads, len, dim] of one type
  at::Tensor rows;                  ///< see `rows_without_padding`; of kv_heads or `heads`
  BlockAxis blocks;
  std::vector<kernels::SummaryKeys> summaries;  ///< their begin counts from the first place
  int64_t places = 0;
  int64_t heads = 0;  ///< of the result: kv_heads, or those that have blocks of their own
};

/// Means are differentiable once.
///
/// fault  int32 [1]: see `TileListsArgs`
DevicePools pool_on_device(const PooledOf& of, const at::Tensor& fault);

/// `run_pooled_values`, with the same bits in every run.
Partial run_pooled_values_on_device(const AttentionPlan& plan, const PooledValuesBranch& branch,
                                    const AttentionCall& call, const at::Tensor& fault);

/// fp32 [batch or 1, heads or 1, positions] by position: what a call's bias, which all queries
/// share, adds to logits, and -inf where `hidden` has padding; undefined where neither is there.
///
/// rows    int32 [batch or 1, kv_heads or 1, len], or undefined: as they are
/// hidden  rows with -1 for padding that the bias is to hide, or undefined
at::Tensor bias_of_keys(const at::Tensor& bias, const at::Tensor& rows, const at::Tensor& hidden,
                        const AttentionCall& call);

}  // namespace fovea
