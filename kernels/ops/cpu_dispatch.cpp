#include "kernels/ops/cpu_variants.h"

namespace fovea::kernels {
namespace {

template <typename Args>
using RowKernel = void (*)(const Args&, RowRange);

/// The variants of one kernel, in the order of Isa.
template <typename Args>
struct Variants {
  RowKernel<Args> baseline, avx2, avx512;
};

#if FOVEA_X86_VARIANTS
#define FOVEA_VARIANTS(name) \
  { baseline::name, avx2::name, avx512::name }
#else
#define FOVEA_VARIANTS(name) \
  { baseline::name, nullptr, nullptr }
#endif

template <typename Args>
Status run(const Variants<Args>& variants, const Args& args, RowRange range, Isa isa) {
  if (const Status status = check(args); !status.ok()) return status;
  if (!isa_available(isa))
    return {StatusCode::unsupported, "this processor lacks the instruction set"};
  const RowKernel<Args> kernel = isa >= Isa::avx512 ? variants.avx512
                                 : isa == Isa::avx2 ? variants.avx2
                                                    : variants.baseline;
  kernel(args, range);
  return {};
}

}  // namespace

Status rms_norm_cpu(const RmsNormArgs& args, RowRange range, Isa isa) {
  return run<RmsNormArgs>(FOVEA_VARIANTS(rms_norm), args, range, isa);
}

Status rms_norm_rope_cpu(const RmsNormRopeArgs& args, RowRange range, Isa isa) {
  return run<RmsNormRopeArgs>(FOVEA_VARIANTS(rms_norm_rope), args, range, isa);
}

Status rope_cpu(const RopeArgs& args, RowRange range, Isa isa) {
  return run<RopeArgs>(FOVEA_VARIANTS(rope), args, range, isa);
}

Status layer_norm_modulate_cpu(const LayerNormModulateArgs& args, RowRange range, Isa isa) {
  return run<LayerNormModulateArgs>(FOVEA_VARIANTS(layer_norm_modulate), args, range, isa);
}

Status gate_residual_cpu(const GateResidualArgs& args, RowRange range, Isa isa) {
  return run<GateResidualArgs>(FOVEA_VARIANTS(gate_residual), args, range, isa);
}

}  // namespace fovea::kernels
