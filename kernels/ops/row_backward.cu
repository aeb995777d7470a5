#include "kernels/ops/row_backward.h"

#include "kernels/ops/row_group.cuh"

namespace fovea::kernels {
namespace {

/// The rows of one item that a block goes through, and where its sums go. Grid: parts, items.
struct ItemBlock {
  int64_t first_element;  ///< of the item
  int64_t sum_offset;     ///< in [num_parts, num_items, dim]

  __device__ explicit ItemBlock(const ItemRows& rows)
      : first_element(blockIdx.y * rows.rows_per_item * rows.dim),
        sum_offset((static_cast<int64_t>(blockIdx.x) * rows.num_items + blockIdx.y) * rows.dim) {}
};

template <typename T, int kPacks>
__global__ void __launch_bounds__(kGroupBlock) layer_norm_backward(LayerNormBackwardArgs args) {
  const int64_t dim = args.rows.dim;
  const RowGroup<kPacks> group(dim, blockIdx.x, gridDim.x);
  const ItemBlock item(args.rows);
  const float inverse = 1.0f / static_cast<float>(dim), eps = static_cast<float>(args.eps);
  LaneValues<kPacks> factor, factor_sums = {}, shift_sums = {};
  for_each<kPacks>([&](int p, int j) { factor[p][j] = 1.0f; });
  if (args.factor != nullptr) load_lane(group, args.factor + blockIdx.y * dim, factor);
  for (int64_t row = group.row; group.any_left(row, args.rows.rows_per_item); row += group.step) {
    const bool works = group.works && row < args.rows.rows_per_item;
    const int64_t offset = item.first_element + row * dim;
    LaneValues<kPacks> x = {}, g = {};
    if (works) {
      load_lane(group, static_cast<const T*>(args.x) + offset, x);
      load_lane(group, static_cast<const T*>(args.y_gradient) + offset, g);
    }
    float sum = 0, square = 0;
    for_each<kPacks>([&](int p, int j) { sum += x[p][j]; });
    const float mean = group.sum(sum) * inverse;
    for_each<kPacks>([&](int p, int j) {
      x[p][j] -= mean;
      square += x[p][j] * x[p][j];
    });
    const float deviation = rsqrtf(group.sum(square) * inverse + eps);
    float level = 0,
          along = 0;  // of the normed row's gradient: its mean, and its part along the row
    for_each<kPacks>([&](int p, int j) {
      x[p][j] *= deviation;
      factor_sums[p][j] += g[p][j] * x[p][j];
      shift_sums[p][j] += g[p][j];
      g[p][j] *= factor[p][j];
      level += g[p][j];
      along += g[p][j] * x[p][j];
    });
    level = group.sum(level) * inverse;
    along = group.sum(along) * inverse;
    for_each<kPacks>(
        [&](int p, int j) { g[p][j] = (g[p][j] - level - x[p][j] * along) * deviation; });
    if (works) store_lane(group, static_cast<T*>(args.x_gradient) + offset, g);
  }
  if (args.factor_gradients == nullptr) return;
  write_block_sums(group, dim, factor_sums, args.factor_gradients + item.sum_offset);
  write_block_sums(group, dim, shift_sums, args.shift_gradients + item.sum_offset);
}

template <typename T, int kPacks>
__global__ void __launch_bounds__(kGroupBlock) gate_backward(GateBackwardArgs args) {
  const int64_t dim = args.rows.dim;
  const RowGroup<kPacks> group(dim, blockIdx.x, gridDim.x);
  const ItemBlock item(args.rows);
  LaneValues<kPacks> gate, sums = {};
  load_lane(group, args.gate + blockIdx.y * dim, gate);
  for (int64_t row = group.row; group.works && row < args.rows.rows_per_item; row += group.step) {
    const int64_t offset = item.first_element + row * dim;
    LaneValues<kPacks> y, g;
    load_lane(group, static_cast<const T*>(args.y) + offset, y);
    load_lane(group, static_cast<const T*>(args.out_gradient) + offset, g);
    for_each<kPacks>([&](int p, int j) {
      sums[p][j] += g[p][j] * y[p][j];
      g[p][j] *= gate[p][j];
    });
    store_lane(group, static_cast<T*>(args.y_gradient) + offset, g);
  }
  write_block_sums(group, dim, sums, args.gate_gradients + item.sum_offset);
}

/// Turns pairs back by the angles of a row's position.
template <int kPacks>
__device__ inline void rotate_back(const RowGroup<kPacks>& group, const RotaryTables& rope,
                                   int64_t row, LaneValues<kPacks>& g) {
  const int half = static_cast<int>(rope.head_dim) / 2;
  const int64_t position = row % rope.seq_len * half;
#pragma unroll
  for (int p = 0; p < kPacks; ++p) {
    const int64_t angle = position + group.channel(p) % rope.head_dim / 2;
    float r_cos[kGroupPack / 2], r_sin[kGroupPack / 2];
    load<true>(rope.cos + angle, r_cos);
    load<true>(rope.sin + angle, r_sin);
#pragma unroll
    for (int j = 0; j < kGroupPack; j += 2) {
      const float g1 = g[p][j], g2 = g[p][j + 1], c = r_cos[j / 2], s = r_sin[j / 2];
      g[p][j] = g1 * c + g2 * s;
      g[p][j + 1] = g2 * c - g1 * s;
    }
  }
}

template <typename T, int kPacks>
__global__ void __launch_bounds__(kGroupBlock) rms_norm_backward(RmsNormBackwardArgs args) {
  const int64_t dim = args.rows.dim;
  const RowGroup<kPacks> group(dim, blockIdx.x, gridDim.x);
  const float inverse = 1.0f / static_cast<float>(dim), eps = static_cast<float>(args.eps);
  LaneValues<kPacks> weight, sums = {};
  load_lane(group, args.weight, weight);
  for (int64_t row = group.row; group.any_left(row, args.rows.rows_per_item); row += group.step) {
    const bool works = group.works && row < args.rows.rows_per_item;
    LaneValues<kPacks> x = {}, g = {};
    if (works) {
      load_lane(group, static_cast<const T*>(args.x) + row * dim, x);
      load_lane(group, static_cast<const T*>(args.y_gradient) + row * dim, g);
      if (args.rope.cos != nullptr) rotate_back(group, args.rope, row, g);
    }
    float square = 0, along = 0;
    for_each<kPacks>([&](int p, int j) { square += x[p][j] * x[p][j]; });
    const float scale = rsqrtf(group.sum(square) * inverse + eps);
    for_each<kPacks>([&](int p, int j) {
      x[p][j] *= scale;
      sums[p][j] += g[p][j] * x[p][j];
      g[p][j] *= weight[p][j];
      along += g[p][j] * x[p][j];
    });
    along = group.sum(along) * inverse;
    for_each<kPacks>([&](int p, int j) { g[p][j] = (g[p][j] - x[p][j] * along) * scale; });
    if (works) store_lane(group, static_cast<T*>(args.x_gradient) + row * dim, g);
  }
  write_block_sums(group, dim, sums, args.weight_gradients + blockIdx.x * dim);
}

dim3 grid_of(const ItemRows& rows) {
  return {static_cast<unsigned>(rows.num_parts), static_cast<unsigned>(rows.num_items)};
}

}  // namespace

Status check(const ItemRows& rows) {
  if (rows.dtype == DType::f32) return {StatusCode::unsupported, "fp32"};
  if (packs_of_lane(rows.dim) == 0) return {StatusCode::unsupported, "channels"};
  if (rows.num_items < 1 || rows.num_items > 65535 || rows.num_parts < 1) {
    return {StatusCode::invalid, "number of items or parts"};
  }
  return {};
}

Status layer_norm_backward_cuda(const LayerNormBackwardArgs& args, CudaTarget target) {
  const ItemRows& rows = args.rows;
  return launch_rows(rows, rows.rows_per_item, rows.dim, target, [&](cudaStream_t stream) {
    with_row_group(rows.dtype, rows.dim, [&](auto type, auto packs) {
      layer_norm_backward<decltype(type), packs()><<<grid_of(rows), kGroupBlock, 0, stream>>>(args);
    });
  });
}

Status gate_residual_backward_cuda(const GateBackwardArgs& args, CudaTarget target) {
  const ItemRows& rows = args.rows;
  return launch_rows(rows, rows.rows_per_item, rows.dim, target, [&](cudaStream_t stream) {
    with_row_group(rows.dtype, rows.dim, [&](auto type, auto packs) {
      gate_backward<decltype(type), packs()><<<grid_of(rows), kGroupBlock, 0, stream>>>(args);
    });
  });
}

Status rms_norm_backward_cuda(const RmsNormBackwardArgs& args, CudaTarget target) {
  const ItemRows& rows = args.rows;
  if (args.rope.cos != nullptr && args.rope.head_dim % kGroupPack != 0) {
    return {StatusCode::unsupported, "head_dim"};
  }
  return launch_rows(rows, rows.rows_per_item, rows.dim, target, [&](cudaStream_t stream) {
    with_row_group(rows.dtype, rows.dim, [&](auto type, auto packs) {
      rms_norm_backward<decltype(type), packs()><<<grid_of(rows), kGroupBlock, 0, stream>>>(args);
    });
  });
}

}  // namespace fovea::kernels
