#pragma once

// The attention kernels once per instruction set. They are called with checked arguments.

#include "kernels/attention/backward_layout.h"
#include "kernels/attention/block_sparse.h"
#include "kernels/attention/shares_layout.h"
#include "kernels/attention/work_layout.h"

#define FOVEA_DECLARE_ATTENTION_VARIANT(isa)                                                      \
  namespace fovea::kernels::isa {                                                                 \
  void block_sparse(const BlockSparseArgs& args, const WorkLayout& layout, unsigned char* memory, \
                    const Parallel& parallel);                                                    \
  void block_sparse_backward(const BlockSparseBackwardArgs& args, const BackwardLayout& layout,   \
                             unsigned char* memory, const Parallel& parallel);                    \
  void block_sums(const BlockSumsArgs& args, const Parallel& parallel);                           \
  void block_shares(const BlockSharesArgs& args, const SharesLayout& layout,                      \
                    unsigned char* memory, const Parallel& parallel);                             \
  }

FOVEA_DECLARE_ATTENTION_VARIANT(baseline)
FOVEA_DECLARE_ATTENTION_VARIANT(avx2)
FOVEA_DECLARE_ATTENTION_VARIANT(avx512)
