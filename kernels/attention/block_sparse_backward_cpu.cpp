#include <atomic>
#include <new>
#include <thread>

#include "kernels/attention/cpu_variants.h"
#include "kernels/attention/panels_cpu.h"
#include "kernels/attention/steps_cpu.h"
#include "kernels/attention/tasks_cpu.h"
#include "kernels/attention/tile_cpu.h"
#include "kernels/attention/weights_cpu.h"

namespace fovea::kernels::FOVEA_ISA {
namespace {

constexpr int64_t kTaskRows = 512;  // queries whose sums one task prepares or stores

/// What all tasks share.
struct Job {
  const BlockSparseBackwardArgs& args;
  const BackwardLayout& layout;
  int32_t* tile_starts;  ///< [maps, num_q_blocks + 1]
  int32_t* done;         ///< [heads of the wave][tiles] chunks that have added to the tile's sums
  float* delta;          ///< [heads of the wave][q_len] by position
  float* grad_q;         ///< [heads of the wave][q_len][q_width] by position
  unsigned char* workers;
  int64_t first_pair = 0, num_pairs = 0;  ///< of this wave

  int64_t group() const { return args.forward.heads / args.forward.kv_heads; }
  int64_t batch_of(int64_t pair) const { return (first_pair + pair) / args.forward.kv_heads; }
  int64_t kv_head_of(int64_t pair) const { return (first_pair + pair) % args.forward.kv_heads; }
};

/// The buffers of a chunk of keys.
struct ChunkMemory {
  float* keys;        ///< [units][dim][16]
  float* values;      ///< [units][value_dim][16]
  float* key_panels;  ///< [panels][chunk_keys][16]
  float* grad_k;      ///< [chunk_keys][kRowStride], over ln 2
  float* grad_v;      ///< [chunk_keys][kRowStride]
  float* grad_bias;   ///< [chunk_keys], of one head
};

/// A tile of queries and a chunk of keys.
struct Tile : QueryTile {
  const Job& job;
  Span chunk;
  const ChunkMemory& keys;
  BackwardTileMemory& memory;
};

ChunkMemory chunk_memory(const Job& job, int64_t worker) {
  const BlockSparseArgs& f = job.args.forward;
  const int64_t count = job.layout.chunk_keys;
  ChunkMemory out;
  out.keys = reinterpret_cast<float*>(job.workers + worker * job.layout.worker_bytes +
                                      aligned(sizeof(BackwardTileMemory)));
  out.values = out.keys + count * f.dim;
  out.key_panels = out.values + count * f.value_dim;
  out.grad_k = out.key_panels + count * job.layout.q_width;
  out.grad_v = out.grad_k + count * kRowStride;
  out.grad_bias = out.grad_v + count * kRowStride;
  return out;
}

HeadRows read_only(const MutableHeadRows& rows) {
  return {rows.data, rows.dtype, rows.batch_stride, rows.head_stride, rows.row_stride};
}

template <typename T>
T* head_of(const MutableHeadRows& rows, int64_t batch, int64_t head) {
  return static_cast<T*>(rows.data) + batch * rows.batch_stride + head * rows.head_stride;
}

/// The right side of a product: columns in panels that begin `apart` floats from each other.
struct PanelMatrix {
  const float* data;
  int64_t apart, columns;
};

/// C += A B.
template <typename S>
void add_product(int64_t rows, const float* a, const PanelMatrix& b, const Runs& runs, float* c) {
  const int64_t count = (b.columns + kUnit - 1) / kUnit;
  for (int64_t p = 0; p < count; p += kGroupUnits) {
    Panels panels;
    panels.count = std::min<int64_t>(kGroupUnits, count - p);
    if (kGroupUnits == 1) panels.columns = std::min(kUnit, b.columns - p * kUnit);
    for (int64_t u = 0; u < panels.count; ++u) panels.panel[u] = b.data + (p + u) * b.apart;
    multiply_tile<FloatProduct, S>(rows, a, panels, runs, c + p * kUnit, AddSums());
  }
}

/// Logits or gradients of probabilities: rows times the step's units, which have `channels`
/// channels and begin with the chunk.
void pair_products(const Tile& tile, const Step& step, const float* rows, const float* units,
                   int64_t channels, float* to) {
  const Run all_channels{0, 0, channels};
  const int64_t first_unit = tile.chunk.begin / kUnit;
  for (int64_t s = 0; s < step.num_slots; s += kGroupUnits) {
    Panels b;
    b.count = std::min<int64_t>(kGroupUnits, step.num_slots - s);
    for (int64_t u = 0; u < b.count; ++u)
      b.panel[u] = units + (step.slots[s + u].unit - first_unit) * kUnit * channels;
    multiply_tile<FloatProduct, Strides<kRowStride, 1, kUnit, kPairStride>>(
        tile.rows, rows, b, {&all_channels, 1}, to + s * kUnit, KeepSums());
  }
}

/// Base-2 logits become probabilities; their gradients become those of the logits.
void pair_gradients(BackwardTileMemory& m, int64_t rows, int64_t columns) {
  for (int64_t r = 0; r < rows; ++r) {
    const Float high = m.lse_high[r] - Float{}, low = m.lse_low[r] - Float{};
    const Float delta = m.delta[r] - Float{};
    for (int64_t j = r * kPairStride; j < r * kPairStride + columns; j += kWidth) {
      Float p, ds;
      std::memcpy(&p, m.p + j, sizeof(p));
      std::memcpy(&ds, m.ds + j, sizeof(ds));
      p = exp2_of_negative((p - high) - low);
      ds = p * (ds - delta);
      std::memcpy(m.p + j, &p, sizeof(p));
      std::memcpy(m.ds + j, &ds, sizeof(ds));
    }
  }
}

/// The same for quantized weights: p becomes quantized ones, over the row's sum.
///
/// round  of weights and the number of their unit among the step's
template <typename F>
void quantized_pair_gradients(const Tile& tile, const Step& step, F round) {
  BackwardTileMemory& m = tile.memory;
  for (int64_t r = 0; r < tile.rows; ++r) {
    const float from = weight_origin(m.row_max[r]), inverse = m.inverse_sum[r], delta = m.delta[r];
    for (int64_t j = 0; j < step.num_slots * kUnit; j += kWidth) {
      const int64_t at = r * kPairStride + j;
      Float p, ds;
      std::memcpy(&p, m.p + at, sizeof(p));
      std::memcpy(&ds, m.ds + at, sizeof(ds));
      p = exp2_of_negative(p - from);
      ds = p * inverse * (ds - delta);
      p = round(p, j / kUnit) * inverse;
      std::memcpy(m.p + at, &p, sizeof(p));
      std::memcpy(m.ds + at, &ds, sizeof(ds));
    }
  }
}

void all_pair_gradients(const Tile& tile, const Step& step) {
  const QuantizedWeights& weights = tile.args.weights;
  if (weights.format == WeightFormat::none) {
    pair_gradients(tile.memory, tile.rows, step.num_slots * kUnit);
  } else if (!weights.needs_largest()) {
    quantized_pair_gradients(tile, step,
                             [](const Float& p, int64_t) { return FourBitStorage::weight(p); });
  } else {
    with_weights(weights.format, [&](auto format) {
      using Format = decltype(format);
      WeightScale scales[kStepUnits];
      weight_scales<Format>(tile, step, scales);
      quantized_pair_gradients(tile, step, [&](const Float& p, int64_t slot) {
        return quantized<Format>(p, scales[slot]);
      });
    });
  }
}

void add_bias_gradients(const Tile& tile, const Step& step) {
  const BackwardTileMemory& m = tile.memory;
  for (int64_t i = 0; i < step.num_runs; ++i) {
    const Run& run = step.runs[i];
    for (int64_t k = 0; k < run.count; ++k) {
      float sum = 0;
      for (int64_t r = 0; r < tile.rows; ++r) sum += m.ds[r * kPairStride + run.column + k];
      tile.keys.grad_bias[run.row + k] += sum;
    }
  }
}

/// Sums of rows, and all of them where they are wanted.
void add_logit_gradients(const Tile& tile, const Step& step) {
  BackwardTileMemory& m = tile.memory;
  const BlockSparseArgs& f = tile.args;
  const BlockSparseBackwardArgs& args = tile.job.args;
  const int64_t head = tile.batch * f.heads + tile.head;
  for (int64_t r = 0; r < tile.rows; ++r) {
    const int64_t position = tile.begin + r;
    const int64_t row = tile.q_order ? tile.q_order[position] : position;
    float* to = args.grad_bias ? args.grad_bias + (head * f.q_len + row) * f.kv_len : nullptr;
    float sum = 0;
    for (int64_t i = 0; i < step.num_runs; ++i) {
      const Run& run = step.runs[i];
      const float* ds = m.ds + r * kPairStride + run.column;
      for (int64_t k = 0; k < run.count; ++k) sum += ds[k];
      for (int64_t k = 0; to && k < run.count; ++k) to[tile.key_row(run.row + k)] = ds[k];
    }
    m.row_sums[r] += sum;
  }
}

void run_step(const Tile& tile, Step& step) {
  if (step.num_slots == 0) return;
  BackwardTileMemory& m = tile.memory;
  const BlockSparseArgs& f = tile.args;
  const BlockSparseBackwardArgs& args = tile.job.args;
  pair_products(tile, step, m.q, tile.keys.keys, f.dim, m.p);
  pair_products(tile, step, m.grad_out, tile.keys.values, f.value_dim, m.ds);
  const bool biased = f.key_bias.data || f.bias.data;
  for (int64_t s = 0; s < step.num_slots; ++s) {
    const Slot& slot = step.slots[s];
    if (biased || slot.bits || slot.last - slot.first < kUnit)
      finish_slot(tile, slot, m.p + s * kUnit, kPairStride);
  }
  all_pair_gradients(tile, step);
  if (args.grad_row_bias || args.grad_bias) add_logit_gradients(tile, step);
  const Run all_rows{0, 0, tile.rows};
  using KeySums = Strides<1, kPairStride, kUnit, kRowStride>;
  for (int64_t i = 0; i < step.num_runs; ++i) {
    Run& run = step.runs[i];
    run.row -= tile.chunk.begin;
    if (args.grad_v.data) {
      add_product<KeySums>(run.count, m.p + run.column,
                           {m.grad_out_panels, kTileRows * kUnit, f.value_dim}, {&all_rows, 1},
                           tile.keys.grad_v + run.row * kRowStride);
    }
    if (args.grad_k.data) {
      add_product<KeySums>(run.count, m.ds + run.column, {m.q_panels, kTileRows * kUnit, f.dim},
                           {&all_rows, 1}, tile.keys.grad_k + run.row * kRowStride);
    }
  }
  if (args.grad_key_bias) add_bias_gradients(tile, step);
  if (args.grad_q.data) {
    const PanelMatrix keys{tile.keys.key_panels, kUnit * tile.job.layout.chunk_keys, f.dim};
    for_each_chunk(step.runs, step.num_runs, [&](const Runs& runs) {
      add_product<Strides<kPairStride, 1, kUnit, kRowStride>>(tile.rows, m.ds, keys, runs,
                                                              m.grad_q);
    });
  }
  step.num_slots = step.num_runs = 0;
}

/// Whether a block of queries sees keys of a chunk.
struct Visit {
  bool any = false;
  int64_t before = 0;  ///< chunks up to and with the last one before it that the block sees
};

Visit visit_of(const BlockLists& lists, int64_t map, int64_t block, Span chunk,
               int64_t chunk_keys) {
  Visit visit;
  const int64_t* row = lists.row_ptr + map * (lists.num_q_blocks + 1) + block;
  const int64_t first = first_entry(lists, map, block, chunk.begin);
  for (int64_t i = first; i < row[1] && !visit.any; ++i) {
    const Span keys = keys_of_block(lists, map, lists.kv_index[i]);
    if (keys.begin >= chunk.end) break;
    visit.any = std::max(keys.begin, chunk.begin) < keys.end;
  }
  for (int64_t i = std::min(first, row[1] - 1); i >= row[0]; --i) {
    const Span keys = keys_of_block(lists, map, lists.kv_index[i]);
    if (keys.begin >= std::min(keys.end, chunk.begin)) continue;
    visit.before = (std::min(keys.end, chunk.begin) - 1) / chunk_keys + 1;
    break;
  }
  return visit;
}

/// Rows of a tile, kRowStride apart, to panels [16 channels][kTileRows][16]: products that sum over
/// rows would otherwise touch a page for every few of them.
void to_panels(int64_t rows, int64_t channels, const float* from, float* to) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < channels; c += kUnit)
      store(to + c * kTileRows + r * kUnit, load(from + r * kRowStride + c));
  }
}

