#include "kernels/ops/rope_cpu.h"
#include "kernels/ops/cpu_variants.h"

namespace fovea::kernels::FOVEA_ISA {

void rope(const RopeArgs& args, RowRange range) {
  with_type(args.x.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    for (int64_t row = range.begin; row < range.end; ++row) {
      rotate_row(row_of<T>(args.x, row), row_of<T>(args.y, row), args.dim, args.rope, row);
    }
  });
}

}  // namespace fovea::kernels::FOVEA_ISA
