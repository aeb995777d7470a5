#pragma once

#include <algorithm>
#include <array>
#include <limits>

#include "kernels/attention/backward_prepare_sm90.cuh"
#include "kernels/attention/backward_sm90.cuh"
#include "kernels/attention/block_sparse_backward_cuda.h"
#include "kernels/attention/launch_sm90.cuh"

// How shapes of the backward kernel are started, and what makes its numbers of each query.

namespace fovea::kernels::sm90 {

inline HeadRows readable(const MutableHeadRows& x) {
  return {x.data, x.dtype, x.batch_stride, x.head_stride, x.row_stride};
}

/// The four numbers of each query, [batch, heads, queries, 4], as (4, queries, heads, batch).
inline Status map_of_stats(const CudaAttentionBackwardArgs& args, int rows, CUtensorMap* out) {
  const auto queries = static_cast<uint64_t>(args.forward.q_len);
  const auto heads = static_cast<uint64_t>(args.forward.heads);
  TensorMapSpec spec;
  spec.data = args.workspace;
  spec.type = CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
  spec.size = {4, queries, heads, static_cast<uint64_t>(args.forward.batch), 1};
  spec.stride = {16, 16 * queries, 16 * queries * heads, 16};
  spec.box = {4, static_cast<uint32_t>(rows), 1, 1, 1};
  spec.swizzle = Swizzle::none;
  return make_tensor_map(spec, out);
}

/// A tensor and the map that it gets.
struct Mapped {
  const HeadRows& x;
  std::array<int64_t, 4> shape;
  Box box;
  CUtensorMap* out;
};

template <typename Shape>
Status backward_maps(const CudaAttentionBackwardArgs& args, BackwardMaps* out) {
  const CudaAttentionArgs& f = args.forward;
  const std::array<int64_t, 4> of_q = {f.batch, f.heads, f.q_len, f.dim};
  const std::array<int64_t, 4> of_k = {f.batch, f.kv_heads, f.kv_len, f.dim};
  const std::array<int64_t, 4> of_more = {f.batch, f.kv_heads, f.more.len, f.dim};
  constexpr Box kOwn = {Shape::kOwn, Shape::kPanels}, kResult = {64, 1};
  constexpr Box kOthers = {Shape::kSpan, Shape::kPieces == 1 ? Shape::kPanels : 1};
  const HeadRows dq = readable(args.grad_q), dk = readable(args.grad_k), dv = readable(args.grad_v);
  const HeadRows more_dk = readable(args.grad_more_k), more_dv = readable(args.grad_more_v);
  const Mapped rows[] = {{f.q, of_q, kOwn, &out->x},
                         {args.grad_out, of_q, kOwn, &out->y},
                         {f.k, of_k, kOthers, &out->u},
                         {f.v, of_k, kOthers, &out->w},
                         {dq, of_q, kResult, &out->dx},
                         {f.more.k, of_more, kOthers, &out->more_u},
                         {f.more.v, of_more, kOthers, &out->more_w}};
  const Mapped columns[] = {{f.q, of_q, kOthers, &out->u},
                            {args.grad_out, of_q, kOthers, &out->w},
                            {f.k, of_k, kOwn, &out->x},
                            {f.v, of_k, kOwn, &out->y},
                            {dk, of_k, kResult, &out->dx},
                            {dv, of_k, kResult, &out->dy},
                            {f.more.k, of_more, kOwn, &out->more_x},
                            {f.more.v, of_more, kOwn, &out->more_y},
                            {more_dk, of_more, kResult, &out->more_dx},
                            {more_dv, of_more, kResult, &out->more_dy}};
  const Mapped* const begin = Shape::kColumns ? columns : rows;
  const Mapped* const end = Shape::kColumns ? std::end(columns) : std::end(rows);
  for (const Mapped* i = begin; i != end; ++i) {
    if (i->shape == of_more && f.more.k.data == nullptr) continue;
    if (const Status status = map_of(i->x, i->shape, i->box, i->out); !status.ok()) return status;
  }
  const bool has_map = Shape::kColumns && !Shape::kJoint;
  return has_map ? map_of_stats(args, Shape::kSpan, &out->stats) : Status{};
}

/// Without the number of tiles.
template <typename Shape>
BackwardParams backward_params(const CudaAttentionBackwardArgs& args) {
  const CudaAttentionArgs& f = args.forward;
  constexpr double kLog2e = 1.4426950408889634;
  BackwardParams params;
  params.heads = static_cast<int>(Shape::kColumns ? f.kv_heads : f.heads);
  params.heads_per_kv = static_cast<int>(f.heads / f.kv_heads);
  params.own_len = static_cast<int>(Shape::kColumns ? f.kv_len : f.q_len);
  params.other_len = static_cast<int>(Shape::kColumns ? f.q_len : f.kv_len);
  const bool has_more = f.more.k.data != nullptr;
  params.more_begin = has_more ? f.more.begin : std::numeric_limits<int32_t>::max();
  params.more_len = f.more.len;
  params.lists = Shape::kColumns ? args.columns : f.lists;
  params.key_bias = f.key_bias;
  params.dx = Shape::kColumns ? args.grad_k : args.grad_q;
  params.dy = args.grad_v;
  params.more_dx = args.grad_more_k, params.more_dy = args.grad_more_v;
  params.stats = args.workspace;
  params.scale = static_cast<float>(f.sm_scale);
  params.scale_log2 = static_cast<float>(f.sm_scale * kLog2e);
  params.per_scale_log2 = static_cast<float>(1 / (f.sm_scale * kLog2e));
  params.inverse_scale = static_cast<float>(1 / f.sm_scale);
  return params;
}

/// One of the two kernels; `prepare_backward` comes before it.
template <typename Shape, Type kType>
Status launch_backward(const CudaAttentionBackwardArgs& args, CudaTarget target) {
  BackwardMaps maps{};
  if (const Status status = backward_maps<Shape>(args, &maps); !status.ok()) return status;
  BackwardParams params = backward_params<Shape>(args);
  const int64_t tiles = Shape::kListed ? params.lists.tiles_per_map
                                       : (params.own_len + Shape::kOwn - 1) / Shape::kOwn;
  const int64_t num_tiles = tiles * params.heads * args.forward.batch;
  if (num_tiles > std::numeric_limits<int32_t>::max()) {
    return {StatusCode::unsupported, "more than 2^31 tiles"};
  }
  params.tiles = static_cast<int>(tiles), params.num_tiles = static_cast<int>(num_tiles);
  // The struct begins at a multiple of 1024, as far as the kernel sees to it.
  constexpr int kBytes = sizeof(BackwardMemory<Shape>) + 1024;
  static_assert(kBytes <= 227 * 1024 / Shape::kBlocks - (Shape::kBlocks - 1) * 1024);
  unsigned blocks = 0;
  const Status status = resident_blocks(target.device, Shape::kBlocks, num_tiles, &blocks);
  if (!status.ok()) return status;
  return launch_kernel(backward_kernel<Shape, kType>,
                       {blocks, Shape::kThreads, kBytes, target.stream}, maps, params);
}

/// Of the numbers of each query.
inline int64_t backward_stats_bytes(const CudaAttentionBackwardArgs& args) {
  const CudaAttentionArgs& f = args.forward;
  return f.batch * f.heads * f.q_len * static_cast<int64_t>(sizeof(float4));
}

/// Writes the numbers of each query into the workspace; for the joint form those of steps of so
/// many queries, and zeros to their counters.
template <int kDim, Type kType>
Status prepare_backward(const CudaAttentionBackwardArgs& args, CudaTarget target, int step = 0,
                        int32_t* counts = nullptr) {
  const CudaAttentionArgs& f = args.forward;
  PrepareParams params;
  const int64_t rows = step == 0 ? f.q_len : (f.q_len + step - 1) / step * step;
  params.rows = f.batch * f.heads * rows, params.rows_of_head = static_cast<int>(rows);
  params.step = step, params.counts = counts;
  params.heads = static_cast<int>(f.heads), params.q_len = static_cast<int>(f.q_len);
  params.out = readable(f.out), params.grad_out = args.grad_out;
  params.lse = f.lse, params.grad_lse = args.grad_lse;
  params.stats = args.workspace;
  constexpr int kRows = 256 / (kDim / 8);  // of a block
  const int64_t blocks = (params.rows + kRows - 1) / kRows;
  if (blocks > std::numeric_limits<int32_t>::max()) {
    return {StatusCode::unsupported, "more than 2^35 rows"};
  }
  return launch_kernel(prepare_backward_kernel<kDim, kType>,
                       {static_cast<unsigned>(blocks), 256, 0, target.stream}, params);
}

}  // namespace fovea::kernels::sm90