/// The tile's queries, and what belongs to them.
template <typename T>
void load_tile(const Tile& tile, int64_t head_of_wave) {
  const BlockSparseArgs& f = tile.args;
  BackwardTileMemory& m = tile.memory;
  load_queries(head_view<T>(f.q, f.q_order, tile.batch, tile.head), tile.begin, tile.rows, f.dim,
               f.sm_scale * kLog2E, m.q);
  load_rows(head_view<T>(tile.job.args.grad_out, f.q_order, tile.batch, tile.head), tile.begin,
            tile.rows, f.value_dim, m.grad_out, [](const Floats& x) { return x; });
  to_panels(tile.rows, f.dim, m.q, m.q_panels);
  to_panels(tile.rows, f.value_dim, m.grad_out, m.grad_out_panels);
  const int64_t first_row = (tile.batch * f.heads + tile.head) * f.q_len;
  for (int64_t r = 0; r < tile.rows; ++r) {
    const int64_t position = tile.begin + r;
    const int64_t row = first_row + (tile.q_order ? tile.q_order[position] : position);
    // A row without keys has probabilities 2^-inf.
    const float of_row = f.lse[row];
    const double base2 = of_row == -kInfinity ? double{kInfinity} : of_row * kLog2E;
    m.lse_high[r] = static_cast<float>(base2);
    m.lse_low[r] = std::isinf(base2) ? 0.0f : static_cast<float>(base2 - m.lse_high[r]);
    m.delta[r] = tile.job.delta[head_of_wave * f.q_len + position];
    m.row_sums[r] = 0;
    // With 1 more no weight is above 1, although lse is of rounded ones.
    const double power = of_row == -kInfinity ? double{of_row} : std::ceil(base2) + 1;
    m.row_max[r] = f.weights.needs_largest() ? f.weights.row_max[row] : static_cast<float>(power);
    m.inverse_sum[r] = static_cast<float>(std::exp2(m.row_max[r] - base2));
    std::fill_n(m.grad_q + r * kRowStride, tile.job.layout.q_width, 0.0f);
  }
}

