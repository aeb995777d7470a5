#pragma once

#include "kernels/common/tensor_view.h"

namespace fovea::kernels {

/// Whether processor and operating system have AMX, Intel's matrix tiles, for products of this
/// type. Nothing here uses them; LibTorch does.
bool has_amx(DType dtype);

}  // namespace fovea::kernels
