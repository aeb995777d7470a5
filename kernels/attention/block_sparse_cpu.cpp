#include <atomic>
#include <new>
#include <optional>

#include "kernels/attention/cpu_variants.h"
#include "kernels/attention/panels_cpu.h"
#include "kernels/attention/steps_cpu.h"
#include "kernels/attention/tasks_cpu.h"
#include "kernels/attention/tile_cpu.h"
#include "kernels/attention/weights_cpu.h"

namespace fovea::kernels::FOVEA_ISA {
namespace {

constexpr int64_t kPackUnits = 32;  // keys packed by one task, in units

/// In what numbers a problem is computed: how keys and how values are multiplied.
template <typename K, typename V>
struct Numbers {
  using Keys = K;
  using Values = V;
};

/// What a tile of queries is computed from.
struct Tile : QueryTile {
  int64_t map, block;       ///< of the lists
  const float* keys;        ///< [units][dim in 32-bit units][16]
  const float* key_scales;  ///< [units][16], of integers
  const float* values;      ///< [panels][rows][16]
  int64_t value_rows;       ///< a row is a position, or a pair of them
  WorkerMemory& memory;
  float* tops;  ///< [entries of the block][kTileRows] largest logits, of quantized weights
};

/// Four panels of V at most, from the given one on.
inline Panels value_panels(const Tile& tile, int64_t first) {
  const int64_t panels = (tile.args.value_dim + kUnit - 1) / kUnit;
  Panels v;
  v.count = std::min<int64_t>(kGroupUnits, panels - first);
  if (kGroupUnits == 1) v.columns = std::min(kUnit, tile.args.value_dim - first * kUnit);
  for (int64_t u = 0; u < v.count; ++u)
    v.panel[u] = tile.values + (first + u) * kUnit * tile.value_rows;
  return v;
}

/// out = out * rescale + P V for runs of columns of P and rows of the panels; the next call does
/// not rescale again.
template <typename P>
void add_runs(const Tile& tile, const Runs& runs) {
  WorkerMemory& m = tile.memory;
  const int64_t panels = (tile.args.value_dim + kUnit - 1) / kUnit;
  for (int64_t p = 0; p < panels; p += kGroupUnits) {
    multiply_tile<P, Strides<kLogitStride, 1, kUnit, kRowStride>>(
        tile.rows, m.logits, value_panels(tile, p), runs, m.out + p * kUnit,
        RescaleAndAddSums{m.rescale});
  }
  std::fill_n(m.rescale, tile.rows, 1.0f);
}

/// out = out * rescale + P V for the step's keys.
void add_values(const Tile& tile, const Step& step, FloatProduct) {
  for_each_chunk(step.runs, step.num_runs,
                 [&](const Runs& chunk) { add_runs<FloatProduct>(tile, chunk); });
}

#if defined(__AVX512BF16__)
/// One key, for the half of a pair whose other half is not to be touched.
void add_single_value(const Tile& tile, int64_t column, int64_t position) {
  WorkerMemory& m = tile.memory;
  const int shift = position % 2 == 0 ? 16 : 0;
  for (int64_t c = 0; c < tile.args.value_dim; c += kUnit) {
    Word pairs;
    std::memcpy(&pairs, tile.values + c * tile.value_rows + position / 2 * kUnit, sizeof(pairs));
    const Word bits = pairs << shift & 0xffff0000u;
    Float value;
    std::memcpy(&value, &bits, sizeof(value));
    for (int64_t r = 0; r < tile.rows; ++r) {
      BFloat16 p;
      std::memcpy(&p, reinterpret_cast<const char*>(m.logits + r * kLogitStride) + 2 * column, 2);
      float* out = m.out + r * kRowStride + c;
      Float sum;
      std::memcpy(&sum, out, sizeof(sum));
      sum += to_float(p) * value;
      std::memcpy(out, &sum, sizeof(sum));
    }
  }
}

void add_values(const Tile& tile, const Step& step, BFloat16Product) {
  Run pairs[kStepUnits];
  int64_t num_pairs = 0;
  for (int64_t i = 0; i < step.num_runs; ++i) {
    const Run& run = step.runs[i];
    const int64_t odd = run.row % 2, count = (run.count - odd) / 2;
    if (count > 0) pairs[num_pairs++] = {(run.column + odd) / 2, (run.row + odd) / 2, count};
  }
  if (num_pairs == 0) add_runs<BFloat16Product>(tile, {pairs, 0});
  for_each_chunk(pairs, num_pairs,
                 [&](const Runs& chunk) { add_runs<BFloat16Product>(tile, chunk); });
  for (int64_t i = 0; i < step.num_runs; ++i) {
    const Run& run = step.runs[i];
    const int64_t odd = run.row % 2, last = run.count - 1;
    if (odd != 0) add_single_value(tile, run.column, run.row);
    if (run.count > odd && (run.count - odd) % 2 != 0)
      add_single_value(tile, run.column + last, run.row + last);
  }
}
#endif

/// What makes products of up to four slots base-2 logits.
KeepSums logits_of(const Tile&, const Slot*, int64_t, FloatProduct) { return {}; }

#if defined(__AVX512BF16__)
ScaleSums logits_of(const Tile& tile, const Slot*, int64_t, BFloat16Product) {
  return {static_cast<float>(tile.args.sm_scale * kLog2E)};
}
#endif

#if defined(__AVX512VNNI__)
ScaleIntegers logits_of(const Tile& tile, const Slot* slots, int64_t count, Int8Product) {
  ScaleIntegers out{tile.memory.q_scale, tile.memory.q_offset, {}};
  for (int64_t u = 0; u < count; ++u) out.column_scale[u] = tile.key_scales + slots[u].unit * kUnit;
  return out;
}
#endif

template <typename V>
struct ProbabilitiesFor {
  using Storage = KeepFloats;
};

#if defined(__AVX512BF16__)
template <>
struct ProbabilitiesFor<BFloat16Product> {
  using Storage = RoundToBFloat16;
};
#endif

/// Whether the keys of a unit are multiplied as fp32 although others are not.
template <typename Keys>
bool is_wide(const BlockSparseArgs& args, int64_t unit) {
  return Keys::kNumbers > 1 && args.more.k.data && unit * kUnit >= args.more.begin;
}

/// Where a packed unit of keys begins: those that are wide come last.
template <typename Keys>
int64_t key_unit_at(const BlockSparseArgs& args, int64_t unit) {
  const int64_t channels = (args.dim + Keys::kNumbers - 1) / Keys::kNumbers;
  if (!is_wide<Keys>(args, unit)) return unit * kUnit * channels;
  return args.more.begin * channels + (unit * kUnit - args.more.begin) * args.dim;
}

/// The logits of up to four slots from number `first` on; returns how many.
template <typename Keys>
int64_t multiply_slots(const Tile& tile, const Step& step, int64_t first) {
  using S = Strides<kRowStride, 1, kUnit, kLogitStride>;
  WorkerMemory& m = tile.memory;
  const BlockSparseArgs& args = tile.args;
  const bool wide = is_wide<Keys>(args, step.slots[first].unit);
  Panels k;
  for (k.count = 0; k.count < std::min<int64_t>(kGroupUnits, step.num_slots - first); ++k.count) {
    const int64_t unit = step.slots[first + k.count].unit;
    if (is_wide<Keys>(args, unit) != wide) break;
    k.panel[k.count] = tile.keys + key_unit_at<Keys>(args, unit);
  }
  float* logits = m.logits + first * kUnit;
  if (Keys::kNumbers > 1 && wide) {
    const Run all_channels{0, 0, args.dim};
    multiply_tile<FloatProduct, S>(tile.rows, m.q_wide, k, {&all_channels, 1}, logits, KeepSums());
  } else {
    const Run all_channels{0, 0, (args.dim + Keys::kNumbers - 1) / Keys::kNumbers};
    multiply_tile<Keys, S>(tile.rows, m.q, k, {&all_channels, 1}, logits,
                           logits_of(tile, step.slots + first, k.count, Keys()));
  }
  return k.count;
}

/// Base-2 logits of the step's keys.
template <typename Keys>
void step_logits(const Tile& tile, const Step& step) {
  WorkerMemory& m = tile.memory;
  const BlockSparseArgs& args = tile.args;
  for (int64_t s = 0; s < step.num_slots;) s += multiply_slots<Keys>(tile, step, s);
  const bool biased = args.key_bias.data || args.bias.data;
  for (int64_t s = 0; s < step.num_slots; ++s) {
    const Slot& slot = step.slots[s];
    if (biased || slot.bits || slot.last - slot.first < kUnit)
      finish_slot(tile, slot, m.logits + s * kUnit, kLogitStride);
  }
}

template <typename N, typename Storage>
void run_step(const Tile& tile, const Step& step) {
  step_logits<typename N::Keys>(tile, step);
  softmax_step<Storage>(tile.memory, tile.rows, step.num_slots * kUnit);
  add_values(tile, step, typename N::Values());
}

/// Runs over the tile's list: f(step) for its keys, as many of them at a time as a step takes.
template <typename F>
void run_list(const Tile& tile, F f) {
  Step step;
  const auto run = [&] {
    if (step.num_slots == 0) return;
    f(step);
    step.num_slots = step.num_runs = 0;
  };
  for_each_range(tile, tile.map, tile.block, {0, tile.args.kv_len},
                 [&](const KeyRange& range) { add_range(range, step, run); });
  run();
}

/// Of quantized weights: the largest logits so far of each row, and of it for each entry.
void find_largest(const Tile& tile, const Step& step) {
  WorkerMemory& m = tile.memory;
  const int64_t first =
      tile.args.lists.row_ptr[tile.map * (tile.args.lists.num_q_blocks + 1) + tile.block];
  for (int64_t r = 0; r < tile.rows; ++r) {
    for (int64_t s = 0; s < step.num_slots; ++s) {
      const float* logits = m.logits + r * kLogitStride + s * kUnit;
      Float most = -kInfinity - Float{};
      for (int64_t i = 0; i < kUnit; i += kWidth) {
        Float x;
        std::memcpy(&x, logits + i, sizeof(x));
        most = max_or_second(x, most);
      }
      const float top = fold(most, [](float a, float b) { return a > b ? a : b; });
      m.row_max[r] = std::max(m.row_max[r], top);
      if (!tile.args.weights.per_entry) continue;
      float& of_entry = tile.tops[(step.slots[s].entry - first) * kTileRows + r];
      of_entry = std::max(of_entry, top);
    }
  }
}

/// Base-2 logits become quantized weights.
template <typename Format>
void quantize_weights(const Tile& tile, const Step& step) {
  WorkerMemory& m = tile.memory;
  WeightScale scales[kStepUnits];
  weight_scales<Format>(tile, step, scales);
  for (int64_t r = 0; r < tile.rows; ++r) {
    const float from = weight_origin(m.row_max[r]);
    Float sum = {};
    for (int64_t s = 0; s < step.num_slots; ++s) {
      float* logits = m.logits + r * kLogitStride + s * kUnit;
      for (int64_t i = 0; i < kUnit; i += kWidth) {
        Float p;
        std::memcpy(&p, logits + i, sizeof(p));
        p = quantized<Format>(exp2_of_negative(p - from), scales[s]);
        sum += p;
        std::memcpy(logits + i, &p, sizeof(p));
      }
    }
    m.row_weight[r] = m.row_sum[r] += fold(sum, [](float a, float b) { return a + b; });
    m.rescale[r] = 1;
  }
}

template <typename Keys>
void run_quantized_step(const Tile& tile, const Step& step) {
  step_logits<Keys>(tile, step);
  with_weights(tile.args.weights.format,
               [&](auto format) { quantize_weights<decltype(format)>(tile, step); });
  add_values(tile, step, FloatProduct());
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
    const float sum = m.row_sum[r], weight = m.row_weight[r];
    store_row(m.out + r * kRowStride, args.value_dim, weight == 0.0f ? 0.0 : 1.0 / weight,
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
  float* tops;
  int64_t first_pair = 0, num_pairs = 0;  ///< of this wave

  float* keys(int64_t pair) const { return packed + pair * layout.pair_floats(); }
  float* key_scales(int64_t pair) const { return keys(pair) + layout.key_floats; }
  float* values(int64_t pair) const { return key_scales(pair) + layout.scale_floats; }
  WorkerMemory& memory(int64_t worker) const {
    constexpr int64_t kBytes = (int64_t{sizeof(WorkerMemory)} + 63) / 64 * 64;
    return *new (workers + worker * kBytes) WorkerMemory;
  }
};

int64_t pack_chunks(const BlockSparseArgs& args) {
  return (args.kv_len + kPackUnits * kUnit - 1) / (kPackUnits * kUnit);
}

/// The tensors of (batch, head) whose numbers are T or, where T is int8_t, scaled integers.
template <typename T>
HeadView<T> query_view(const BlockSparseArgs& args, int64_t batch, int64_t head) {
  if constexpr (std::is_same_v<T, int8_t>) {
    return head_view(args.q_int8, args.q_order, batch, head);
  } else {
    return head_view<T>(args.q, args.q_order, batch, head);
  }
}

template <typename T>
HeadView<T> key_view(const BlockSparseArgs& args, int64_t batch, int64_t head) {
  if constexpr (std::is_same_v<T, int8_t>) {
    return head_view(args.k_int8, args.kv_order, batch, head);
  } else {
    return key_head_view<T>(args.k, args.more.k, args, batch, head);
  }
}

template <typename V>
int64_t value_rows(const BlockSparseArgs& args) {
  return (args.kv_len + V::kNumbers - 1) / V::kNumbers;
}

/// K: the numbers of queries and keys; V: those of values and results.
template <typename N, typename K, typename V>
void pack_task(const Job& job, int64_t task) {
  using Keys = typename N::Keys;
  using Values = typename N::Values;
  const BlockSparseArgs& args = job.args;
  const int64_t pair = task / pack_chunks(args), chunk = task % pack_chunks(args);
  const int64_t batch = (job.first_pair + pair) / args.kv_heads;
  const int64_t head = (job.first_pair + pair) % args.kv_heads;
  const int64_t begin = chunk * kPackUnits * kUnit;
  const int64_t end = std::min(begin + kPackUnits * kUnit, args.kv_len);
  const HeadView<K> keys = key_view<K>(args, batch, head);
  for (int64_t unit = begin / kUnit; unit * kUnit < end; ++unit) {
    float* to = job.keys(pair) + key_unit_at<Keys>(args, unit);
    if (Keys::kNumbers == 1 || is_wide<Keys>(args, unit)) {
      pack_key_unit(keys, args.kv_len, args.dim, unit, to);
    } else {
      pack_raw_key_unit(keys, own_keys(args), args.dim, unit, to);
    }
  }
  if constexpr (Keys::kNumbers == 4) {
    float* scales = job.key_scales(pair);
    for (int64_t at = begin; at < end; ++at) scales[at] = keys.scale[keys.row(at)];
    for (int64_t at = end; at % kUnit != 0; ++at) scales[at] = 0;
  }
  const auto values = key_head_view<V>(args.v, args.more.v, args, batch, head);
  float* to = job.values(pair) + begin / Values::kNumbers * kUnit;
  if constexpr (Values::kNumbers == 1) {
    pack_values(values, args.value_dim, args.kv_len, {begin, end}, to);
  } else {
    pack_value_pairs(values, args.value_dim, value_rows<Values>(args), {begin, end}, to);
  }
}

template <typename N, typename K>
void load_tile_queries(const Tile& tile) {
  const BlockSparseArgs& args = tile.args;
  WorkerMemory& m = tile.memory;
  const HeadView<K> queries = query_view<K>(args, tile.batch, tile.head);
  const double scale = args.sm_scale * kLog2E;
  if constexpr (N::Keys::kNumbers == 1) {
    load_queries(queries, tile.begin, tile.rows, args.dim, scale, m.q);
  } else {
    load_raw_queries(queries, tile.begin, tile.rows, args.dim, m.q);
    if (args.more.k.data) {
      load_queries(queries, tile.begin, tile.rows, args.dim, scale, m.q_wide);
    }
  }
  if constexpr (N::Keys::kNumbers == 4) {
    // Keys are packed with 128 more than they are.
    for (int64_t r = 0; r < tile.rows; ++r) {
      const int8_t* row = queries.at(tile.begin + r);
      int32_t sum = 0;
      for (int64_t c = 0; c < args.dim; ++c) sum += row[c];
      m.q_offset[r] = -128 * sum;
      m.q_scale[r] = static_cast<float>(queries.scale[queries.row(tile.begin + r)] * scale);
    }
  }
}

/// A tile of the wave, or none where its head has fewer.
template <typename N>
std::optional<Tile> tile_of(const Job& job, int64_t task, int64_t worker) {
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
  if (tile >= starts[lists.num_q_blocks]) return std::nullopt;
  const int64_t block =
      std::upper_bound(starts, starts + lists.num_q_blocks + 1, tile) - starts - 1;
  const int32_t* offsets = lists.q_offsets + map * (lists.num_q_blocks + 1) + block;
  const int64_t size = offsets[1] - offsets[0], tiles = starts[block + 1] - starts[block];
  const int64_t begin = offsets[0] + size * (tile - starts[block]) / tiles;
  const int64_t end = offsets[0] + size * (tile - starts[block] + 1) / tiles;
  return Tile{{args, batch, head, order_of(args.q_order, batch, head),
               order_of(args.kv_order, batch, head / group), begin, end - begin},
              map,
              block,
              job.keys(pair),
              job.key_scales(pair),
              job.values(pair),
              value_rows<typename N::Values>(args),
              job.memory(worker),
              job.tops + worker * job.layout.tops_floats};
}

void clear_sums(const Tile& tile) {
  WorkerMemory& m = tile.memory;
  std::fill_n(m.row_max, tile.rows, -kInfinity);
  std::fill_n(m.row_sum, tile.rows, 0.0f);
  std::fill_n(m.row_weight, tile.rows, 0.0f);
  const int64_t width = (tile.args.value_dim + kUnit - 1) / kUnit * kUnit;
  for (int64_t r = 0; r < tile.rows; ++r) std::fill_n(m.out + r * kRowStride, width, 0.0f);
}

template <typename N, typename K, typename V, typename Storage>
void tile_task(const Job& job, int64_t task, int64_t worker) {
  const std::optional<Tile> tile = tile_of<N>(job, task, worker);
  if (!tile) return;
  load_tile_queries<N, K>(*tile);
  clear_sums(*tile);
  run_list(*tile, [&](const Step& step) { run_step<N, Storage>(*tile, step); });
  store_results<V>(*tile);
}

/// What the tile's rows say of the factors of their block's entries.
void add_largest(const Tile& tile) {
  const QuantizedWeights& weights = tile.args.weights;
  const WorkerMemory& m = tile.memory;
  const int64_t* row =
      tile.args.lists.row_ptr + tile.map * (tile.args.lists.num_q_blocks + 1) + tile.block;
  float* largest = weights.largest + tile.batch * weights.largest_batch_stride +
                   tile.head * weights.largest_head_stride;
  for (int64_t i = row[0]; i < row[1]; ++i) {
    float most = 0;
    for (int64_t r = 0; r < tile.rows; ++r) {
      const int64_t position = tile.begin + r;
      const int64_t at = tile.q_order ? tile.q_order[position] : position;
      if (weights.counted && weights.counted[tile.batch * tile.args.q_len + at] == 0) continue;
      const float top = tile.tops[(i - row[0]) * kTileRows + r];
      most = std::max(most, exp2_of_negative(top - weight_origin(m.row_max[r])));
    }
    // The other tiles of the block do the same.
    std::atomic_ref<float> all(largest[i]);
    float before = all.load(std::memory_order_relaxed);
    while (before < most && !all.compare_exchange_weak(before, most, std::memory_order_relaxed)) {
    }
  }
}

/// The largest logits of a tile's rows, before any weight is quantized.
template <typename N, typename K>
void find_task(const Job& job, int64_t task, int64_t worker) {
  const std::optional<Tile> tile = tile_of<N>(job, task, worker);
  if (!tile) return;
  const BlockSparseArgs& args = job.args;
  WorkerMemory& m = tile->memory;
  load_tile_queries<N, K>(*tile);
  std::fill_n(m.row_max, tile->rows, -kInfinity);
  std::fill_n(tile->tops, job.layout.tops_floats, -kInfinity);
  run_list(*tile, [&](const Step& step) {
    step_logits<typename N::Keys>(*tile, step);
    find_largest(*tile, step);
  });
  float* row_max = args.weights.row_max + (tile->batch * args.heads + tile->head) * args.q_len;
  for (int64_t r = 0; r < tile->rows; ++r) {
    const int64_t position = tile->begin + r;
    row_max[tile->q_order ? tile->q_order[position] : position] = m.row_max[r];
  }
  if (args.weights.per_entry) add_largest(*tile);
}

template <typename N, typename K, typename V>
void quantized_task(const Job& job, int64_t task, int64_t worker) {
  const std::optional<Tile> tile = tile_of<N>(job, task, worker);
  if (!tile) return;
  const BlockSparseArgs& args = job.args;
  load_tile_queries<N, K>(*tile);
  clear_sums(*tile);
  const float* row_max =
      args.weights.row_max + (tile->batch * args.heads + tile->head) * args.q_len;
  for (int64_t r = 0; r < tile->rows; ++r) {
    const int64_t position = tile->begin + r;
    tile->memory.row_max[r] = row_max[tile->q_order ? tile->q_order[position] : position];
  }
  run_list(*tile, [&](const Step& step) { run_quantized_step<typename N::Keys>(*tile, step); });
  store_results<V>(*tile);
}

template <typename N, typename K, typename V, typename Storage>
void run_tiles(Job& job, const Parallel& parallel, int64_t tiles) {
  run_tasks(job, parallel, tiles, [](const Job& j, int64_t task, int64_t worker) {
    tile_task<N, K, V, Storage>(j, task, worker);
  });
}

/// All tiles of a wave whose weights are quantized: what is the largest of a unit is known first.
template <typename N, typename K, typename V>
void run_quantized_tiles(Job& job, const Parallel& parallel, int64_t tiles) {
  if (!job.args.weights.needs_largest()) {
    run_tiles<N, K, V, FourBitStorage>(job, parallel, tiles);
    return;
  }
  run_tasks(job, parallel, tiles,
            [](const Job& j, int64_t task, int64_t worker) { find_task<N, K>(j, task, worker); });
  run_tasks(job, parallel, tiles, [](const Job& j, int64_t task, int64_t worker) {
    quantized_task<N, K, V>(j, task, worker);
  });
}

template <typename N, typename K, typename V>
void run_waves(Job& job, const Parallel& parallel) {
  const BlockSparseArgs& args = job.args;
  const int64_t pairs = args.batch * args.kv_heads;
  for (int64_t first = 0; first < pairs && job.layout.tiles > 0; first += job.layout.wave_heads) {
    job.first_pair = first;
    job.num_pairs = std::min(job.layout.wave_heads, pairs - first);
    const int64_t tiles = job.num_pairs * (args.heads / args.kv_heads) * job.layout.tiles;
    run_tasks(job, parallel, job.num_pairs * pack_chunks(args),
              [](const Job& j, int64_t task, int64_t) { pack_task<N, K, V>(j, task); });
    if constexpr (std::is_same_v<V, float>) {
      if (args.weights.format != WeightFormat::none) {
        run_quantized_tiles<N, K, V>(job, parallel, tiles);
        continue;
      }
    }
    using Storage = typename ProbabilitiesFor<typename N::Values>::Storage;
    run_tiles<N, K, V, Storage>(job, parallel, tiles);
  }
}

// The fastest products for numbers of a type.
template <typename V>
struct ProductFor {
  using Values = FloatProduct;
};

#if defined(__AVX512BF16__)
template <>
struct ProductFor<BFloat16> {
  using Values = BFloat16Product;
};
#endif

#if defined(__AVX512VNNI__)
using IntegerProduct = Int8Product;
#else
using IntegerProduct = FloatProduct;
#endif

void clear_largest(const BlockSparseArgs& args) {
  const QuantizedWeights& weights = args.weights;
  for (int64_t i = 0; weights.per_entry && i < args.batch * args.heads; ++i) {
    std::fill_n(weights.largest + i / args.heads * weights.largest_batch_stride +
                    i % args.heads * weights.largest_head_stride,
                args.lists.num_entries, 0.0f);
  }
}

}  // namespace

void block_sparse(const BlockSparseArgs& args, const WorkLayout& layout, unsigned char* memory,
                  const Parallel& parallel) {
  Job job{args,
          layout,
          reinterpret_cast<int32_t*>(memory + layout.tile_starts_at),
          reinterpret_cast<float*>(memory + layout.packed_at),
          memory + layout.workers_at,
          reinterpret_cast<float*>(memory + layout.tops_at)};
  if (args.weights.format != WeightFormat::none) clear_largest(args);
  count_tiles(args.lists, job.tile_starts);
  with_type(args.out.dtype, [&](auto* type) {
    using V = std::remove_pointer_t<decltype(type)>;
    using Values = typename ProductFor<V>::Values;
    if (args.k_int8.data) {
      run_waves<Numbers<IntegerProduct, Values>, int8_t, V>(job, parallel);
    } else {
      run_waves<Numbers<Values, Values>, V, V>(job, parallel);
    }
  });
}

}  // namespace fovea::kernels::FOVEA_ISA