/// Adds the tile's sums to those of the head, after the chunk before has.
void add_row_gradients(const Tile& tile, int64_t head_of_wave, int32_t& done, const Visit& visit) {
  const int64_t width = tile.job.layout.q_width;
  std::atomic_ref<int32_t> turn(done);
  while (turn.load(std::memory_order_acquire) != visit.before) std::this_thread::yield();
  float* to = tile.job.grad_q + (head_of_wave * tile.args.q_len + tile.begin) * width;
  for (int64_t r = 0; r < tile.rows; ++r) {
    for (int64_t c = 0; c < width; c += kUnit) {
      float* at = to + r * width + c;
      store(at, load(at) + load(tile.memory.grad_q + r * kRowStride + c));
    }
  }
  if (float* sums = tile.job.args.grad_row_bias) {
    sums += (tile.batch * tile.args.heads + tile.head) * tile.args.q_len;
    for (int64_t r = 0; r < tile.rows; ++r) {
      const int64_t position = tile.begin + r;
      sums[tile.q_order ? tile.q_order[position] : position] += tile.memory.row_sums[r];
    }
  }
  turn.store(static_cast<int32_t>(tile.chunk.begin / tile.job.layout.chunk_keys + 1),
             std::memory_order_release);
}

/// All tiles of one head that see the chunk.
template <typename T>
void run_head(const Job& job, int64_t pair, int64_t member, Span chunk, const ChunkMemory& keys,
              BackwardTileMemory& memory) {
  const BlockSparseArgs& f = job.args.forward;
  const BlockLists& lists = f.lists;
  const int64_t batch = job.batch_of(pair), kv_head = job.kv_head_of(pair);
  const int64_t head = kv_head * job.group() + member;
  const int64_t head_of_wave = pair * job.group() + member;
  const int64_t map = map_of(lists, batch, head);
  const int32_t* starts = job.tile_starts + map * (lists.num_q_blocks + 1);
  const int32_t* offsets = lists.q_offsets + map * (lists.num_q_blocks + 1);
  for (int64_t block = 0; block < lists.num_q_blocks; ++block) {
    const Visit visit = visit_of(lists, map, block, chunk, job.layout.chunk_keys);
    if (!visit.any) continue;
    const int64_t size = offsets[block + 1] - offsets[block],
                  tiles = starts[block + 1] - starts[block];
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t begin = offsets[block] + size * t / tiles;
      const int64_t end = offsets[block] + size * (t + 1) / tiles;
      const Tile tile{{f, batch, head, order_of(f.q_order, batch, head),
                       order_of(f.kv_order, batch, kv_head), begin, end - begin},
                      job,
                      chunk,
                      keys,
                      memory};
      load_tile<T>(tile, head_of_wave);
      Step step;
      step.capacity = kPairUnits;
      const auto run = [&] { run_step(tile, step); };
      for_each_range(tile, map, block, chunk,
                     [&](const KeyRange& range) { add_range(range, step, run); });
      run();
      int32_t& done = job.done[head_of_wave * job.layout.tiles + starts[block] + t];
      if (job.args.grad_q.data || job.args.grad_row_bias)
        add_row_gradients(tile, head_of_wave, done, visit);
    }
  }
}

