#include <algorithm>
#include <limits>

#include "kernels/attention/backward_check.h"
#include "kernels/attention/backward_sm80.cuh"
#include "kernels/attention/launch_backward_sm90.cuh"
#include "kernels/attention/launch_sm80.cuh"

namespace fovea::kernels {
namespace {

using sm80::BackwardShape;
using sm80::Type;

/// One of the two kernels; sm90::prepare_backward, which runs everywhere, comes before it.
template <typename Shape, Type kType>
Status launch_backward(const CudaAttentionBackwardArgs& args, CudaTarget target) {
  const CudaAttentionArgs& f = args.forward;
  const TileLists& lists = Shape::kColumns ? args.columns : f.lists;
  const int64_t own_len = Shape::kColumns ? f.kv_len : f.q_len;
  const int64_t tiles =
      f.lists.tiles != nullptr ? lists.tiles_per_map : (own_len + Shape::kOwn - 1) / Shape::kOwn;
  const int64_t num_tiles = tiles * (Shape::kColumns ? f.kv_heads : f.heads) * f.batch;
  if (num_tiles > std::numeric_limits<int32_t>::max()) {
    return {StatusCode::unsupported, "more than 2^31 tiles"};
  }
  sm80::SharedMemory memory;
  if (const Status status = sm80::shared_memory(target.device, &memory); !status.ok()) {
    return status;
  }
  constexpr int kFixed = sizeof(sm80::BackwardMemory<Shape>);
  constexpr double kLog2e = 1.4426950408889634;
  sm80::BackwardParams params;
  params.args = args;
  params.tiles = static_cast<int>(tiles);
  params.slots = std::min(sm80::ring_slots(memory, Shape::kBlocks, kFixed, Shape::kSlotBytes),
                          sm80::kMostBackwardSlots);
  params.scale = static_cast<float>(f.sm_scale);
  params.scale_log2 = static_cast<float>(f.sm_scale * kLog2e);
  params.bias_scale = static_cast<float>(1 / f.sm_scale);
  if (params.slots == 0) {
    return {StatusCode::unsupported, "takes 99 KB of shared memory a block"};
  }
  const size_t bytes = kFixed + params.slots * Shape::kSlotBytes;
  return launch_kernel(sm80::backward_kernel<Shape, kType>,
                       {static_cast<unsigned>(num_tiles), Shape::kThreads, bytes, target.stream},
                       params);
}

template <bool kColumns, int kDim, Type kType>
Status launch_form(const CudaAttentionBackwardArgs& args, CudaTarget target) {
  const CudaAttentionArgs& f = args.forward;
  int own = kColumns ? args.column_tile.queries : f.tile.queries;
  if (f.lists.tiles == nullptr) own = (kColumns ? f.kv_len : f.q_len) > 64 ? 128 : 64;
  if (own == 128) return launch_backward<BackwardShape<kColumns, kDim, 128>, kType>(args, target);
  if (own == 64) return launch_backward<BackwardShape<kColumns, kDim, 64>, kType>(args, target);
  return {StatusCode::invalid, kColumns ? "columns of another tile" : "lists of another tile"};
}

template <int kDim, Type kType>
Status launch_all(const CudaAttentionBackwardArgs& args, CudaTarget target) {
  Status status = sm90::prepare_backward<kDim, kType>(args, target);
  if (status.ok() && args.grad_q.data != nullptr) {
    status = launch_form<false, kDim, kType>(args, target);
  }
  if (status.ok() && args.grad_k.data != nullptr) {
    status = launch_form<true, kDim, kType>(args, target);
  }
  return status;
}

}  // namespace

int64_t sm80_backward_workspace_bytes(const CudaAttentionBackwardArgs& args) {
  return sm90::backward_stats_bytes(args);
}

Status block_sparse_backward_sm80(const CudaAttentionBackwardArgs& args, CudaTarget target) {
  const CudaAttentionArgs& f = args.forward;
  if (const Status status = check_backward(args); !status.ok()) return status;
  if (f.batch == 0 || f.heads == 0) return {};
  const bool is_bf16 = f.q.dtype == DType::bf16;
  if (f.dim == 64) {
    return is_bf16 ? launch_all<64, Type::bf16>(args, target)
                   : launch_all<64, Type::f16>(args, target);
  }
  return is_bf16 ? launch_all<128, Type::bf16>(args, target)
                 : launch_all<128, Type::f16>(args, target);
}

}  // namespace fovea::kernels
