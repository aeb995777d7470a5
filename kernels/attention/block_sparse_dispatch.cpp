#include <algorithm>
#include <cstdint>

#include "kernels/attention/cpu_variants.h"

namespace fovea::kernels {

namespace {

constexpr int64_t kPackedBytes = int64_t{8} << 20;  // what a wave packs where that is enough
constexpr int64_t kTasksPerThread = 8;

}  // namespace

void count_tiles(const BlockLists& lists, int32_t* starts) {
  for (int64_t map = 0; map < lists.maps; ++map) {
    const int64_t at = map * (lists.num_q_blocks + 1);
    starts[at] = 0;
    for (int64_t i = at; i < at + lists.num_q_blocks; ++i) {
      const int64_t rows = lists.q_offsets[i + 1] - lists.q_offsets[i];
      starts[i + 1] = static_cast<int32_t>(starts[i] + tiles_of(rows));
    }
  }
}

int64_t most_tiles(const BlockLists& lists) {
  int64_t most = 0;
  for (int64_t map = 0; map < lists.maps; ++map) {
    const int32_t* offsets = lists.q_offsets + map * (lists.num_q_blocks + 1);
    int64_t tiles = 0;
    for (int64_t i = 0; i < lists.num_q_blocks; ++i) tiles += tiles_of(offsets[i + 1] - offsets[i]);
    most = std::max(most, tiles);
  }
  return most;
}

namespace {

// The most blocks of keys that a block of queries lists.
int64_t most_entries(const BlockLists& lists) {
  int64_t most = 0;
  for (int64_t map = 0; map < lists.maps; ++map) {
    const int64_t* row = lists.row_ptr + map * (lists.num_q_blocks + 1);
    for (int64_t i = 0; i < lists.num_q_blocks; ++i) most = std::max(most, row[i + 1] - row[i]);
  }
  return most;
}

}  // namespace

Status check_run(const Workspace& workspace, int64_t bytes, Isa isa) {
  if (!isa_available(isa))
    return {StatusCode::unsupported, "this processor lacks the instruction set"};
  if (!workspace.data || workspace.bytes < bytes)
    return {StatusCode::invalid, "the workspace is smaller than it must be"};
  if (reinterpret_cast<uintptr_t>(workspace.data) % 64 != 0)
    return {StatusCode::invalid, "the workspace is not aligned to 64 bytes"};
  return {};
}

WorkLayout work_layout(const BlockSparseArgs& args, int threads) {
  WorkLayout layout;
  const int64_t workers = std::max(threads, 1);
  const int64_t padded_len = (args.kv_len + kUnit - 1) / kUnit * kUnit;
  layout.key_floats = padded_len * args.dim;
  layout.scale_floats = args.k_int8.data ? padded_len : 0;
  layout.value_floats = padded_len * ((args.value_dim + kUnit - 1) / kUnit * kUnit);
  layout.tiles = most_tiles(args.lists);
  const int64_t pairs = args.batch * args.kv_heads;
  const int64_t pair_bytes = 4 * layout.pair_floats();
  const int64_t pair_tiles =
      std::max<int64_t>(layout.tiles, 1) * (args.kv_heads > 0 ? args.heads / args.kv_heads : 0);
  const int64_t for_threads =
      pair_tiles > 0 ? (kTasksPerThread * workers + pair_tiles - 1) / pair_tiles : 1;
  const int64_t for_memory = kPackedBytes / std::max<int64_t>(pair_bytes, 1);
  layout.wave_heads =
      std::min(pairs, std::max({workers > 1 ? for_threads : 1, for_memory, int64_t{1}}));
  layout.tile_starts_at = 0;
  layout.packed_at =
      aligned(args.lists.maps * (args.lists.num_q_blocks + 1) * int64_t{sizeof(int32_t)});
  layout.workers_at = layout.packed_at + aligned(layout.wave_heads * pair_bytes);
  layout.tops_at = layout.workers_at + workers * aligned(sizeof(WorkerMemory));
  layout.tops_floats = args.weights.per_entry ? most_entries(args.lists) * kTileRows : 0;
  layout.bytes = layout.tops_at + aligned(workers * layout.tops_floats * int64_t{sizeof(float)});
  return layout;
}

int64_t attention_workspace_bytes(const BlockSparseArgs& args, int threads) {
  return work_layout(args, threads).bytes;
}

Status block_sparse_cpu(const BlockSparseArgs& args, Workspace workspace, const Parallel& parallel,
                        Isa isa) {
  if (const Status status = check(args); !status.ok()) return status;
  const WorkLayout layout = work_layout(args, parallel.threads);
  if (const Status s = check_run(workspace, layout.bytes, isa); !s.ok()) return s;
  auto* kernel = baseline::block_sparse;
#if FOVEA_X86_VARIANTS
  if (isa == Isa::avx2) kernel = avx2::block_sparse;
  if (isa == Isa::avx512) kernel = avx512::block_sparse;
  if (isa == Isa::avx512_vnni) kernel = avx512_vnni::block_sparse;
  if (isa == Isa::avx512_bf16) kernel = avx512_bf16::block_sparse;
#endif
  kernel(args, layout, static_cast<unsigned char*>(workspace.data), parallel);
  return {};
}

}  // namespace fovea::kernels
