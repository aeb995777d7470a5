#pragma once

#include <algorithm>
#include <utility>

#include "kernels/attention/backward_joint_sm90.cuh"
#include "kernels/attention/launch_backward_sm90.cuh"

// How shapes of the joint backward kernel are started.

namespace fovea::kernels::sm90 {

/// Its numbers, without memory, for steps of so many queries.
inline BackwardSchedule schedule_of(const CudaAttentionBackwardArgs& args, int64_t step) {
  const CudaAttentionArgs& f = args.forward;
  BackwardSchedule out;
  out.columns = args.columns;
  out.step_queries = static_cast<int>(step);
  out.batch = static_cast<int>(f.batch), out.kv_heads = static_cast<int>(f.kv_heads);
  out.heads_per_kv = static_cast<int>(f.heads / f.kv_heads);
  out.steps = static_cast<int>((f.q_len + step - 1) / step);
  out.tiles = static_cast<int>(args.columns.tiles_per_map);
  return out;
}

/// What lies in the workspace, from its begin on: numbers of the queries, dQ in fp32, counters, and
/// the schedule of lists, that has the place of dQ too for a time.
struct JointLayout {
  int64_t steps;                       ///< of a head of queries
  int64_t dq_at, lists_at, counts_at;  ///< in floats
  int64_t bytes;

  JointLayout(const CudaAttentionBackwardArgs& args, int64_t step)
      : steps((args.forward.q_len + step - 1) / step) {
    const CudaAttentionArgs& f = args.forward;
    const int64_t all = f.batch * f.heads * steps;
    dq_at = all * 2 * step, lists_at = counts_at = dq_at + all * step * f.dim;
    int64_t numbers = all, ranks = 0;
    if (f.lists.tiles != nullptr) {
      const BackwardSchedule schedule = schedule_of(args, step);
      const int64_t tiles = schedule.all_tiles();
      counts_at += schedule.heads_per_kv * tiles * kListNumbers;
      numbers += all + 3 * tiles + BackwardSchedule::kMostBlocks;
      ranks = tiles * schedule.ranks_of_tile();
    }
    bytes = (counts_at + numbers) * static_cast<int64_t>(sizeof(int32_t)) +
            ranks * static_cast<int64_t>(sizeof(uint16_t));
  }

  /// Gives a schedule its memory.
  void place(const CudaAttentionBackwardArgs& args, BackwardSchedule& schedule) const {
    const int64_t all = schedule.all_steps(), tiles = schedule.all_tiles();
    auto* at = reinterpret_cast<int32_t*>(args.workspace + counts_at) + all;
    const auto take = [&](int64_t count) { return std::exchange(at, at + count); };
    schedule.adds = take(all);
    schedule.weights = take(tiles);
    schedule.times = reinterpret_cast<uint32_t*>(take(tiles));
    schedule.order = take(tiles + BackwardSchedule::kMostBlocks);
    schedule.ranks = reinterpret_cast<uint16_t*>(at);
    schedule.lists = reinterpret_cast<ColumnList*>(args.workspace + lists_at);
    schedule.entries = reinterpret_cast<uint32_t(*)[2]>(args.workspace + dq_at);
  }

 private:
  static constexpr int64_t kListNumbers = sizeof(ColumnList) / sizeof(int32_t);
};

template <typename Shape, Type kType>
Status round_queries(const CudaAttentionBackwardArgs& args, const JointLayout& layout,
                     CudaTarget target) {
  const CudaAttentionArgs& f = args.forward;
  RoundParams params;
  params.heads = static_cast<int>(f.heads), params.q_len = static_cast<int>(f.q_len);
  params.steps = static_cast<int>(layout.steps);
  params.from = args.workspace + layout.dq_at;
  params.counts = reinterpret_cast<const int32_t*>(args.workspace + layout.counts_at);
  params.to = args.grad_q;
  params.scale = static_cast<float>(f.sm_scale);
  const auto blocks = static_cast<unsigned>(f.batch * f.heads * layout.steps);
  return launch_kernel(round_queries_kernel<Shape::kDim, Shape::kOthers, kType>,
                       {blocks, 256, 0, target.stream}, params);
}

/// Tiles of a head of keys, and blocks that run at a time: of lists as many as all tiles at most.
template <typename Shape>
struct JointGrid {
  int64_t tiles, num_tiles;
  unsigned blocks = 0;

