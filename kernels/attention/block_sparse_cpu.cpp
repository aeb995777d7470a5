#include <atomic>
#include <new>

#include "kernels/attention/cpu_variants.h"
#include "kernels/attention/panels_cpu.h"
#include "kernels/attention/tile_cpu.h"

namespace fovea::kernels::FOVEA_ISA {
namespace {

constexpr double kLog2E = 1.4426950408889634;
constexpr double kLn2 = 0.6931471805599453;
constexpr int64_t kPackUnits = 32;  // keys packed by one task, in units

/// Up to 16 keys of a step: lanes [first, last) of one packed unit.
struct Slot {
  int64_t unit = 0;
  int first = 0, last = 0;
  const uint64_t* bits = nullptr;  ///< of the tile's first row; null: all pairs are visible
  int64_t bit_words = 0;           ///< of one row
  int64_t bit_of_lane_0 = 0;       ///< may be negative: the block begins within the unit
};

/// The keys that enter the softmax together.
struct Step {
  Slot slots[kStepUnits];
  int64_t num_slots = 0;
  Run runs[kStepUnits];  ///< the same keys as consecutive positions, columns against rows of V
  int64_t num_runs = 0;
};

/// What a tile of queries is computed from.
struct Tile {
  const BlockSparseArgs& args;
  const float* keys;    ///< [units][dim][16]
  const float* values;  ///< [panels][kv_len][16]
  WorkerMemory& memory;
  int64_t batch, head;
  const int32_t* q_order;
  const int32_t* kv_order;
  int64_t begin, rows;  ///< positions of the queries
};

int64_t map_of(const BlockLists& lists, int64_t batch, int64_t head) {
  return batch * lists.map_batch_stride + head * lists.map_head_stride;
}

const float* bias_of(const LogitBias& bias, int64_t batch, int64_t head) {
  return bias.data ? bias.data + batch * bias.batch_stride + head * bias.head_stride : nullptr;
}

/// Adds the biases to the logits of one slot and puts -inf where a row does not see a key. Whatever
/// stands there, also NaN, is replaced.
void finish_slot(const Tile& tile, const Slot& slot, float* logits) {
  const BlockSparseArgs& args = tile.args;
  const float* key_bias = bias_of(args.key_bias, tile.batch, tile.head);
  const float* bias = bias_of(args.bias, tile.batch, tile.head);
  const float log2e = static_cast<float>(kLog2E);
  int64_t key[kUnit] = {};
  float for_key[kUnit] = {};
  for (int i = slot.first; i < slot.last; ++i) {
    const int64_t position = slot.unit * kUnit + i;
    key[i] = tile.kv_order ? tile.kv_order[position] : position;
    if (key_bias) for_key[i] = key_bias[key[i] * args.key_bias.key_stride];
  }
  const uint32_t lanes = (1u << slot.last) - (1u << slot.first);
  for (int64_t r = 0; r < tile.rows; ++r) {
    float add[kUnit];
    for (int i = 0; i < kUnit; ++i) add[i] = for_key[i];
    if (bias) {
      const int64_t position = tile.begin + r;
      const int64_t row = tile.q_order ? tile.q_order[position] : position;
      const float* from = bias + row * args.bias.row_stride;
      for (int i = slot.first; i < slot.last; ++i) add[i] += from[key[i] * args.bias.key_stride];
    }
    uint32_t visible = lanes;
    for (int i = slot.first; slot.bits && i < slot.last; ++i) {
      const int64_t bit = slot.bit_of_lane_0 + i;
      const uint64_t word = slot.bits[r * slot.bit_words + bit / 64];
      visible &= ~(static_cast<uint32_t>(~(word >> (bit % 64)) & 1u) << i);
    }
    float* at = logits + r * kLogitStride;
    for (int i = 0; i < kUnit; ++i)
      at[i] = (visible >> i & 1u) != 0 ? at[i] + add[i] * log2e : -kInfinity;
  }
}

/// out = out * rescale + P V for the step's keys.
void add_values(const Tile& tile, const Step& step) {
  WorkerMemory& m = tile.memory;
  const BlockSparseArgs& args = tile.args;
  const int64_t panels = (args.value_dim + kUnit - 1) / kUnit;
  Run chunk[kStepUnits + 1];
  int64_t next = 0, taken = 0;  // the run to go on with, and how much of it is done
  bool first = true;
  while (next < step.num_runs) {
    int64_t count = 0;
    for (int64_t left = kChunkKeys; left > 0 && next < step.num_runs;) {
      const Run& run = step.runs[next];
      const int64_t now = std::min(left, run.count - taken);
      chunk[count++] = {run.column + taken, run.row + taken, now};
      left -= now;
      taken += now;
      if (taken == run.count) ++next, taken = 0;
    }
    for (int64_t p = 0; p < panels; p += kGroupUnits) {
      Panels v;
      v.count = std::min<int64_t>(kGroupUnits, panels - p);
      if (kGroupUnits == 1) v.columns = std::min(kUnit, args.value_dim - p * kUnit);
      for (int64_t u = 0; u < v.count; ++u)
        v.panel[u] = tile.values + (p + u) * kUnit * args.kv_len;
      multiply_tile<kLogitStride, kRowStride>(tile.rows, m.logits, v, {chunk, count},
                                              m.out + p * kUnit, m.rescale);
    }
    if (first) std::fill_n(m.rescale, tile.rows, 1.0f);
    first = false;
  }
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
    multiply_tile<kRowStride, kLogitStride>(tile.rows, m.q, k, {&all_channels, 1},
                                            m.logits + s * kUnit, nullptr);
  }
  const bool biased = args.key_bias.data || args.bias.data;
  for (int64_t s = 0; s < step.num_slots; ++s) {
    const Slot& slot = step.slots[s];
    if (biased || slot.bits || slot.last - slot.first < kUnit)
      finish_slot(tile, slot, m.logits + s * kUnit);
  }
  softmax_step(m, tile.rows, step.num_slots * kUnit);
  add_values(tile, step);
  step.num_slots = step.num_runs = 0;
}

/// A range of positions of keys that a tile sees.
struct KeyRange {
  int64_t begin = 0, end = 0;
  const uint64_t* bits = nullptr;
  int64_t bit_words = 0, bit_begin = 0;  ///< words of a row, position of the first bit
};

/// Adds the range to the step, and runs the step whenever it is full.
void add_range(const Tile& tile, const KeyRange& range, Step& step) {
  for (int64_t at = range.begin; at < range.end;) {
    const int64_t unit = at / kUnit;
    const int64_t end = std::min((unit + 1) * kUnit, range.end);
    if (step.num_slots == kStepUnits) run_step(tile, step);
    const int64_t column = step.num_slots * kUnit + at - unit * kUnit;
    Run* last = step.num_runs > 0 ? &step.runs[step.num_runs - 1] : nullptr;
    if (last && last->column + last->count == column && last->row + last->count == at) {
      last->count += end - at;
    } else {
      step.runs[step.num_runs++] = {column, at, end - at};
    }
    step.slots[step.num_slots++] = {unit,
                                    static_cast<int>(at - unit * kUnit),
                                    static_cast<int>(end - unit * kUnit),
                                    range.bits,
                                    range.bit_words,
                                    unit * kUnit - range.bit_begin};
    at = end;
  }
}

/// Runs over the tile's list; ranges that touch become one, so that no unit is computed twice.
void run_list(const Tile& tile, int64_t map, int64_t block) {
  const BlockLists& lists = tile.args.lists;
  const int64_t row = map * (lists.num_q_blocks + 1) + block;
  const int32_t* offsets = lists.kv_offsets + map * (lists.num_kv_blocks + 1);
  const int64_t first_row = tile.begin - lists.q_offsets[row];
  Step step;
  KeyRange range;
  for (int64_t i = lists.row_ptr[row]; i < lists.row_ptr[row + 1]; ++i) {
    const int64_t index = lists.kv_index[i];
    const int64_t size = offsets[index + 1] - offsets[index];
    const int64_t len =
        lists.kv_block_len ? lists.kv_block_len[map * lists.num_kv_blocks + index] : size;
    KeyRange next{offsets[index], offsets[index] + len};
    if (lists.bits_offset && lists.bits_offset[i] >= 0) {
      next.bit_words = (size + 63) / 64;
      next.bits = lists.bits + lists.bits_offset[i] + first_row * next.bit_words;
      next.bit_begin = next.begin;
    }
    if (len == 0) continue;
    if (!next.bits && !range.bits && next.begin == range.end) {
      range.end = next.end;
      continue;
    }
    add_range(tile, range, step);
    range = next;
  }
  add_range(tile, range, step);
  run_step(tile, step);
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
    const Floats factor = broadcast(sum == 0.0f ? 0.0f : 1.0f / sum);
    for (int64_t c = 0; c < args.value_dim; c += kUnit) {
      T* to = out + row * args.out.row_stride + c;
      const Floats values = load(m.out + r * kRowStride + c) * factor;
      const int64_t channels = std::min(kUnit, args.value_dim - c);
      if (channels == kUnit) {
        store(to, values);
      } else {
        store_tail(to, values, channels);
      }
    }
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
  std::atomic<int64_t> next_task = 0;
  int64_t num_tasks = 0;

  float* keys(int64_t pair) const {
    return packed + pair * (layout.key_floats + layout.value_floats);
  }
  float* values(int64_t pair) const { return keys(pair) + layout.key_floats; }
};

void count_tiles(Job& job) {
  const BlockLists& lists = job.args.lists;
  for (int64_t map = 0; map < lists.maps; ++map) {
    const int64_t at = map * (lists.num_q_blocks + 1);
    job.tile_starts[at] = 0;
    for (int64_t i = at; i < at + lists.num_q_blocks; ++i) {
      const int64_t rows = lists.q_offsets[i + 1] - lists.q_offsets[i];
      job.tile_starts[i + 1] = static_cast<int32_t>(job.tile_starts[i] + tiles_of(rows));
    }
  }
}

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
  pack_values(values, args, begin, end, job.values(pair));
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
  const Tile t{args,
               job.keys(pair),
               job.values(pair),
               memory,
               batch,
               head,
               order_of(args.q_order, batch, head),
               order_of(args.kv_order, batch, head / group),
               begin,
               end - begin};
  load_queries(head_view<T>(args.q, args.q_order, batch, head), begin, t.rows, args.dim,
               double{args.sm_scale} * kLog2E, memory.q);
  std::fill_n(memory.row_max, t.rows, -kInfinity);
  std::fill_n(memory.row_sum, t.rows, 0.0f);
  const int64_t width = (args.value_dim + kUnit - 1) / kUnit * kUnit;
  for (int64_t r = 0; r < t.rows; ++r) std::fill_n(memory.out + r * kRowStride, width, 0.0f);
  run_list(t, map, block);
  store_results<T>(t);
}

