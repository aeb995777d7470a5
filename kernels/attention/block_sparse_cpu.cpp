#include <new>

#include "kernels/attention/cpu_variants.h"
#include "kernels/attention/panels_cpu.h"
#include "kernels/attention/steps_cpu.h"
#include "kernels/attention/tasks_cpu.h"
#include "kernels/attention/tile_cpu.h"

namespace fovea::kernels::FOVEA_ISA {
namespace {

constexpr int64_t kPackUnits = 32;  // keys packed by one task, in units

/// What a tile of queries is computed from.
struct Tile : QueryTile {
  const float* keys;    ///< [units][dim][16]
  const float* values;  ///< [panels][kv_len][16]
  WorkerMemory& memory;
};

/// out = out * rescale + P V for the step's keys.
void add_values(const Tile& tile, const Step& step) {
  WorkerMemory& m = tile.memory;
  const BlockSparseArgs& args = tile.args;
  const int64_t panels = (args.value_dim + kUnit - 1) / kUnit;
  for_each_chunk(step, [&](const Runs& chunk) {
    for (int64_t p = 0; p < panels; p += kGroupUnits) {
      Panels v;
      v.count = std::min<int64_t>(kGroupUnits, panels - p);
      if (kGroupUnits == 1) v.columns = std::min(kUnit, args.value_dim - p * kUnit);
      for (int64_t u = 0; u < v.count; ++u)
        v.panel[u] = tile.values + (p + u) * kUnit * args.kv_len;
      multiply_tile<Strides<kLogitStride, 1, kUnit, kRowStride>>(tile.rows, m.logits, v, chunk,
                                                                 m.out + p * kUnit, m.rescale);
    }
    std::fill_n(m.rescale, tile.rows, 1.0f);  // from the second chunk on
  });
}

void run_step(const Tile& tile, Step& step) {
  if (step.num_slots == 0) return;
  WorkerMemory& m = tile.memory;
  const BlockSparseArgs& args = tile.args;
  const Run all_channels{0, 0, args.dim};
  for (int64_t s = 0; s < step.num_slots; s += kGroupUnits) {
    Panels k;
    k.count = std::min<int64_t>(kGroupUnits, step.num_slots - s);
    for (int64_t u = 0; u < k.count; ++u)
      k.panel[u] = tile.keys + step.slots[s + u].unit * kUnit * args.dim;
    multiply_tile<Strides<kRowStride, 1, kUnit, kLogitStride>>(
        tile.rows, m.q, k, {&all_channels, 1}, m.logits + s * kUnit, nullptr);
  }
  const bool biased = args.key_bias.data || args.bias.data;
  for (int64_t s = 0; s < step.num_slots; ++s) {
    const Slot& slot = step.slots[s];
    if (biased || slot.bits || slot.last - slot.first < kUnit)
      finish_slot(tile, slot, m.logits + s * kUnit, kLogitStride);
  }
  softmax_step(m, tile.rows, step.num_slots * kUnit);
  add_values(tile, step);
  step.num_slots = step.num_runs = 0;
}

/// Runs over the tile's list.
void run_list(const Tile& tile, int64_t map, int64_t block) {
  Step step;
  const auto run = [&] { run_step(tile, step); };
  for_each_range(tile, map, block, {0, tile.args.kv_len},
                 [&](const KeyRange& range) { add_range(range, step, run); });
  run();
}

template <typename T>
void store_results(const Tile& tile) {
  const BlockSparseArgs& args = tile.args;
  const WorkerMemory& m = tile.memory;
  T* out = static_cast<T*>(args.out.data) + tile.batch * args.out.batch_stride +
           tile.head * args.out.head_stride;
  float* lse = args.lse ? args.lse + (tile.batch * args.heads + tile.head) * args.q_len : nullptr;
  for (int64_t r = 0; r < tile.rows; ++r) {
    const int64_t position = tile.begin + r;
    const int64_t row = tile.q_order ? tile.q_order[position] : position;
    const float sum = m.row_sum[r];
    store_row(m.out + r * kRowStride, args.value_dim, sum == 0.0f ? 0.0 : 1.0 / sum,
              out + row * args.out.row_stride);
    if (lse) lse[row] = static_cast<float>(m.row_max[r] * kLn2 + std::log(double{sum}));
  }
}

/// What all tasks share.
struct Job {
  const BlockSparseArgs& args;
  const WorkLayout& layout;
  int32_t* tile_starts;  ///< [maps, num_q_blocks + 1]
  float* packed;
  unsigned char* workers;
  int64_t first_pair = 0, num_pairs = 0;  ///< of this wave

