#pragma once

// The attention kernel once per instruction set. It is called with checked arguments.

#include "kernels/attention/backward_layout.h"
#include "kernels/attention/block_sparse.h"
#include "kernels/attention/quantize_rows.h"
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

#define FOVEA_DECLARE_QUANTIZE_ROWS(isa)                                      \
  namespace fovea::kernels::isa {                                             \
  void quantize_rows(const QuantizeRowsArgs& args, const Parallel& parallel); \
  }

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
