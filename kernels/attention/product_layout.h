#pragma once

#include "kernels/attention/product.h"
#include "kernels/attention/work_layout.h"

namespace fovea::kernels {

constexpr int64_t kProductInner = 256;    ///< products that are summed before they enter C
constexpr int64_t kProductColumns = 144;  ///< of a tile: 128 values and a count are one
/// Distances in a worker's buffers, off powers of two.
constexpr int64_t kProductRowA = kProductInner + kUnit;
constexpr int64_t kProductColumnA = kTileRows + kUnit;
constexpr int64_t kProductRowC = kProductColumns + kUnit;

/// A worker's buffers: less than 400 KB, for the L2.
struct ProductMemory {
  float a[kProductInner * kProductColumnA];  ///< [rows][inner], or [inner][rows]
  float b[kProductInner * kProductColumns];  ///< [16 columns][inner][16]
  float c[kTileRows * kProductRowC];
};
static_assert(kTileRows * kProductRowA <= kProductInner * kProductColumnA);

/// Tiles of C. How they are cut changes no bit.
struct ProductLayout {
  int64_t tile_rows = kTileRows;
  int64_t row_tiles = 0;     ///< of the item with the most rows
  int64_t column_tiles = 0;  ///< as even as units of 16 columns allow
  int64_t tasks = 0;
};

ProductLayout product_layout(const ProductArgs& args, int threads);

}  // namespace fovea::kernels