/// One chunk of keys of one (batch, kv head) against all queries of its heads.
template <typename T>
void chunk_task(const Job& job, int64_t task, int64_t worker) {
  const BlockSparseBackwardArgs& args = job.args;
  const BlockSparseArgs& f = args.forward;
  // Chunks of several heads side by side: then hardly one waits for another.
  const int64_t pair = task % job.num_pairs, number = task / job.num_pairs;
  const int64_t batch = job.batch_of(pair), kv_head = job.kv_head_of(pair);
  const Span chunk{number * job.layout.chunk_keys,
                   std::min((number + 1) * job.layout.chunk_keys, f.kv_len)};
  const int64_t count = chunk.end - chunk.begin;
  const ChunkMemory m = chunk_memory(job, worker);
  auto& memory = *new (job.workers + worker * job.layout.worker_bytes) BackwardTileMemory;
  const auto keys = key_head_view<T>(f.k, f.more.k, f, batch, kv_head);
  const auto values = key_head_view<T>(f.v, f.more.v, f, batch, kv_head);
  for (int64_t unit = 0; unit * kUnit < count; ++unit) {
    const int64_t from = chunk.begin / kUnit + unit;
    pack_key_unit(keys, f.kv_len, f.dim, from, m.keys + unit * kUnit * f.dim);
    pack_key_unit(values, f.kv_len, f.value_dim, from, m.values + unit * kUnit * f.value_dim);
  }
  pack_values(keys, f.dim, job.layout.chunk_keys, chunk, m.key_panels);
  std::fill_n(m.grad_k, 2 * job.layout.chunk_keys * kRowStride, 0.0f);
  for (int64_t member = 0; member < job.group(); ++member) {
    std::fill_n(m.grad_bias, count, 0.0f);
    run_head<T>(job, pair, member, chunk, m, memory);
    if (!args.grad_key_bias) continue;
    float* to = args.grad_key_bias + (batch * f.heads + kv_head * job.group() + member) * f.kv_len;
    for (int64_t k = 0; k < count; ++k) to[keys.row(chunk.begin + k)] = m.grad_bias[k];
  }
  for (int64_t k = 0; k < count; ++k) {
    const int64_t row = keys.row(chunk.begin + k);
    const auto store_gradient = [&](const float* from, int64_t channels, double factor,
                                    const MutableHeadRows& own, const MutableHeadRows& more) {
      if (!own.data) return;
      if (keys.is_own(chunk.begin + k)) {
        store_row(from, channels, factor, head_of<T>(own, batch, kv_head) + row * own.row_stride);
      } else if (row >= keys.begin) {
        store_row(from, channels, factor,
                  head_of<float>(more, batch, kv_head) + (row - keys.begin) * more.row_stride);
      }
    };
    store_gradient(m.grad_k + k * kRowStride, f.dim, kLn2, args.grad_k, args.grad_more_k);
    store_gradient(m.grad_v + k * kRowStride, f.value_dim, 1.0, args.grad_v, args.grad_more_v);
  }
}

