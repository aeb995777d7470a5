#include <algorithm>

#include "kernels/attention/checks.h"
#include "kernels/attention/cpu_variants.h"

namespace fovea::kernels {
namespace {

bool ascends(const int32_t* offsets, int64_t blocks, int64_t length) {
  if (!offsets || offsets[0] < 0 || offsets[blocks] > length) return false;
  return std::is_sorted(offsets, offsets + blocks + 1);
}

bool within(const int32_t* values, int64_t count, int64_t length) {
  return std::all_of(values, values + count,
                     [&](int32_t value) { return value >= 0 && value < length; });
}

int64_t most_groups(const BlockSharesArgs& args) {
  int64_t most = 1;
  for (int64_t i = 0; i < args.q_blocks; ++i)
    most = std::max<int64_t>(most, args.q_offsets[i + 1] - args.q_offsets[i]);
  return most;
}

}  // namespace

Status check(const BlockSumsArgs& args) {
  if (args.batch < 0 || args.heads < 0 || args.rows < 0 || args.dim < 1 || args.blocks < 0)
    return {StatusCode::invalid, "a size is negative"};
  if (!args.x.data && args.batch * args.heads * args.rows > 0)
    return {StatusCode::invalid, "a pointer is missing"};
  if (!args.offsets) return {StatusCode::invalid, "a pointer is missing"};
  const bool per_batch = args.offsets_batch_stride != 0, per_head = args.offsets_head_stride != 0;
  for (int64_t b = 0; b < (per_batch ? args.batch : 1); ++b) {
    for (int64_t h = 0; h < (per_head ? args.heads : 1); ++h) {
      const int32_t* own =
          args.offsets + b * args.offsets_batch_stride + h * args.offsets_head_stride;
      if (!within(own, args.blocks + 1, args.rows + 1))
        return {StatusCode::invalid, "blocks leave the rows"};
    }
  }
  return check_order(args.order, args.batch, args.heads, args.rows);
}

Status check(const BlockSharesArgs& args) {
  if (const Status status = check_sizes(args); !status.ok()) return status;
  if (!args.q.data || !args.k.data || !args.shares || !args.q_rows || !args.kv_rows)
    return {StatusCode::invalid, "a pointer is missing"};
  if (!ascends(args.q_offsets, args.q_blocks, args.q_groups) ||
      !ascends(args.kv_offsets, args.kv_blocks, args.kv_groups))
    return {StatusCode::invalid, "blocks leave the groups"};
  if (!within(args.q_rows, args.phases * args.q_groups, args.q_len) ||
      !within(args.kv_rows, args.phases * args.kv_groups, args.kv_len))
    return {StatusCode::invalid, "a group leaves the rows"};
  return {};
}

SharesLayout shares_layout(const BlockSharesArgs& args, int threads) {
  SharesLayout out;
  const int64_t workers = std::max(threads, 1);
  out.kv_units = (args.kv_groups + kUnit - 1) / kUnit;
  out.chunks = (args.kv_groups + kShareKeys - 1) / kShareKeys;
  out.part_stride = args.kv_blocks + out.chunks;
  out.task_blocks = std::max<int64_t>(1, kTileRows / most_groups(args));
  out.q_floats = args.phases * kTileRows * kRowStride;
  out.parts_floats = kTileRows * out.part_stride;
  out.reference_floats = kTileRows * (out.chunks + 2);
  const int64_t logits = kTileRows * kLogitStride;
  out.worker_bytes = aligned(4 * (out.q_floats + logits + out.parts_floats + out.reference_floats));
  out.packed_at = 0;
  out.parts_at = aligned(4 * out.kv_units * kUnit * args.phases * args.dim);
  out.workers_at = out.parts_at + aligned(out.part_stride * int64_t{sizeof(SharePart)});
  out.bytes = out.workers_at + workers * out.worker_bytes;
  return out;
}

int64_t block_shares_workspace_bytes(const BlockSharesArgs& args, int threads) {
  return shares_layout(args, threads).bytes;
}

Status block_sums_cpu(const BlockSumsArgs& args, const Parallel& parallel, Isa isa) {
  if (const Status status = check(args); !status.ok()) return status;
  if (!isa_available(isa))
    return {StatusCode::unsupported, "this processor lacks the instruction set"};
  auto* kernel = baseline::block_sums;
#if FOVEA_X86_VARIANTS
  if (isa == Isa::avx2) kernel = avx2::block_sums;
  if (isa >= Isa::avx512) kernel = avx512::block_sums;
#endif
  kernel(args, parallel);
  return {};
}

Status block_shares_cpu(const BlockSharesArgs& args, Workspace workspace, const Parallel& parallel,
                        Isa isa) {
  if (const Status status = check(args); !status.ok()) return status;
  const SharesLayout layout = shares_layout(args, parallel.threads);
  if (const Status s = check_run(workspace, layout.bytes, isa); !s.ok()) return s;
  auto* kernel = baseline::block_shares;
#if FOVEA_X86_VARIANTS
  if (isa == Isa::avx2) kernel = avx2::block_shares;
  if (isa >= Isa::avx512) kernel = avx512::block_shares;
#endif
  kernel(args, layout, static_cast<unsigned char*>(workspace.data), parallel);
  return {};
}

}  // namespace fovea::kernels
