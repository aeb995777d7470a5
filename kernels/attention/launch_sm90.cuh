#pragma once

#include <array>
#include <limits>

#include "kernels/attention/forward_sm90.cuh"
#include "kernels/common/launch.cuh"
#include "kernels/common/tma.h"

// How a shape of the forward kernel is started; for one source a shape or a few of them.

namespace fovea::kernels::sm90 {

constexpr Status kTooManyTiles = {StatusCode::unsupported, "more than 2^31 tiles of queries"};

/// What one copy brings of a head: rows, and panels of 64 columns.
struct Box {
  int rows, panels;
};

/// A tensor [batch, heads, rows, dim] as (64, rows, dim / 64, heads, batch).
inline Status map_of(const HeadRows& x, std::array<int64_t, 4> shape, Box box, CUtensorMap* out) {
  const auto [batch, heads, rows, dim] = shape;
  TensorMapSpec spec;
  spec.data = x.data;
  spec.type =
      x.dtype == DType::bf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  const auto size = [](int64_t count) { return static_cast<uint64_t>(count); };
  // What there is one of may have any stride; the driver wants some.
  const auto stride = [](int64_t elements, int64_t count) {
    return count == 1 ? uint64_t{16} : static_cast<uint64_t>(elements) * 2;
  };
  spec.size = {64, size(rows), size(dim / 64), size(heads), size(batch)};
  spec.stride = {stride(x.row_stride, rows), 128, stride(x.head_stride, heads),
                 stride(x.batch_stride, batch)};
  spec.box = {64, static_cast<uint32_t>(box.rows), static_cast<uint32_t>(box.panels), 1, 1};
  return make_tensor_map(spec, out);
}

template <typename Shape>
Status maps_for(const CudaAttentionArgs& args, ForwardMaps<Shape::kHeights>* maps) {
  const HeadRows result{args.out.data, args.out.dtype, args.out.batch_stride, args.out.head_stride,
                        args.out.row_stride};
  const std::array<int64_t, 4> of_q = {args.batch, args.heads, args.q_len, args.dim};
  const std::array<int64_t, 4> of_k = {args.batch, args.kv_heads, args.kv_len, args.dim};
  const bool has_more = args.more.k.data != nullptr;
  const std::array<int64_t, 4> of_more = {args.batch, args.kv_heads, args.more.len, args.dim};
  for (const Status status : {map_of(args.q, of_q, {Shape::kQueries, Shape::kPanels}, &maps->q),
                              map_of(result, of_q, {64, 1}, &maps->out)}) {
    if (!status.ok()) return status;
  }
  for (int i = 0; i < Shape::kHeights; ++i) {
    Box of_keys = {Shape::kSpan, Shape::kPieces == 1 ? Shape::kPanels : 1};
    Box of_values = {Shape::kSpan, Shape::kPanels};
    if constexpr (Shape::kPacked) {
      const int above = i + 1 - Shape::kExact;
      of_keys = of_values = {above <= 0 ? i + 1 : Shape::kExact << above, 1};
    }
    for (const Status status : {map_of(args.k, of_k, of_keys, &maps->k[i]),
                                map_of(args.v, of_k, of_values, &maps->v[i])}) {
      if (!status.ok()) return status;
    }
    maps->k[Shape::kHeights + i] = maps->k[i], maps->v[Shape::kHeights + i] = maps->v[i];
    if (!has_more) continue;
    for (const Status status :
         {map_of(args.more.k, of_more, of_keys, &maps->k[Shape::kHeights + i]),
          map_of(args.more.v, of_more, of_values, &maps->v[Shape::kHeights + i])}) {
      if (!status.ok()) return status;
    }
  }
  return {};
}

/// `tiles` of a head.
inline ForwardParams params_of(const CudaAttentionArgs& args, int64_t tiles) {
  constexpr double kLog2e = 1.4426950408889634;
  ForwardParams params;
  params.heads = static_cast<int>(args.heads);
  params.heads_per_kv = static_cast<int>(args.heads / args.kv_heads);
  params.q_len = static_cast<int>(args.q_len);
  params.kv_len = static_cast<int>(args.kv_len);
  params.tiles = static_cast<int>(tiles);
  params.num_tiles = static_cast<int>(tiles * args.heads * args.batch);
  params.next_tile = args.next_tile;
  params.lists = args.lists;
  params.more_begin =
      args.more.k.data != nullptr ? args.more.begin : std::numeric_limits<int32_t>::max();
  params.key_bias = args.key_bias;
  params.out_order = args.out_order;
  params.out = args.out;
  params.lse = args.lse;
  params.scale_log2 = static_cast<float>(args.sm_scale * kLog2e);
  params.inverse_scale = static_cast<float>(1 / args.sm_scale);
  return params;
}

/// Tiles of queries of a head.
template <typename Shape>
int64_t tiles_of(const CudaAttentionArgs& args) {
  return Shape::kListed ? args.lists.tiles_per_map
                        : (args.q_len + Shape::kQueries - 1) / Shape::kQueries;
}

template <typename Shape, Type kType>
Status start(const ForwardMaps<Shape::kHeights>& maps, const ForwardParams& params,
             CudaTarget target) {
  constexpr int kBytes = sizeof(ForwardMemory<Shape>);
  // A multiprocessor has 228 KiB, of which each block takes one more.
  static_assert(Shape::kBlocks * (kBytes + 1024) <= 228 * 1024, "fewer blocks would run at a time");
  unsigned blocks = 0;
  const Status status = resident_blocks(target.device, Shape::kBlocks, params.num_tiles, &blocks);
  if (!status.ok()) return status;
  return launch_kernel(forward_kernel<Shape, kType>,
                       {blocks, Shape::kThreads, kBytes, target.stream}, maps, params);
}

template <typename Shape, Type kType>
Status launch(const CudaAttentionArgs& args, CudaTarget target) {
  ForwardMaps<Shape::kHeights> maps;
  if (const Status status = maps_for<Shape>(args, &maps); !status.ok()) return status;
  const int64_t tiles = tiles_of<Shape>(args);
  if (tiles * args.heads * args.batch > std::numeric_limits<int32_t>::max()) return kTooManyTiles;
  return start<Shape, kType>(maps, params_of(args, tiles), target);
}

}  // namespace fovea::kernels::sm90
