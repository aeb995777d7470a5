#pragma once

#include <limits>

#include "kernels/attention/launch_bytes_sm90.h"
#include "kernels/attention/launch_sm90.cuh"

namespace fovea::kernels::sm90 {

/// Bytes [batch, heads, rows, columns], contiguous, in boxes of 128 columns.
inline Status map_of_bytes(const void* data, std::array<int64_t, 4> shape, int64_t box_rows,
                           CUtensorMap* out) {
  const auto [batch, heads, rows, columns] = shape;
  const auto size = [](int64_t count) { return static_cast<uint64_t>(count); };
  TensorMapSpec spec;
  spec.data = data;
  spec.type = CU_TENSOR_MAP_DATA_TYPE_UINT8;
  spec.size = {size(columns), size(rows), 1, size(heads), size(batch)};
  spec.stride = {size(columns), 16, size(rows * columns), size(heads * rows * columns)};
  spec.box = {128, static_cast<uint32_t>(box_rows), 1, 1, 1};
  return make_tensor_map(spec, out);
}

template <typename Shape>
Status maps_of_bytes(const CudaAttentionArgs& args, const EightBitOperands& operands,
                     ForwardMaps<1>* maps) {
  const HeadRows result{args.out.data, args.out.dtype, args.out.batch_stride, args.out.head_stride,
                        args.out.row_stride};
  const int64_t places = byte_places(args.kv_len);
  for (const Status status :
       {map_of_bytes(operands.q, {args.batch, args.heads, args.q_len, args.dim}, Shape::kQueries,
                     &maps->q),
        map_of_bytes(operands.k, {args.batch, args.kv_heads, args.kv_len, args.dim}, Shape::kSpan,
                     maps->k),
        map_of_bytes(operands.v, {args.batch, args.kv_heads, args.dim, places}, args.dim, maps->v),
        map_of(result, {args.batch, args.heads, args.q_len, args.dim}, {64, 1}, &maps->out)}) {
    if (!status.ok()) return status;
  }
  maps->k[1] = maps->k[0], maps->v[1] = maps->v[0];
  return {};
}

template <typename Shape>
Status launch_bytes(const CudaAttentionArgs& args, const EightBitOperands& operands,
                    CudaTarget target) {
  ForwardMaps<1> maps;
  if (const Status status = maps_of_bytes<Shape>(args, operands, &maps); !status.ok()) {
    return status;
  }
  const int64_t tiles = tiles_of<Shape>(args);
  if (tiles * args.heads * args.batch > std::numeric_limits<int32_t>::max()) return kTooManyTiles;
  ForwardParams params = params_of(args, tiles);
  params.scales = {operands.q_scale, operands.k_scale, operands.v_scale, operands.lse_more,
                   static_cast<int>(byte_places(args.kv_len))};
  return args.out.dtype == DType::bf16 ? start<Shape, Type::bf16>(maps, params, target)
                                       : start<Shape, Type::f16>(maps, params, target);
}

template <Type kLogits, bool kByKey>
Status launch_listed(const CudaAttentionArgs& args, const EightBitOperands& operands,
                     CudaTarget target) {
  return args.lists.tiles == nullptr
             ? launch_bytes<BytesShape<128, kLogits, false, kByKey>>(args, operands, target)
             : launch_bytes<BytesShape<128, kLogits, true, kByKey>>(args, operands, target);
}

template <Type kLogits>
Status launch_format(const CudaAttentionArgs& args, const EightBitOperands& operands,
                     CudaTarget target) {
  return operands.scale_by_key ? launch_listed<kLogits, true>(args, operands, target)
                               : launch_listed<kLogits, false>(args, operands, target);
}

}  // namespace fovea::kernels::sm90
