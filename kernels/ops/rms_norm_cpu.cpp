#include "kernels/ops/cpu_variants.h"
#include "kernels/ops/rope_cpu.h"

namespace fovea::kernels::FOVEA_ISA {
namespace {

template <typename T, typename W>
void norm_row(const RmsNormArgs& args, int64_t row) {
  const T* x = row_of<T>(args.x, row);
  T* y = row_of<T>(args.y, row);
  const W* weight = static_cast<const W*>(args.weight.data);
  Doubles squares;
  for_each_group(args.dim, [&](auto load, auto) { squares = squares + square(widen(load(x))); });
  const Floats factor = broadcast(inverse_root(sum(squares), args.dim, args.eps));
  for_each_group(args.dim, [&](auto load, auto store) {
    const Floats normed = load(x) * factor;
    store(y, weight ? normed * load(weight) : normed);
  });
}

/// Calls f with null pointers of the element types of x and of the weight.
template <typename F>
void with_types(const RmsNormArgs& args, F f) {
  with_type(args.x.dtype, [&](auto* type) {
    if (args.weight.dtype == DType::f32) {
      f(type, static_cast<float*>(nullptr));
    } else {
      f(type, type);
    }
  });
}

}  // namespace

void rms_norm(const RmsNormArgs& args, RowRange range) {
  with_types(args, [&](auto* type, auto* weight_type) {
    using T = std::remove_pointer_t<decltype(type)>;
    using W = std::remove_pointer_t<decltype(weight_type)>;
    for (int64_t row = range.begin; row < range.end; ++row) norm_row<T, W>(args, row);
  });
}

void rms_norm_rope(const RmsNormRopeArgs& args, RowRange range) {
  with_types(args.norm, [&](auto* type, auto* weight_type) {
    using T = std::remove_pointer_t<decltype(type)>;
    using W = std::remove_pointer_t<decltype(weight_type)>;
    for (int64_t row = range.begin; row < range.end; ++row) {
      // The row is in the first-level cache between the two, and storing it rounds as wanted.
      norm_row<T, W>(args.norm, row);
      T* y = row_of<T>(args.norm.y, row);
      rotate_row<T>(y, y, args.norm.dim, args.rope, row);
    }
  });
}

}  // namespace fovea::kernels::FOVEA_ISA