/// Lets the workers take tasks until none is left: f(job, task, worker's memory).
template <typename F>
void run_tasks(Job& job, const Parallel& parallel, int64_t count, F) {
  job.next_task = 0;
  job.num_tasks = count;
  const auto work = [](void* state, int64_t worker) {
    Job& shared = *static_cast<Job*>(state);
    constexpr int64_t kBytes = (int64_t{sizeof(WorkerMemory)} + 63) / 64 * 64;
    auto* memory = new (shared.workers + worker * kBytes) WorkerMemory;
    for (int64_t task; (task = shared.next_task.fetch_add(1)) < shared.num_tasks;)
      F{}(shared, task, *memory);
  };
  const int64_t workers = std::min<int64_t>(std::max(parallel.threads, 1), count);
  if (workers <= 0) return;
  if (parallel.run && workers > 1) {
    parallel.run(parallel.context, workers, work, &job);
  } else {
    work(&job, 0);
  }
}

}  // namespace

void block_sparse(const BlockSparseArgs& args, const WorkLayout& layout, unsigned char* memory,
                  const Parallel& parallel) {
  Job job{args, layout, reinterpret_cast<int32_t*>(memory + layout.tile_starts_at),
          reinterpret_cast<float*>(memory + layout.packed_at), memory + layout.workers_at};
  count_tiles(job);
  const int64_t pairs = args.batch * args.kv_heads;
  for (int64_t first = 0; first < pairs && layout.tiles > 0; first += layout.wave_heads) {
    job.first_pair = first;
    job.num_pairs = std::min(layout.wave_heads, pairs - first);
    const int64_t tiles = job.num_pairs * (args.heads / args.kv_heads) * layout.tiles;
    with_type(args.q.dtype, [&](auto* type) {
      using T = std::remove_pointer_t<decltype(type)>;
      run_tasks(job, parallel, job.num_pairs * pack_chunks(args),
                [](const Job& j, int64_t task, WorkerMemory&) { pack_task<T>(j, task); });
      run_tasks(job, parallel, tiles, [](const Job& j, int64_t task, WorkerMemory& worker) {
        tile_task<T>(j, task, worker);
      });
    });
  }
}

}  // namespace fovea::kernels::FOVEA_ISA