  explicit JointGrid(const CudaAttentionBackwardArgs& args)
      : tiles(Shape::kListed ? args.columns.tiles_per_map
                             : (args.forward.kv_len + Shape::kOwn - 1) / Shape::kOwn),
        num_tiles(tiles * args.forward.kv_heads * args.forward.batch) {}
  Status find_blocks(int device) {
    return resident_blocks(device, Shape::kBlocks, num_tiles, &blocks);
  }
};

/// Of lists: the schedule's numbers for such a grid.
template <typename Shape>
BackwardSchedule schedule_for(const CudaAttentionBackwardArgs& args, const JointGrid<Shape>& grid) {
  static_assert(sizeof(JointMemory<Shape>::dq[0]) / sizeof(uint2) >= BackwardSchedule::kMostAdds);
  BackwardSchedule out = schedule_of(args, Shape::kOthers);
  out.blocks = static_cast<int>(grid.blocks);
  out.waves = static_cast<int>((grid.num_tiles + grid.blocks - 1) / grid.blocks);
  // As many places as there are tiles of a head at a time, if each were a full one.
  const int64_t full = (args.forward.kv_len + Shape::kOwn - 1) / Shape::kOwn;
  const auto places = static_cast<int>(std::min<int64_t>({full, grid.blocks, out.steps}));
  out.apart = std::min(out.steps / places, Shape::kApart);
  return out;
}

/// All gradients, in three kernels; of lists in seven, `unsupported` where BackwardSchedule does
/// not fit.
template <typename Shape, Type kType>
Status launch_joint(const CudaAttentionBackwardArgs& args, CudaTarget target) {
  const CudaAttentionArgs& f = args.forward;
  const JointLayout layout(args, Shape::kOthers);
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  JointGrid<Shape> grid(args);
  if (grid.num_tiles > kMost || f.batch * f.heads * layout.steps > kMost) {
    return {StatusCode::unsupported, "more than 2^31 tiles"};
  }
  JointParams joint;
  joint.steps = static_cast<int>(layout.steps * (f.heads / f.kv_heads));
  joint.dq = args.workspace + layout.dq_at;
  joint.counts = reinterpret_cast<int32_t*>(args.workspace + layout.counts_at);
  BackwardMaps maps{};
  Status status = backward_maps<Shape>(args, &maps);
  if (status.ok()) status = grid.find_blocks(target.device);
  if constexpr (Shape::kListed) {
    if (!status.ok()) return status;
    joint.schedule = schedule_for<Shape>(args, grid);
    if (!joint.schedule.fits()) return {StatusCode::unsupported, "too many tiles for a schedule"};
    layout.place(args, joint.schedule);
    status = schedule_backward(joint.schedule, target);
  }
  if (status.ok()) {
    status = prepare_backward<Shape::kDim, kType>(args, target, Shape::kOthers, joint.counts);
  }
  BackwardParams params = backward_params<Shape>(args);
  params.tiles = static_cast<int>(grid.tiles), params.num_tiles = static_cast<int>(grid.num_tiles);
  // The struct begins at a multiple of 1024, as far as the kernel sees to it.
  constexpr int kBytes = sizeof(JointMemory<Shape>) + 1024;
  static_assert(kBytes <= 227 * 1024);
  if (status.ok()) {
    status = launch_kernel(joint_backward_kernel<Shape, kType>,
                           {grid.blocks, Shape::kThreads, kBytes, target.stream, true}, maps,
                           params, joint);
  }
  return status.ok() ? round_queries<Shape, kType>(args, layout, target) : status;
}

}  // namespace fovea::kernels::sm90
