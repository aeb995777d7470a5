#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernels/attention/backward_layout.h"
#include "kernels/attention/checks.h"
#include "kernels/attention/cpu_variants.h"

namespace fovea::kernels {
namespace {

constexpr int64_t kMaxChunkKeys = 512, kMinChunkKeys = 256;
constexpr int64_t kTasks = 64;                     // worth smaller chunks
constexpr int64_t kWaveBytes = int64_t{64} << 20;  // of sums for queries

// The order leads to rows of its tensor, as the forward's check has seen.
Status check_permutation(const RowOrder& order, int64_t batch, int64_t heads, int64_t len) {
  if (!order.rows) return {};
  std::vector<bool> named(len);
  for (int64_t b = 0; b < (order.batch_stride == 0 ? 1 : batch); ++b) {
    for (int64_t h = 0; h < (order.head_stride == 0 ? 1 : heads); ++h) {
      const int32_t* rows = order.rows + b * order.batch_stride + h * order.head_stride;
      named.assign(len, false);
      for (int64_t i = 0; i < len; ++i) {
        if (named[rows[i]]) return invalid("an order names a row twice");
        named[rows[i]] = true;
      }
    }
  }
  return {};
}

// Chunks depend on the problem alone: they decide in which order a query's sums are taken.
int64_t chunk_keys(const BlockSparseArgs& args) {
  const int64_t pairs = args.batch * args.kv_heads;
  int64_t keys = kMaxChunkKeys;
  while (keys > kMinChunkKeys && pairs * ((args.kv_len + keys - 1) / keys) < kTasks) keys /= 2;
  return std::min(keys, (args.kv_len + kUnit - 1) / kUnit * kUnit);
}

}  // namespace

Status check(const BlockSparseBackwardArgs& args) {
  const BlockSparseArgs& f = args.forward;
  if (const Status s = check(f); !s.ok()) return s;
  if (f.q_int8.data || f.k_int8.data)
    return {StatusCode::unsupported, "integers have no gradients"};
  if (const Status s = check_permutation(f.q_order, f.batch, f.heads, f.q_len); !s.ok()) return s;
  if (const Status s = check_permutation(f.kv_order, f.batch, f.kv_heads, own_keys(f)); !s.ok())
    return s;
  if (f.batch > 0 && f.heads > 0 && f.q_len > 0) {
    if (!args.grad_out.data) return invalid("null grad_out");
    if (!f.lse) return invalid("null lse");
  }
  const DType type = f.q.dtype;
  if (args.grad_out.dtype != type) return invalid("grad_out differs from q in dtype");
  for (const MutableHeadRows* rows : {&args.grad_q, &args.grad_k, &args.grad_v}) {
    if (rows->data && rows->dtype != type) return invalid("a gradient differs from q in dtype");
  }
  if (f.more.k.data && (!args.grad_k.data != !args.grad_more_k.data ||
                        !args.grad_v.data != !args.grad_more_v.data)) {
    return invalid("a gradient of only some keys or values");
  }
  return {};
}

BackwardLayout backward_layout(const BlockSparseBackwardArgs& args, int threads) {
  const BlockSparseArgs& f = args.forward;
  const auto whole = [](int64_t channels) { return (channels + kUnit - 1) / kUnit * kUnit; };
  constexpr int64_t kFloat = sizeof(float);
  BackwardLayout layout;
  layout.chunk_keys = chunk_keys(f);
  layout.chunks = f.kv_len > 0 ? (f.kv_len + layout.chunk_keys - 1) / layout.chunk_keys : 0;
  layout.q_width = whole(f.dim);
  layout.value_width = whole(f.value_dim);
  layout.tiles = most_tiles(f.lists);
  const int64_t workers = std::max(threads, 1), pairs = f.batch * f.kv_heads;
  const int64_t group = f.kv_heads > 0 ? f.heads / f.kv_heads : 0;
  const int64_t pair_bytes = group * f.q_len * layout.q_width * kFloat;
  layout.wave_heads =
      std::min(pairs, std::max(workers, kWaveBytes / std::max<int64_t>(pair_bytes, 1)));
  // Of a chunk: K and V turned, K in panels, the sums of both gradients and of the bias.
  const int64_t key_floats = f.dim + f.value_dim + layout.q_width + 2 * kRowStride + 1;
  layout.worker_bytes =
      aligned(sizeof(BackwardTileMemory)) + aligned(layout.chunk_keys * key_floats * kFloat);
  const int64_t heads = layout.wave_heads * group;
  layout.tile_starts_at = 0;
  layout.done_at = aligned(f.lists.maps * (f.lists.num_q_blocks + 1) * int64_t{sizeof(int32_t)});
  layout.delta_at = layout.done_at + aligned(heads * layout.tiles * int64_t{sizeof(int32_t)});
  layout.grad_q_at = layout.delta_at + aligned(heads * f.q_len * kFloat);
  layout.workers_at = layout.grad_q_at + aligned(layout.wave_heads * pair_bytes);
  layout.bytes = layout.workers_at + workers * layout.worker_bytes;
  return layout;
}

int64_t attention_backward_workspace_bytes(const BlockSparseBackwardArgs& args, int threads) {
  return backward_layout(args, threads).bytes;
}

Status block_sparse_backward_cpu(const BlockSparseBackwardArgs& args, Workspace workspace,
                                 const Parallel& parallel, Isa isa) {
  if (const Status status = check(args); !status.ok()) return status;
  const BackwardLayout layout = backward_layout(args, parallel.threads);
  if (const Status s = check_run(workspace, layout.bytes, isa); !s.ok()) return s;
  auto* kernel = baseline::block_sparse_backward;
#if FOVEA_X86_VARIANTS
  if (isa == Isa::avx2) kernel = avx2::block_sparse_backward;
  if (isa >= Isa::avx512) kernel = avx512::block_sparse_backward;
#endif
  kernel(args, layout, static_cast<unsigned char*>(workspace.data), parallel);
  return {};
}

}  // namespace fovea::kernels
