#pragma once

// The attention kernels once per instruction set. They are called with checked arguments.

#include "kernels/attention/backward_layout.h"
#include "kernels/attention/block_sparse.h"
#include "kernels/attention/product_layout.h"
#include "kernels/attention/quantize_rows.h"
#include "kernels/attention/shares_layout.h"
#include "kernels/attention/work_layout.h"

#define FOVEA_DECLARE_ATTENTION_FORWARD(isa)                                                      \
  namespace fovea::kernels::isa {                                                                 \
  void block_sparse(const BlockSparseArgs& args, const WorkLayout& layout, unsigned char* memory, \
                    const Parallel& parallel);                                                    \
  }

#define FOVEA_DECLARE_ATTENTION_BACKWARD(isa)                                                   \
  namespace fovea::kernels::isa {                                                               \
  void block_sparse_backward(const BlockSparseBackwardArgs& args, const BackwardLayout& layout, \
                             unsigned char* memory, const Parallel& parallel);                  \
  }

#define FOVEA_DECLARE_BLOCK_SCORES(isa)                                      \
  namespace fovea::kernels::isa {                                            \
  void block_sums(const BlockSumsArgs& args, const Parallel& parallel);      \
  void block_shares(const BlockSharesArgs& args, const SharesLayout& layout, \
                    unsigned char* memory, const Parallel& parallel);        \
  }

#define FOVEA_DECLARE_QUANTIZE_ROWS(isa)                                      \
  namespace fovea::kernels::isa {                                             \
  void quantize_rows(const QuantizeRowsArgs& args, const Parallel& parallel); \
  }

#define FOVEA_DECLARE_PRODUCT(isa)                                                          \
  namespace fovea::kernels::isa {                                                           \
  void product(const ProductArgs& args, const ProductLayout& layout, unsigned char* memory, \
               const Parallel& parallel);                                                   \
  }

FOVEA_DECLARE_BLOCK_SCORES(baseline)
FOVEA_DECLARE_BLOCK_SCORES(avx2)
FOVEA_DECLARE_BLOCK_SCORES(avx512)
FOVEA_DECLARE_PRODUCT(baseline)
FOVEA_DECLARE_PRODUCT(avx2)
FOVEA_DECLARE_PRODUCT(avx512)
FOVEA_DECLARE_QUANTIZE_ROWS(baseline)
FOVEA_DECLARE_QUANTIZE_ROWS(avx2)
FOVEA_DECLARE_QUANTIZE_ROWS(avx512)
FOVEA_DECLARE_ATTENTION_FORWARD(baseline)
FOVEA_DECLARE_ATTENTION_FORWARD(avx2)
FOVEA_DECLARE_ATTENTION_FORWARD(avx512)
FOVEA_DECLARE_ATTENTION_FORWARD(avx512_vnni)
FOVEA_DECLARE_ATTENTION_FORWARD(avx512_bf16)
FOVEA_DECLARE_ATTENTION_BACKWARD(baseline)
FOVEA_DECLARE_ATTENTION_BACKWARD(avx2)
FOVEA_DECLARE_ATTENTION_BACKWARD(avx512)