  float* keys(int64_t pair) const {
    return packed + pair * (layout.key_floats + layout.value_floats);
  }
  float* values(int64_t pair) const { return keys(pair) + layout.key_floats; }
  WorkerMemory& memory(int64_t worker) const {
    constexpr int64_t kBytes = (int64_t{sizeof(WorkerMemory)} + 63) / 64 * 64;
    return *new (workers + worker * kBytes) WorkerMemory;
  }
};

int64_t pack_chunks(const BlockSparseArgs& args) {
  return (args.kv_len + kPackUnits * kUnit - 1) / (kPackUnits * kUnit);
}

template <typename T>
void pack_task(const Job& job, int64_t task) {
  const BlockSparseArgs& args = job.args;
  const int64_t pair = task / pack_chunks(args), chunk = task % pack_chunks(args);
  const int64_t batch = (job.first_pair + pair) / args.kv_heads;
  const int64_t head = (job.first_pair + pair) % args.kv_heads;
  const int64_t begin = chunk * kPackUnits * kUnit;
  const int64_t end = std::min(begin + kPackUnits * kUnit, args.kv_len);
  const auto keys = head_view<T>(args.k, args.kv_order, batch, head);
  for (int64_t unit = begin / kUnit; unit * kUnit < end; ++unit) {
    pack_key_unit(keys, args.kv_len, args.dim, unit, job.keys(pair) + unit * kUnit * args.dim);
  }
  const auto values = head_view<T>(args.v, args.kv_order, batch, head);
  pack_values(values, args.value_dim, args.kv_len, {begin, end}, job.values(pair) + begin * kUnit);
}

template <typename T>
void tile_task(const Job& job, int64_t task, WorkerMemory& memory) {
  const BlockSparseArgs& args = job.args;
  const BlockLists& lists = args.lists;
  const int64_t group = args.heads / args.kv_heads;
  const int64_t tile = task % job.layout.tiles;
  const int64_t pair = task / job.layout.tiles / group;
  const int64_t batch = (job.first_pair + pair) / args.kv_heads;
  const int64_t head =
      (job.first_pair + pair) % args.kv_heads * group + task / job.layout.tiles % group;
  const int64_t map = map_of(lists, batch, head);
  const int32_t* starts = job.tile_starts + map * (lists.num_q_blocks + 1);
  if (tile >= starts[lists.num_q_blocks]) return;
  const int64_t block =
      std::upper_bound(starts, starts + lists.num_q_blocks + 1, tile) - starts - 1;
  const int32_t* offsets = lists.q_offsets + map * (lists.num_q_blocks + 1) + block;
  const int64_t size = offsets[1] - offsets[0], tiles = starts[block + 1] - starts[block];
  const int64_t begin = offsets[0] + size * (tile - starts[block]) / tiles;
  const int64_t end = offsets[0] + size * (tile - starts[block] + 1) / tiles;
  const Tile t{{args, batch, head, order_of(args.q_order, batch, head),
                order_of(args.kv_order, batch, head / group), begin, end - begin},
               job.keys(pair),
               job.values(pair),
               memory};
  load_queries(head_view<T>(args.q, args.q_order, batch, head), begin, t.rows, args.dim,
               args.sm_scale * kLog2E, memory.q);
  std::fill_n(memory.row_max, t.rows, -kInfinity);
  std::fill_n(memory.row_sum, t.rows, 0.0f);
  const int64_t width = (args.value_dim + kUnit - 1) / kUnit * kUnit;
  for (int64_t r = 0; r < t.rows; ++r) std::fill_n(memory.out + r * kRowStride, width, 0.0f);
  run_list(t, map, block);
  store_results<T>(t);
}

}  // namespace

void block_sparse(const BlockSparseArgs& args, const WorkLayout& layout, unsigned char* memory,
                  const Parallel& parallel) {
  Job job{args, layout, reinterpret_cast<int32_t*>(memory + layout.tile_starts_at),
          reinterpret_cast<float*>(memory + layout.packed_at), memory + layout.workers_at};
  count_tiles(args.lists, job.tile_starts);
  const int64_t pairs = args.batch * args.kv_heads;
  for (int64_t first = 0; first < pairs && layout.tiles > 0; first += layout.wave_heads) {
    job.first_pair = first;
    job.num_pairs = std::min(layout.wave_heads, pairs - first);
    const int64_t tiles = job.num_pairs * (args.heads / args.kv_heads) * layout.tiles;
    with_type(args.q.dtype, [&](auto* type) {
      using T = std::remove_pointer_t<decltype(type)>;
      run_tasks(job, parallel, job.num_pairs * pack_chunks(args),
                [](const Job& j, int64_t task, int64_t) { pack_task<T>(j, task); });
      run_tasks(job, parallel, tiles, [](const Job& j, int64_t task, int64_t worker) {
        tile_task<T>(j, task, j.memory(worker));
      });
    });
  }
}

}  // namespace fovea::kernels::FOVEA_ISA
