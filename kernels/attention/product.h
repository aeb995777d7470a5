#pragma once

#include "kernels/attention/block_sparse.h"

// Matrix products of fp32 whose bits do not depend on the number of threads: those around attention
// that is linear, pooled or projected.

namespace fovea::kernels {

/// One product C = A B.
struct ProductItem {
  const float* a = nullptr;  ///< [rows, inner]
  const float* b = nullptr;  ///< [inner, columns]
  float* c = nullptr;        ///< [rows, columns], overlaps nothing else
  int64_t rows = 0, inner = 0;
};

/// Products with the same strides, in elements, any of them, also 0 or negative; sizes may be 0.
/// A transposed matrix is one with its strides exchanged.
struct ProductArgs {
  const ProductItem* items = nullptr;
  int64_t num_items = 0;
  int64_t columns = 0;  ///< of all items
  int64_t a_row_stride = 0, a_column_stride = 1;
  int64_t b_row_stride = 0, b_column_stride = 1;
  int64_t c_row_stride = 0;  ///< C's columns are contiguous
};

/// Status invalid for negative sizes, missing pointers and rows of C that overlap.
Status check(const ProductArgs& args);

/// What product_cpu needs with that many threads; `args` must have passed check().
int64_t product_workspace_bytes(const ProductArgs& args, int threads);

/// Computes everything; `isa` must be available. Each number of C is the sum of its products in
/// ascending order, 256 of them at a time, and of these sums in ascending order: neither threads
/// nor what else is in the list change a bit; instruction sets differ in the last ones.
Status product_cpu(const ProductArgs& args, Workspace workspace, const Parallel& parallel, Isa isa);

}  // namespace fovea::kernels
