#include "kernels/ops/cpu_variants.h"
#include "kernels/ops/row_cpu.h"

namespace fovea::kernels::FOVEA_ISA {
namespace {

template <typename T>
void norm_row(const LayerNormModulateArgs& args, int64_t row) {
  const T* x = row_of<T>(args.x, row);
  T* y = row_of<T>(args.y, row);
  const int64_t item = row / args.rows_per_item;
  const float* scale = args.scale.data ? args.scale.data + item * args.scale.stride : nullptr;
  const float* shift = args.shift.data ? args.shift.data + item * args.shift.stride : nullptr;

  Doubles values;
  for_each_group(args.dim, [&](auto load, auto) { values = values + widen(load(x)); });
  const double mean = sum(values) / static_cast<double>(args.dim);

  // The last, shorter group goes one by one: padding would count as -mean.
  Doubles squares;
  double tail_squares = 0;
  int64_t column = 0;
  for (; column + kLanes <= args.dim; column += kLanes) {
    squares = squares + square(widen(load(x + column)) - mean);
  }
  for (; column < args.dim; ++column) {
    const double centred = static_cast<double>(to_float(x[column])) - mean;
    tail_squares += centred * centred;
  }
  const Floats factor = broadcast(inverse_root(sum(squares) + tail_squares, args.dim, args.eps));

  const Floats one = broadcast(1.0f);
  for_each_group(args.dim, [&](auto load, auto store) {
    Floats n = narrow(widen(load(x)) - mean) * factor;
    if (args.weight) n = n * load(args.weight) + load(args.bias);
    if (scale) n = n * (one + load(scale)) + load(shift);
    store(y, n);
  });
}

}  // namespace

void layer_norm_modulate(const LayerNormModulateArgs& args, RowRange range) {
  with_type(args.x.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    for (int64_t row = range.begin; row < range.end; ++row) norm_row<T>(args, row);
  });
}

}  // namespace fovea::kernels::FOVEA_ISA