/// Some queries of one head of the wave.
struct Queries {
  int64_t head_of_wave, batch, head, begin, end;
};

Queries queries_of(const Job& job, int64_t task) {
  const BlockSparseArgs& f = job.args.forward;
  const int64_t pieces = (f.q_len + kTaskRows - 1) / kTaskRows;
  const int64_t head_of_wave = task / pieces, pair = head_of_wave / job.group();
  const int64_t begin = task % pieces * kTaskRows;
  return {head_of_wave, job.batch_of(pair),
          job.kv_head_of(pair) * job.group() + head_of_wave % job.group(), begin,
          std::min(begin + kTaskRows, f.q_len)};
}

/// Before the chunks: sums of 0, and the rows' deltas.
template <typename T>
void prepare_task(const Job& job, int64_t task) {
  const BlockSparseArgs& f = job.args.forward;
  const Queries at = queries_of(job, task);
  const auto out = head_view<T>(read_only(f.out), f.q_order, at.batch, at.head);
  const auto grad_out = head_view<T>(job.args.grad_out, f.q_order, at.batch, at.head);
  const int64_t first_row = (at.batch * f.heads + at.head) * f.q_len;
  for (int64_t position = at.begin; position < at.end; ++position) {
    const int64_t row = first_row + out.row(position);
    const T* x = out.at(position);
    const T* y = grad_out.at(position);
    Doubles products;
    for (int64_t c = 0; c < f.value_dim; c += kUnit) {
      const int64_t left = std::min(kUnit, f.value_dim - c);
      const bool whole = left == kUnit;
      products = products + widen(whole ? load(x + c) : load_tail(x + c, left)) *
                                widen(whole ? load(y + c) : load_tail(y + c, left));
    }
    // Rows without keys have nothing to hand on, whatever came for them.
    const double lse_gradient = job.args.grad_lse ? job.args.grad_lse[row] : 0.0;
    const int64_t index = at.head_of_wave * f.q_len + position;
    job.delta[index] =
        f.lse[row] == -kInfinity ? 0.0f : static_cast<float>(sum(products) - lse_gradient);
    std::fill_n(job.grad_q + index * job.layout.q_width, job.layout.q_width, 0.0f);
    if (job.args.grad_row_bias) job.args.grad_row_bias[row] = 0;
  }
}

