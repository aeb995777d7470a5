#include "kernels/ops/cpu_variants.h"
#include "kernels/ops/row_cpu.h"

namespace fovea::kernels::FOVEA_ISA {

void gate_residual(const GateResidualArgs& args, RowRange range) {
  with_type(args.x.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    for (int64_t row = range.begin; row < range.end; ++row) {
      const T* x = row_of<T>(args.x, row);
      const T* y = row_of<T>(args.y, row);
      T* out = row_of<T>(args.out, row);
      const float* gate = args.gate.data + row / args.rows_per_item * args.gate.stride;
      for_each_group(args.dim,
                     [&](auto load, auto store) { store(out, load(x) + load(y) * load(gate)); });
    }
  });
}

}  // namespace fovea::kernels::FOVEA_ISA
