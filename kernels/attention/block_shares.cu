#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <limits>

#include "kernels/attention/block_shares_sm80.cuh"
#include "kernels/attention/launch_sm80.cuh"
#include "kernels/attention/shares_layout.h"

namespace fovea::kernels {
namespace {

using namespace shares;

// ---- What a kernel reads of each group of keys --------------------------------------------------

/// The last of `blocks` blocks that begins at or before the group, if it ends behind it; or -1.
__device__ int block_of(const int32_t* offsets, int64_t blocks, int group) {
  int64_t low = 0, high = blocks + 1;  // the first offset behind the group is among these
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (offsets[middle] > group) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low == 0 || low > blocks ? -1 : static_cast<int>(low) - 1;
}

__global__ void note_groups_kernel(const __grid_constant__ SharesParams params) {
  const BlockSharesArgs& args = params.args;
  const auto group = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (group >= params.key_rows) return;
  const bool there = group < args.kv_groups;
  const float weight = there ? (args.kv_weight != nullptr ? args.kv_weight[group] : 1) : 0;
  params.bias[group] = weight > 0 ? log2f(weight) : -INFINITY;
  params.block[group] = there ? block_of(args.kv_offsets, args.kv_blocks, group) : -1;
}

// ---- Sizes --------------------------------------------------------------------------------------

constexpr int64_t kMostBytes = int64_t{256} << 20;  // of heads at a time, if there are several
constexpr int64_t kManyKeys = 256;                  // groups of keys of the larger shape
constexpr int64_t kMostHeld = 4;                    // steps of queries
constexpr int64_t kStepsOfBlock = 64;               // that a block should have, or more
constexpr int64_t kRounds = 4;  // that a device should need for all blocks, or more

constexpr int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

/// How much there is to do with tiles of so many groups of keys.
struct SharesSizes {
  int64_t steps, rows, key_rows, tiles, tiles_at_once, parts_of_row;
  int64_t slots, slices, head_floats, heads_at_once, floats;