/// After the chunks.
template <typename T>
void store_task(const Job& job, int64_t task) {
  const BlockSparseArgs& f = job.args.forward;
  const Queries at = queries_of(job, task);
  const int32_t* order = order_of(f.q_order, at.batch, at.head);
  T* to = head_of<T>(job.args.grad_q, at.batch, at.head);
  for (int64_t position = at.begin; position < at.end; ++position) {
    const int64_t row = order ? order[position] : position;
    store_row(job.grad_q + (at.head_of_wave * f.q_len + position) * job.layout.q_width, f.dim,
              f.sm_scale, to + row * job.args.grad_q.row_stride);
  }
}

template <typename T>
void run_wave(Job& job, const Parallel& parallel) {
  const BlockSparseArgs& f = job.args.forward;
  const int64_t heads = job.num_pairs * job.group();
  const int64_t pieces = heads * ((f.q_len + kTaskRows - 1) / kTaskRows);
  std::fill_n(job.done, heads * job.layout.tiles, 0);
  run_tasks(job, parallel, pieces,
            [](const Job& j, int64_t task, int64_t) { prepare_task<T>(j, task); });
  run_tasks(job, parallel, job.num_pairs * job.layout.chunks,
            [](const Job& j, int64_t task, int64_t worker) { chunk_task<T>(j, task, worker); });
  if (!job.args.grad_q.data) return;
  run_tasks(job, parallel, pieces,
            [](const Job& j, int64_t task, int64_t) { store_task<T>(j, task); });
}

}  // namespace

void block_sparse_backward(const BlockSparseBackwardArgs& args, const BackwardLayout& layout,
                           unsigned char* memory, const Parallel& parallel) {
  Job job{args,
          layout,
          reinterpret_cast<int32_t*>(memory + layout.tile_starts_at),
          reinterpret_cast<int32_t*>(memory + layout.done_at),
          reinterpret_cast<float*>(memory + layout.delta_at),
          reinterpret_cast<float*>(memory + layout.grad_q_at),
          memory + layout.workers_at};
  count_tiles(args.forward.lists, job.tile_starts);
  const int64_t pairs = args.forward.batch * args.forward.kv_heads;
  for (int64_t first = 0; first < pairs; first += layout.wave_heads) {
    job.first_pair = first;
    job.num_pairs = std::min(layout.wave_heads, pairs - first);
    with_type(args.forward.q.dtype,
              [&](auto* type) { run_wave<std::remove_pointer_t<decltype(type)>>(job, parallel); });
  }
}

}  // namespace fovea::kernels::FOVEA_ISA
