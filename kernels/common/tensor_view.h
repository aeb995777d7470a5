#pragma once

#include <cstdint>

namespace fovea::kernels {

/// Element types that kernels read and write.
enum class DType : uint8_t { f32, f16, bf16 };

constexpr int64_t dtype_bytes(DType dtype) { return dtype == DType::f32 ? 4 : 2; }

/// A matrix whose rows are contiguous.
struct ConstRows {
  const void* data = nullptr;
  DType dtype = DType::f32;
  int64_t stride = 0;  ///< elements from one row to the next
};

struct Rows {
  void* data = nullptr;
  DType dtype = DType::f32;
  int64_t stride = 0;  ///< elements from one row to the next
};

/// A contiguous vector; null data means absent.
struct ConstVector {
  const void* data = nullptr;
  DType dtype = DType::f32;
};

/// fp32 values per channel for each item of the batch: row r uses item r / rows_per_item.
struct ConstChannels {
  const float* data = nullptr;  ///< [batch, dim], channels contiguous; null means absent
  int64_t stride = 0;           ///< elements from one item to the next; 0 when all share one
};

/// The rows that one call computes. Rows never depend on each other, so any split of the work
/// over threads gives the same bits.
struct RowRange {
  int64_t begin = 0;
  int64_t end = 0;
};

/// Where a CUDA launcher runs.
struct CudaTarget {
  int device = 0;
  void* stream = nullptr;  ///< a cudaStream_t
};

}  // namespace fovea::kernels
