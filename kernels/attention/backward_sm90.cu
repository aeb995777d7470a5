#include <type_traits>

#include "kernels/attention/backward_check.h"
#include "kernels/attention/launch_backward_joint_sm90.cuh"

namespace fovea::kernels {
namespace {

using namespace sm90;

// Rows or columns, channels, computing warpgroups, other rows of a step, stages, spans of a step
// (of lists), whether the wait for dP is held back.
template <int kDim>
using DenseRows = std::conditional_t<kDim == 64, BackwardShape<false, 64, 2, 128, 4, 0, true>,
                                     BackwardShape<false, 128, 3, 64, 3>>;
template <int kDim>
using DenseColumns = std::conditional_t<kDim == 64, BackwardShape<true, 64, 2, 96, 4>,
                                        BackwardShape<true, 128, 2, 64, 4>>;
// Other rows of a step, stages, whether S is ahead, steps that tiles are apart, spans of a step,
// places for dQ.
using DenseJoint = JointShape<128, 80, 2, false>;
using ListedJoint = JointShape<128, 64, 2, true, 4, 1, 2>;
template <int kDim>
using Rows128x128 = BackwardShape<false, kDim, 2, 128, kDim == 64 ? 4 : 2, 1, true>;
template <int kDim>
using Rows128x64 = BackwardShape<false, kDim, 2, 128, kDim == 64 ? 4 : 2, 2, true>;
template <int kDim>
using Rows64x64 = BackwardShape<false, kDim, 1, 64, kDim == 64 ? 5 : 2, 1, true>;
template <int kDim>
using Columns128x64 = BackwardShape<true, kDim, 2, 64, kDim == 64 ? 6 : 4, 1>;
template <int kDim>
using Columns64x64 = BackwardShape<true, kDim, 1, 64, kDim == 64 ? 5 : 2, 1>;

template <int kDim, Type kType>
Status launch_rows(const CudaAttentionBackwardArgs& args, CudaTarget target) {
  const AttentionTile tile = args.forward.tile;
  if (args.forward.lists.tiles == nullptr) {
    return launch_backward<DenseRows<kDim>, kType>(args, target);
  }
  if (tile == AttentionTile{128, 128}) {
    return launch_backward<Rows128x128<kDim>, kType>(args, target);
  }
  if (tile == AttentionTile{128, 64}) {
    return launch_backward<Rows128x64<kDim>, kType>(args, target);
  }
  if (tile == AttentionTile{64, 64}) return launch_backward<Rows64x64<kDim>, kType>(args, target);
  return {StatusCode::invalid, "lists of another tile"};
}

template <int kDim, Type kType>
Status launch_columns(const CudaAttentionBackwardArgs& args, CudaTarget target) {
  const AttentionTile tile = args.column_tile;
  if (args.forward.lists.tiles == nullptr) {
    return launch_backward<DenseColumns<kDim>, kType>(args, target);
  }
  if (tile == AttentionTile{128, 64}) {
    return launch_backward<Columns128x64<kDim>, kType>(args, target);
  }
  if (tile == AttentionTile{64, 64}) {
    return launch_backward<Columns64x64<kDim>, kType>(args, target);
  }
  return {StatusCode::invalid, "columns of another tile"};
}

/// Whether one kernel makes all gradients; two do otherwise.
bool is_joint(const CudaAttentionBackwardArgs& args) {
  const CudaAttentionArgs& f = args.forward;
  const bool wants_all = args.grad_q.data != nullptr && args.grad_k.data != nullptr;
  if (!wants_all || f.dim != DenseJoint::kDim) return false;
  if (f.lists.tiles == nullptr) return true;
  return args.columns_on_grid && args.columns.tiles != nullptr &&
         args.column_tile == AttentionTile{ListedJoint::kOwn, ListedJoint::kSpan} &&
         args.columns.tiles_per_map <= BackwardSchedule::kMostAdds && f.more.k.data == nullptr &&
         f.key_bias.data == nullptr;
}

template <int kDim, Type kType>
Status launch_all(const CudaAttentionBackwardArgs& args, CudaTarget target) {
  if constexpr (kDim == DenseJoint::kDim) {
    if (is_joint(args)) {
      const Status status = args.forward.lists.tiles == nullptr
                                ? launch_joint<DenseJoint, kType>(args, target)
                                : launch_joint<ListedJoint, kType>(args, target);
      if (status.code != StatusCode::unsupported) return status;  // or it is too large for that
    }
  }
  Status status = prepare_backward<kDim, kType>(args, target);
  if (status.ok() && args.grad_q.data != nullptr) status = launch_rows<kDim, kType>(args, target);
  if (status.ok() && args.grad_k.data != nullptr) {
    status = launch_columns<kDim, kType>(args, target);
  }
  return status;
}

}  // namespace

AttentionTile sm90_column_tile(int64_t /*block_q*/, int64_t block_kv) {
  return {block_kv % 128 == 0 ? 128 : 64, 64};
}

int64_t sm90_backward_workspace_bytes(const CudaAttentionBackwardArgs& args) {
  if (!is_joint(args)) return backward_stats_bytes(args);
  const bool listed = args.forward.lists.tiles != nullptr;
  return JointLayout(args, listed ? ListedJoint::kOthers : DenseJoint::kOthers).bytes;
}

Status block_sparse_backward_sm90(const CudaAttentionBackwardArgs& args, CudaTarget target) {
  const CudaAttentionArgs& f = args.forward;
  if (const Status status = check_backward(args); !status.ok()) return status;
  if (f.batch == 0 || f.heads == 0) return {};
  const auto launch =
      f.dim == 64
          ? (f.q.dtype == DType::bf16 ? launch_all<64, Type::bf16> : launch_all<64, Type::f16>)
          : (f.q.dtype == DType::bf16 ? launch_all<128, Type::bf16> : launch_all<128, Type::f16>);
  return launch(args, target);
}

}  // namespace fovea::kernels
