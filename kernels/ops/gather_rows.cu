#include "kernels/ops/gather_rows.h"

#include <limits>

#include "kernels/common/launch.cuh"

namespace fovea::kernels {
namespace {

constexpr int kThreads = 256;
constexpr int kTurns = 4;  // rows of a thread, whose loads are under way together

// Which blocks of the grid copy the second and the third tensor, and how many a head has.
struct Shares {
  unsigned second, third;
  unsigned per_head[kMaxGathered];
};

/// A block copies `kTurns` * (kThreads / units) rows of a head. Grid: those of all tensors.
__global__ void __launch_bounds__(kThreads) gather_rows_kernel(GatherRowsArgs args, Shares shares) {
  const int which = (blockIdx.x >= shares.second) + (blockIdx.x >= shares.third);
  const GatheredRows& part = args.parts[which];
  const unsigned first_block = which == 0 ? 0 : which == 1 ? shares.second : shares.third;
  const unsigned per_head = which == 0   ? shares.per_head[0]
                            : which == 1 ? shares.per_head[1]
                                         : shares.per_head[2];
  const unsigned own = blockIdx.x - first_block;
  const unsigned of_head = own / per_head, chunk = own % per_head;
  const int64_t head = of_head % part.heads, item = of_head / part.heads;
  const auto units = static_cast<int>(args.dim / 8);
  const int at_once = kThreads / units;
  const int lane = static_cast<int>(threadIdx.x) / units;
  if (lane >= at_once) return;
  const int unit = static_cast<int>(threadIdx.x) % units;
  const int64_t in_head = head / (part.heads / part.in_heads);
  const auto* const from = static_cast<const uint16_t*>(part.in.data) +
                           item * part.in.batch_stride + in_head * part.in.head_stride + unit * 8;
  auto* const to = static_cast<uint16_t*>(part.out.data) + item * part.out.batch_stride +
                   head * part.out.head_stride + unit * 8;
  const int32_t* order = part.order.rows;
  if (order) order += item * part.order.batch_stride + head * part.order.head_stride;
  const int64_t first = static_cast<int64_t>(chunk) * (kTurns * at_once) + lane;
  uint4 value[kTurns];
#pragma unroll
  for (int turn = 0; turn < kTurns; ++turn) {
    const int64_t i = first + turn * at_once;
    value[turn] = {};
    if (i >= part.rows) continue;
    const int64_t row = order ? order[i] : i;
    if (row >= 0 && row < part.in_rows) {
      value[turn] = *reinterpret_cast<const uint4*>(from + row * part.in.row_stride);
    } else if (row != -1) {
      *args.fault = 1;
    }
  }
#pragma unroll
  for (int turn = 0; turn < kTurns; ++turn) {
    const int64_t i = first + turn * at_once;
    if (i < part.rows) *reinterpret_cast<uint4*>(to + i * part.out.row_stride) = value[turn];
  }
}

}  // namespace

Status gather_rows_cuda(const GatherRowsArgs& args, CudaTarget target) {
  if (args.dim / 8 > kThreads) return {StatusCode::unsupported, "takes up to 2048 channels"};
  const int64_t at_once = kTurns * (kThreads / (args.dim / 8));
  Shares shares = {};
  unsigned first[kMaxGathered] = {};
  int64_t blocks = 0;
  for (int i = 0; i < kMaxGathered; ++i) {
    first[i] = static_cast<unsigned>(blocks);
    if (i >= args.count) continue;
    const GatheredRows& part = args.parts[i];
    const int64_t per_head = (part.rows + at_once - 1) / at_once;
    shares.per_head[i] = static_cast<unsigned>(per_head);
    blocks += args.batch * part.heads * per_head;
    if (blocks > std::numeric_limits<int32_t>::max()) {
      return {StatusCode::unsupported, "more than 2^31 blocks of rows"};
    }
  }
  shares.second = first[1], shares.third = first[2];
  if (blocks == 0) return {};
  return launch_kernel(gather_rows_kernel,
                       {static_cast<unsigned>(blocks), kThreads, 0, target.stream}, args, shares);
}

}  // namespace fovea::kernels
