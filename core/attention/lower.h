#pragma once

#include <cstdint>
#include <vector>

#include "core/attention/call.h"
#include "core/attention/plan.h"

namespace fovea {

/// What a softmax branch takes of one item of a batch, as lists on the host: for each block of
/// queries the blocks of keys, and of blocks that predicates cut through the pairs that are seen.
/// Padding is not in it: it may change from call to call.
struct HostLists {
  int64_t maps = 1;  ///< one, or one for each head
  int64_t num_q_blocks = 0;
  int64_t num_kv_blocks = 0;
  std::vector<int32_t> q_offsets;   ///< [maps, num_q_blocks + 1] positions in the plan's order
  std::vector<int32_t> kv_offsets;  ///< [maps, num_kv_blocks + 1]
  std::vector<int64_t> row_ptr;     ///< [maps, num_q_blocks + 1] into the entries
  std::vector<int32_t> kv_index;    ///< a block of keys for each entry, ascending
  /// For each entry the first of its words, or -1 where all its pairs are seen: [rows of the block
  /// of queries][ceil(keys / 64)]. Empty when no entry has any.
  std::vector<int64_t> bits_offset;
  std::vector<uint64_t> bits;
};

/// The blocks of a branch that has no class map, and no scales of weights per block.
BlockAxis default_blocks(const TokenLayout& layout);

/// Whether items of a batch have lists of their own.
bool lists_differ(const AttentionPlan& plan, const SoftmaxBranch& branch);

/// item  of the batch; tensors of the plan are on the CPU
/// keys  `exact`: the branch's keys, given ones too; number i of its summaries: blocks of
///       `pieces_per_block` pooled keys each
HostLists lower_to_lists(const AttentionPlan& plan, const SoftmaxBranch& branch,
                         const AttentionCall& call, int64_t item,
                         uint8_t keys = block_class::exact);

/// Where the pooled keys of each summary begin when all of them follow `keys` own ones, and where
/// the last ones end: at multiples of 16, which the kernels take at a time, never directly behind
/// those of the summary before.
std::vector<int64_t> summary_places(const Selection& selection, int64_t keys);

/// The same of the branch's keys and all its summaries' together, which are at `summary_places`.
HostLists lower_with_summaries(const AttentionPlan& plan, const SoftmaxBranch& branch,
                               const AttentionCall& call, int64_t item);

}  // namespace fovea
