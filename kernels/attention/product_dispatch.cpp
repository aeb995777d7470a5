#include <algorithm>

#include "kernels/attention/checks.h"
#include "kernels/attention/cpu_variants.h"

namespace fovea::kernels {
namespace {

constexpr int64_t kTasksPerThread = 2;
constexpr int64_t kSmallTileRows = 48;  // at fewer, packing B weighs more than 5 %
constexpr int64_t kBytes = aligned(int64_t{sizeof(ProductMemory)});

}  // namespace

Status check(const ProductArgs& args) {
  if (args.num_items < 0 || args.columns < 0) return invalid("a size is negative");
  if (!args.items && args.num_items > 0) return invalid("a pointer is missing");
  if (args.c_row_stride < args.columns) return invalid("rows of C overlap");
  for (int64_t i = 0; i < args.num_items; ++i) {
    const ProductItem& item = args.items[i];
    if (item.rows < 0 || item.inner < 0) return invalid("a size is negative");
    const bool has_result = item.rows > 0 && args.columns > 0;
    if (has_result && (!item.c || (item.inner > 0 && (!item.a || !item.b))))
      return invalid("a pointer is missing");
  }
  return {};
}

ProductLayout product_layout(const ProductArgs& args, int threads) {
  ProductLayout out;
  int64_t most = 0;
  for (int64_t i = 0; i < args.num_items; ++i) most = std::max(most, args.items[i].rows);
  out.column_tiles = (args.columns + kProductColumns - 1) / kProductColumns;
  const auto cut = [&](int64_t tile_rows) {
    out.tile_rows = tile_rows;
    out.row_tiles = (most + tile_rows - 1) / tile_rows;
    out.tasks = args.num_items * out.row_tiles * out.column_tiles;
  };
  cut(kTileRows);
  if (threads > 1 && out.tasks < kTasksPerThread * threads) cut(kSmallTileRows);
  return out;
}

int64_t product_workspace_bytes(const ProductArgs&, int threads) {
  return std::max(threads, 1) * kBytes;
}

Status product_cpu(const ProductArgs& args, Workspace workspace, const Parallel& parallel,
                   Isa isa) {
  if (const Status status = check(args); !status.ok()) return status;
  const int64_t bytes = product_workspace_bytes(args, parallel.threads);
  if (const Status status = check_run(workspace, bytes, isa); !status.ok()) return status;
  auto* kernel = baseline::product;
#if FOVEA_X86_VARIANTS
  if (isa == Isa::avx2) kernel = avx2::product;
  if (isa >= Isa::avx512) kernel = avx512::product;
#endif
  kernel(args, product_layout(args, parallel.threads), static_cast<unsigned char*>(workspace.data),
         parallel);
  return {};
}

}  // namespace fovea::kernels
