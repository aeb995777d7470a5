#pragma once

// The CPU kernels once per instruction set. They are called with checked arguments.

#include "kernels/ops/gate_residual.h"
#include "kernels/ops/layer_norm_modulate.h"
#include "kernels/ops/rms_norm.h"
#include "kernels/ops/rope.h"

#define FOVEA_DECLARE_CPU_VARIANT(isa)                                         \
  namespace fovea::kernels::isa {                                              \
  void rms_norm(const RmsNormArgs& args, RowRange range);                      \
  void rms_norm_rope(const RmsNormRopeArgs& args, RowRange range);             \
  void rope(const RopeArgs& args, RowRange range);                             \
  void layer_norm_modulate(const LayerNormModulateArgs& args, RowRange range); \
  void gate_residual(const GateResidualArgs& args, RowRange range);            \
  }

FOVEA_DECLARE_CPU_VARIANT(baseline)
FOVEA_DECLARE_CPU_VARIANT(avx2)
FOVEA_DECLARE_CPU_VARIANT(avx512)
