#pragma once

// What the checks of several kernels of this folder share.

#include <cstdint>

#include "kernels/attention/block_sparse.h"

namespace fovea::kernels {

constexpr Status invalid(const char* message) { return {StatusCode::invalid, message}; }

/// Whether an order of `len` rows leads to rows of its tensor.
Status check_order(const RowOrder& order, int64_t batch, int64_t heads, int64_t len);

}  // namespace fovea::kernels
