#include <new>

#include "kernels/attention/cpu_variants.h"
#include "kernels/attention/panels_cpu.h"
#include "kernels/attention/tasks_cpu.h"
#include "kernels/attention/tile_cpu.h"

namespace fovea::kernels::FOVEA_ISA {
namespace {

/// What all tasks share.
struct ProductJob {
  const ProductArgs& args;
  const ProductLayout& layout;
  unsigned char* workers;

  ProductMemory& memory(int64_t worker) const {
    return *new (workers + worker * aligned(int64_t{sizeof(ProductMemory)})) ProductMemory;
  }
};

/// Part of the C of an item.
struct ProductTile {
  const ProductArgs& args;
  const ProductItem& item;
  ProductMemory& memory;
  int64_t row, rows, column, columns;

  int64_t units() const { return (columns + kUnit - 1) / kUnit; }
};

void copy_floats(const float* from, int64_t count, float* to) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(to + i, load(from + i));
  for (; i < count; ++i) to[i] = from[i];
}

/// Whether the columns of A, not its rows, are copied in one piece.
bool copies_columns(const ProductArgs& args) {
  return args.a_row_stride == 1 && args.a_column_stride != 1;
}

/// Columns [inner.begin, inner.end) of the tile's rows of A.
void copy_a(const ProductTile& tile, Span inner) {
  const ProductArgs& args = tile.args;
  const int64_t count = inner.end - inner.begin;
  const float* from =
      tile.item.a + tile.row * args.a_row_stride + inner.begin * args.a_column_stride;
  float* to = tile.memory.a;
  if (copies_columns(args)) {
    for (int64_t k = 0; k < count; ++k)
      copy_floats(from + k * args.a_column_stride, tile.rows, to + k * kProductColumnA);
    return;
  }
  for (int64_t r = 0; r < tile.rows; ++r) {
    const float* row = from + r * args.a_row_stride;
    if (args.a_column_stride == 1) {
      copy_floats(row, count, to + r * kProductRowA);
    } else {
      for (int64_t k = 0; k < count; ++k) to[r * kProductRowA + k] = row[k * args.a_column_stride];
    }
  }
}

/// Rows [inner.begin, inner.end) of the tile's columns of B, to panels; columns beyond become 0.
void pack_b(const ProductTile& tile, Span inner) {
  const ProductArgs& args = tile.args;
  const int64_t count = inner.end - inner.begin;
  const float* from =
      tile.item.b + inner.begin * args.b_row_stride + tile.column * args.b_column_stride;
  float* to = tile.memory.b;
  if (args.b_column_stride == 1) {
    const HeadView<float> rows{from, args.b_row_stride, nullptr};
    pack_values(rows, tile.columns, kProductInner, {0, count}, to);
    return;
  }
  if (args.b_row_stride == 1) {
    const HeadView<float> columns{from, args.b_column_stride, nullptr};
    for (int64_t u = 0; u < tile.units(); ++u)
      pack_key_unit(columns, tile.columns, count, u, to + u * kProductInner * kUnit);
    return;
  }
  for (int64_t k = 0; k < count; ++k) {
    for (int64_t c = 0; c < tile.units() * kUnit; ++c) {
      to[(c / kUnit * kProductInner + k) * kUnit + c % kUnit] =
          c < tile.columns ? from[k * args.b_row_stride + c * args.b_column_stride] : 0.0f;
    }
  }
}

/// C = what `finish` makes of the sums of the products with `count` rows of the panels.
template <int64_t kRowA, int64_t kColumnA, typename F>
void multiply_panels(const ProductTile& tile, int64_t count, const F& finish) {
  const Run run{0, 0, count};
  const int64_t units = tile.units(), groups = (units + kGroupUnits - 1) / kGroupUnits;
  for (int64_t g = 0; g < groups; ++g) {
    // As even as they can be: one panel alone would wait for its sums.
    const int64_t first = units * g / groups;
    Panels panels;
    panels.count = units * (g + 1) / groups - first;
    if (kGroupUnits == 1) panels.columns = std::min(kUnit, tile.columns - first * kUnit);
    for (int64_t u = 0; u < panels.count; ++u)
      panels.panel[u] = tile.memory.b + (first + u) * kProductInner * kUnit;
    multiply_tile<FloatProduct, Strides<kRowA, kColumnA, kUnit, kProductRowC>>(
        tile.rows, tile.memory.a, panels, {&run, 1}, tile.memory.c + first * kUnit, finish);
  }
}

template <typename F>
void multiply_chunk(const ProductTile& tile, Span inner, const F& finish) {
  copy_a(tile, inner);
  pack_b(tile, inner);
  if (copies_columns(tile.args)) {
    multiply_panels<1, kProductColumnA>(tile, inner.end - inner.begin, finish);
  } else {
    multiply_panels<kProductRowA, 1>(tile, inner.end - inner.begin, finish);
  }
}

void product_task(const ProductJob& job, int64_t task, int64_t worker) {
  const ProductArgs& args = job.args;
  const ProductLayout& layout = job.layout;
  const int64_t column_tile = task % layout.column_tiles;
  const int64_t row_tile = task / layout.column_tiles % layout.row_tiles;
  const ProductItem& item = args.items[task / layout.column_tiles / layout.row_tiles];
  const int64_t row = row_tile * layout.tile_rows;
  if (row >= item.rows) return;
  const int64_t units = (args.columns + kUnit - 1) / kUnit;
  const int64_t column = units * column_tile / layout.column_tiles * kUnit;
  const int64_t end =
      std::min(units * (column_tile + 1) / layout.column_tiles * kUnit, args.columns);
  const int64_t rows = std::min(layout.tile_rows, item.rows - row);
  const ProductTile tile{args, item, job.memory(worker), row, rows, column, end - column};
  float* c = item.c + row * args.c_row_stride + column;
  for (int64_t at = 0; at < item.inner; at += kProductInner) {
    const Span inner{at, std::min(at + kProductInner, item.inner)};
    if (at == 0) {
      multiply_chunk(tile, inner, KeepSums());
    } else {
      multiply_chunk(tile, inner, AddSums());
    }
  }
  for (int64_t r = 0; r < rows; ++r) {
    float* to = c + r * args.c_row_stride;
    if (item.inner == 0) {
      std::fill_n(to, tile.columns, 0.0f);
    } else {
      copy_floats(tile.memory.c + r * kProductRowC, tile.columns, to);
    }
  }
}

}  // namespace

void product(const ProductArgs& args, const ProductLayout& layout, unsigned char* memory,
             const Parallel& parallel) {
  const ProductJob job{args, layout, memory};
  run_tasks(job, parallel, layout.tasks, [](const ProductJob& j, int64_t task, int64_t worker) {
    product_task(j, task, worker);
  });
}

}  // namespace fovea::kernels::FOVEA_ISA
