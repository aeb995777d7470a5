#pragma once

#include "kernels/attention/backward_joint_sm90.cuh"
#include "kernels/attention/launch_backward_sm90.cuh"

// How shapes of the joint backward kernel are started.

namespace fovea::kernels::sm90 {

/// What lies in the workspace, from its begin on: numbers of the queries, dQ in fp32, counters.
struct JointLayout {
  int64_t steps;             ///< of a head of queries
  int64_t dq_at, counts_at;  ///< in floats
  int64_t bytes;

  JointLayout(const CudaAttentionArgs& args, int64_t step) : steps((args.q_len + step - 1) / step) {
    const int64_t all = args.batch * args.heads * steps;
    dq_at = all * 2 * step, counts_at = dq_at + all * step * args.dim;
    bytes = (counts_at + all) * static_cast<int64_t>(sizeof(float));
  }
};

template <typename Shape, Type kType>
Status round_queries(const CudaAttentionBackwardArgs& args, const JointLayout& layout,
                     CudaTarget target) {
  const CudaAttentionArgs& f = args.forward;
  RoundParams params;
  params.heads = static_cast<int>(f.heads), params.q_len = static_cast<int>(f.q_len);
  params.steps = static_cast<int>(layout.steps);
  params.from = args.workspace + layout.dq_at;
  params.to = args.grad_q;
  params.scale = static_cast<float>(f.sm_scale);
  const auto blocks = static_cast<unsigned>(f.batch * f.heads * layout.steps);
  return launch_kernel(round_queries_kernel<Shape::kDim, Shape::kOthers, kType>,
                       {blocks, 256, 0, target.stream}, params);
}

/// All gradients of dense attention, in three kernels.
template <typename Shape, Type kType>
Status launch_joint(const CudaAttentionBackwardArgs& args, CudaTarget target) {
  const CudaAttentionArgs& f = args.forward;
  const JointLayout layout(f, Shape::kOthers);
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  const int64_t tiles = (f.kv_len + Shape::kOwn - 1) / Shape::kOwn;
  const int64_t num_tiles = tiles * f.kv_heads * f.batch;
  if (num_tiles > kMost || f.batch * f.heads * layout.steps > kMost) {
    return {StatusCode::unsupported, "more than 2^31 tiles"};
  }
  JointParams joint;
  joint.steps = static_cast<int>(layout.steps * (f.heads / f.kv_heads));
  joint.dq = args.workspace + layout.dq_at;
  joint.counts = reinterpret_cast<int32_t*>(args.workspace + layout.counts_at);
  Status status = prepare_backward<Shape::kDim, kType>(args, target, Shape::kOthers, joint.counts);
  BackwardMaps maps{};
  if (status.ok()) status = backward_maps<Shape>(args, &maps);
  BackwardParams params = backward_params<Shape>(args);
  params.tiles = static_cast<int>(tiles), params.num_tiles = static_cast<int>(num_tiles);
  // The struct begins at a multiple of 1024, as far as the kernel sees to it.
  constexpr int kBytes = sizeof(JointMemory<Shape>) + 1024;
  static_assert(kBytes <= 227 * 1024);
  unsigned blocks = 0;
  if (status.ok()) status = resident_blocks(target.device, Shape::kBlocks, num_tiles, &blocks);
  if (status.ok()) {
    status =
        launch_kernel(joint_backward_kernel<Shape, kType>,
                      {blocks, Shape::kThreads, kBytes, target.stream, true}, maps, params, joint);
  }
  return status.ok() ? round_queries<Shape, kType>(args, layout, target) : status;
}

}  // namespace fovea::kernels::sm90