  SharesSizes(const BlockSharesArgs& args, int64_t keys, int64_t processors) {
    steps = (args.dim + kChannels - 1) / kChannels;
    rows = round_up(args.q_groups, kQueries);
    key_rows = std::max(round_up(args.kv_groups, kManyKeys), kManyKeys);
    tiles = std::max<int64_t>((args.kv_groups + keys - 1) / keys, 1);
    const int64_t steps_of_tile = steps * args.phases;
    const int64_t all_tiles = tiles * args.heads * (rows / kQueries);
    const int64_t wanted = kRounds * processors * (keys > 128 ? 1 : 2);
    tiles_at_once = std::min((kStepsOfBlock + steps_of_tile - 1) / steps_of_tile,
                             std::max<int64_t>(all_tiles / wanted, 1));
    parts_of_row = (tiles + tiles_at_once - 1) / tiles_at_once;
    slots = args.kv_blocks + key_rows / kStrip;
    slices = parts_of_row * (keys / kStrip);
    head_floats = (slots + 2 * slices) * rows;
    const int64_t fit = kMostBytes / 4 / std::max<int64_t>(head_floats, 1);
    heads_at_once = std::clamp<int64_t>(fit, 1, std::max<int64_t>(args.heads, 1));
    floats = 2 * key_rows + heads_at_once * head_floats;
  }
};

Status check_shape(const BlockSharesArgs& args) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max() / 4;
  const auto packs = [](const HeadRows& x) {
    const auto whole = [](int64_t stride) { return stride % kPack == 0; };
    return whole(x.head_stride) && whole(x.row_stride) &&
           reinterpret_cast<uintptr_t>(x.data) % 16 == 0 && std::abs(x.row_stride) <= kMost;
  };
  if (const Status status = check_sizes(args); !status.ok()) return status;
  if (args.q.dtype == DType::f32) return {StatusCode::unsupported, "takes bf16 and fp16"};
  if (args.dim % kPack != 0 || !packs(args.q) || !packs(args.k)) {
    return {StatusCode::unsupported, "rows are not 16-byte packs"};
  }
  if (args.heads > 65535 || std::max(args.q_len, args.kv_len) > kMost ||
      std::max(args.q_groups, args.kv_groups) > kMost || args.phases > kMost / args.dim ||
      std::max(args.q_blocks, args.kv_blocks) > 65535 * kJoinThreads) {
    return {StatusCode::unsupported, "more than 65535 heads, 2^29 rows or 2^23 blocks"};
  }
  return {};
}

struct Device {
  sm80::SharedMemory memory;
  int processors = 1;
};
Status look_at(int device, Device* out) {
  const cudaError_t code =
      cudaDeviceGetAttribute(&out->processors, cudaDevAttrMultiProcessorCount, device);
  return code == cudaSuccess ? sm80::shared_memory(device, &out->memory) : status_of(code);
}

/// Shared memory for this shape, if there is enough: what stays, and the slots.
struct SharesMemory {
  int held = 0, slot = 0, ring = 0;
};
template <typename Shape>
SharesMemory memory_of(const BlockSharesArgs& args, const Device& device) {
  SharesMemory out;
  const int64_t steps = (args.dim + kChannels - 1) / kChannels * args.phases;
  out.slot = Shape::kKeyBytes + Shape::kNoteBytes;
  if (steps <= kMostHeld) {
    out.held = static_cast<int>(steps) * kQueryBytes;
  } else {
    out.slot += kQueryBytes;
  }
  out.ring = sm80::ring_slots(device.memory, Shape::kBlocks, out.held, out.slot);
  return out;
}

// ---- Launchers ----------------------------------------------------------------------------------

/// All heads, some at a time.
template <typename Shape, Type kType, bool kLargest>
Status launch(const BlockSharesArgs& args, float* workspace, const Device& device,
              CudaTarget target) {
  const SharesSizes sizes(args, Shape::kKeys, device.processors);
  const auto memory = memory_of<Shape>(args, device);
  if (memory.ring == 0) return {StatusCode::unsupported, "takes 99 KB of shared memory a block"};
  SharesParams params;
  params.args = args;
  params.slots = sizes.slots, params.slices = sizes.slices;
  params.sums = reinterpret_cast<float2*>(workspace);
  params.parts = workspace + 2 * sizes.heads_at_once * sizes.slices * sizes.rows;
  params.bias = params.parts + sizes.heads_at_once * sizes.slots * sizes.rows;
  params.block = reinterpret_cast<int32_t*>(params.bias + sizes.key_rows);
  params.rows = static_cast<int>(sizes.rows);
  params.key_rows = static_cast<int>(sizes.key_rows);
  params.tiles = static_cast<int>(sizes.tiles);
  params.tiles_at_once = static_cast<int>(sizes.tiles_at_once);
  params.parts_of_row = static_cast<int>(sizes.parts_of_row);
  params.steps = static_cast<int>(sizes.steps);
  params.ring = memory.ring, params.holds = memory.held > 0;
  constexpr double kLog2e = 1.4426950408889634;
  params.scale_log2 = static_cast<float>(args.scale * kLog2e);
  Status status = launch_kernel(
      note_groups_kernel,
      {static_cast<unsigned>(sizes.key_rows / kManyKeys), kManyKeys, 0, target.stream}, params);
  const size_t bytes = memory.held + static_cast<size_t>(memory.ring) * memory.slot;
  for (int64_t head = 0; head < args.heads && status.ok(); head += sizes.heads_at_once) {
    const int64_t heads = std::min(sizes.heads_at_once, args.heads - head);
    params.first_head = static_cast<int>(head);
    const int64_t blocks = sizes.rows / kQueries * sizes.parts_of_row * heads;
    if (blocks > std::numeric_limits<int32_t>::max()) {
      return {StatusCode::unsupported, "more than 2^31 tiles"};
    }
    if (blocks > 0) {
      status = launch_kernel(shares_kernel<Shape, kType, kLargest>,
                             {static_cast<unsigned>(blocks), Shape::kThreads, bytes, target.stream},
                             params);
    }
    const dim3 grid(static_cast<unsigned>(args.q_blocks),
                    static_cast<unsigned>((args.kv_blocks + kJoinThreads - 1) / kJoinThreads),
                    static_cast<unsigned>(heads));
    if (status.ok()) {
      status = launch_kernel(join_shares_kernel<kLargest>, {grid, kJoinThreads, 0, target.stream},
                             params);
    }
  }
  return status;
}

template <typename Shape>
Status launch_shape(const BlockSharesArgs& args, float* workspace, const Device& device,
                    CudaTarget target) {
  if (args.q.dtype == DType::bf16) {
    return args.largest ? launch<Shape, Type::bf16, true>(args, workspace, device, target)
                        : launch<Shape, Type::bf16, false>(args, workspace, device, target);
  }
  return args.largest ? launch<Shape, Type::f16, true>(args, workspace, device, target)
                      : launch<Shape, Type::f16, false>(args, workspace, device, target);
}

}  // namespace

int64_t block_shares_cuda_workspace_bytes(const BlockSharesArgs& args, CudaTarget target) {
  Device device;
  if (!check_shape(args).ok() || !look_at(target.device, &device).ok()) return 0;
  const int64_t floats = std::max(SharesSizes(args, 128, device.processors).floats,
                                  SharesSizes(args, kManyKeys, device.processors).floats);
  return static_cast<int64_t>(sizeof(float)) * floats;
}

Status block_shares_cuda(const BlockSharesArgs& args, Workspace workspace, CudaTarget target) {
  if (const Status status = check_shape(args); !status.ok()) return status;
  if (args.q_blocks == 0 || args.kv_blocks == 0) return {};
  Device device;
  if (const Status status = look_at(target.device, &device); !status.ok()) return status;
  if (!workspace.data || workspace.bytes < block_shares_cuda_workspace_bytes(args, target)) {
    return {StatusCode::invalid, "the workspace is too small"};
  }
  auto* const floats = static_cast<float*>(workspace.data);
  using Large = SharesShape<kManyKeys>;
  using Small = SharesShape<128>;
  const auto large = memory_of<Large>(args, device);
  const bool is_large = large.held == 0 && large.ring > 0 && args.kv_groups > 128;
  return is_large ? launch_shape<Large>(args, floats, device, target)
                  : launch_shape<Small>(args, floats, device, target);
}

}  // namespace fovea::kernels
