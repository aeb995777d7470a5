#pragma once

// Kernels in which neighbouring lanes of a warp share a row, and a warp has several rows: for rows
// that are too short for a block each, and for sums over many rows in registers.

#include <type_traits>

#include "kernels/ops/row.cuh"

namespace fovea::kernels {

constexpr int kGroupPack = 8;  // channels that a lane reads at once: 16 bytes of a half type
constexpr int kGroupBlock = 256;
constexpr int kMaxGroupPacks = 4;
constexpr int kMaxGroupDim = kMaxGroupPacks * kWarp * kGroupPack;
constexpr unsigned kFullWarp = 0xFFFFFFFFu;

/// Packs that each lane of a row of `dim` channels holds; 0 when no number fits.
inline int packs_of_lane(int64_t dim) {
  for (int packs = 1; packs <= kMaxGroupPacks; ++packs) {
    if (dim > 0 && dim % (kGroupPack * packs) == 0 && dim / (kGroupPack * packs) <= kWarp) {
      return packs;
    }
  }
  return 0;
}

/// Rows that a block has in hand at a time.
inline int64_t rows_of_block(int64_t dim, int packs) {
  return kGroupBlock / kWarp * (kWarp / (dim / (kGroupPack * packs)));
}

/// Where a thread works: the block's warps go through the rows, `blocks` blocks side by side; the
/// lanes of a warp that make no whole row idle.
template <int kPacks>
struct RowGroup {
  int group, lane;  ///< lanes of a row, and which of them this is
  bool works;
  int64_t row, step;  ///< first row, and how far the next one is

  __device__ RowGroup(int64_t dim, int block, int blocks) {
    group = static_cast<int>(dim) / (kGroupPack * kPacks);
    const int warp_lane = threadIdx.x % kWarp, rows = kWarp / group;
    lane = warp_lane % group;
    works = warp_lane < rows * group;
    const int64_t warps = kGroupBlock / kWarp;
    row = (block * warps + threadIdx.x / kWarp) * rows + warp_lane / group;
    step = blocks * warps * rows;
  }
  __device__ int channel(int pack) const { return (pack * group + lane) * kGroupPack; }
  /// Whether any row of the warp is left: its lanes go round together, since they exchange sums.
  __device__ bool any_left(int64_t row_index, int64_t num_rows) const {
    return __any_sync(kFullWarp, works && row_index < num_rows);
  }
  /// Sum over the lanes of a row; every lane of the warp calls it.
  __device__ float sum(float value) const {
    const int first = threadIdx.x % kWarp - lane;
    float total = 0;
    for (int i = 0; i < group; ++i) {
      total += __shfl_sync(kFullWarp, value, min(first + i, kWarp - 1));
    }
    return total;
  }
};

template <int kPacks>
using LaneValues = float[kPacks][kGroupPack];

/// f(pack, j) for every channel that a lane holds.
template <int kPacks, typename F>
__device__ inline void for_each(F f) {
#pragma unroll
  for (int p = 0; p < kPacks; ++p) {
#pragma unroll
    for (int j = 0; j < kGroupPack; ++j) f(p, j);
  }
}

template <typename T, int kPacks>
__device__ inline void load_lane(const RowGroup<kPacks>& group, const T* row,
                                 LaneValues<kPacks>& out) {
#pragma unroll
  for (int p = 0; p < kPacks; ++p) load<true>(row + group.channel(p), out[p]);
}

template <typename T, int kPacks>
__device__ inline void store_lane(const RowGroup<kPacks>& group, T* row,
                                  const LaneValues<kPacks>& values) {
#pragma unroll
  for (int p = 0; p < kPacks; ++p) store<true>(row + group.channel(p), values[p]);
}

/// Adds up what the block's threads have summed per channel and writes it to `out` [dim]. Every
/// thread of the block calls it.
template <int kPacks>
__device__ inline void write_block_sums(const RowGroup<kPacks>& group, int64_t dim,
                                        const LaneValues<kPacks>& sums, float* out) {
  __shared__ float s_sums[kMaxGroupDim];
  __syncthreads();
  for (int i = threadIdx.x; i < dim; i += kGroupBlock) s_sums[i] = 0;
  __syncthreads();
  if (group.works) {
    for_each<kPacks>([&](int p, int j) { atomicAdd(&s_sums[group.channel(p) + j], sums[p][j]); });
  }
  __syncthreads();
  for (int i = threadIdx.x; i < dim; i += kGroupBlock) out[i] = s_sums[i];
}

/// Calls f(T{}, packs) with the element type and std::integral_constant of a lane's packs.
template <typename F>
void with_row_group(DType dtype, int64_t dim, F f) {
  const auto with_packs = [&](auto type) {
    switch (packs_of_lane(dim)) {
      case 1:
        return f(type, std::integral_constant<int, 1>());
      case 2:
        return f(type, std::integral_constant<int, 2>());
      case 3:
        return f(type, std::integral_constant<int, 3>());
      default:
        return f(type, std::integral_constant<int, 4>());
    }
  };
  dtype == DType::bf16 ? with_packs(__nv_bfloat16()) : with_packs(__half());
}

}  // namespace fovea::kernels
