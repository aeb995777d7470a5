#include <cmath>
#include <type_traits>

#include "kernels/attention/cpu_variants.h"
#include "kernels/attention/panels_cpu.h"
#include "kernels/attention/tasks_cpu.h"
#include "kernels/attention/tile_cpu.h"

namespace fovea::kernels::FOVEA_ISA {
namespace {

constexpr float kShortest = 1e-12f;  // length that directions are divided by at least

/// Calls f(channel, wanted lanes) for each sixteen channels; a constant but for the last of them.
template <typename F>
[[gnu::always_inline]] inline void for_each_lanes(int64_t dim, F f) {
  int64_t c = 0;
  for (; c + kLanes <= dim; c += kLanes) f(c, std::integral_constant<int64_t, kLanes>());
  if (c < dim) f(c, dim - c);
}

template <typename T>
inline Floats load_some(const T* from, int64_t count) {
  return count == kLanes ? load(from) : load_tail(from, count);
}

inline void store_some(float* to, const Floats& x, int64_t count) {
  if (count == kLanes) {
    store(to, x);
  } else {
    store_tail(to, x, count);
  }
}

constexpr int kRowsAtOnce = 4;  // so that sums are loaded and stored less often than rows

/// Some rows of one head.
template <typename T, int kCount>
struct SomeRows {
  const T* row[kCount];
  const float* centre;  ///< or null

  Floats value(int64_t r, int64_t c, int64_t lanes) const {
    const Floats own = load_some(row[r] + c, lanes);
    return centre ? load_some(centre + c, lanes) * broadcast(-1.0f) + own : own;
  }
};

/// sum += the rows, directions += the rows over their lengths, where they are not null.
template <typename T, int kCount>
void add_rows(const SomeRows<T, kCount>& rows, int64_t dim, float* sum, float* directions) {
  float factor[kCount] = {};
  for (int r = 0; r < kCount && directions; ++r) {
    Floats square = broadcast(0.0f);
    for_each_lanes(dim, [&](int64_t c, auto lanes) {
      const Floats own = rows.value(r, c, lanes);
      square = own * own + square;
    });
    Float whole = square.part[0];
    for (int i = 1; i < kParts; ++i) whole += square.part[i];
    const float length = std::sqrt(fold(whole, [](float a, float b) { return a + b; }));
    factor[r] = 1.0f / std::max(length, kShortest);
  }
  for_each_lanes(dim, [&](int64_t c, auto lanes) {
    Floats added = broadcast(0.0f), turned = added;
    for (int r = 0; r < kCount; ++r) {
      const Floats own = rows.value(r, c, lanes);
      added = added + own;
      turned = own * broadcast(factor[r]) + turned;
    }
    if (sum) store_some(sum + c, load_some(sum + c, lanes) + added, lanes);
    if (directions) store_some(directions + c, load_some(directions + c, lanes) + turned, lanes);
  });
}

/// One block of heads [first, last), which share its rows.
template <typename T>
void sum_block(const BlockSumsArgs& args, int64_t batch, int64_t block, int64_t first,
               int64_t last) {
  const T* item = static_cast<const T*>(args.x.data) + batch * args.x.batch_stride;
  const int32_t* order = order_of(args.order, batch, first);
  const int32_t* offsets =
      args.offsets + batch * args.offsets_batch_stride + first * args.offsets_head_stride + block;
  const bool* valid = args.valid ? args.valid + batch * args.rows : nullptr;
  const auto out = [&](float* to, int64_t head) {
    return to ? to + ((batch * args.heads + head) * args.blocks + block) * args.dim : nullptr;
  };
  for (int64_t head = first; head < last; ++head) {
    if (args.sum) std::fill_n(out(args.sum, head), args.dim, 0.0f);
    if (args.directions) std::fill_n(out(args.directions, head), args.dim, 0.0f);
  }
  int64_t taken[kRowsAtOnce];
  const auto add = [&](auto count) {
    for (int64_t head = first; head < last; ++head) {
      SomeRows<T, count()> rows;
      for (int r = 0; r < count(); ++r)
        rows.row[r] = item + head * args.x.head_stride + taken[r] * args.x.row_stride;
      rows.centre = args.centre ? args.centre + (batch * args.heads + head) * args.dim : nullptr;
      add_rows(rows, args.dim, out(args.sum, head), out(args.directions, head));
    }
  };
  int count = 0;
  for (int64_t at = offsets[0]; at < offsets[1]; ++at) {
    const int64_t row = order ? order[at] : at;
    if (valid && !valid[row]) continue;
    taken[count++] = row;
    if (count < kRowsAtOnce) continue;
    add(std::integral_constant<int, kRowsAtOnce>());
    count = 0;
  }
  for (int i = 0; i < count; ++i) {
    taken[0] = taken[i];
    add(std::integral_constant<int, 1>());
  }
}

template <typename T>
void sum_blocks(const BlockSumsArgs& args, int64_t batch, int64_t block) {
  const bool shared = args.offsets_head_stride == 0 && args.order.head_stride == 0;
  const int64_t at_once = shared ? args.heads : 1;
  for (int64_t head = 0; head < args.heads; head += at_once)
    sum_block<T>(args, batch, block, head, head + at_once);
}

/// What the tasks of one head of keys share.
struct SharesJob {
  const BlockSharesArgs& args;
  const SharesLayout& layout;
  float* packed;     ///< [units][phases][dim][16]
  SharePart* parts;  ///< of all chunks, ascending
  unsigned char* workers;
  int64_t num_parts = 0, kv_head = 0;
};

/// Buffers of a worker, all fp32.
struct SharesMemory {
  float* q;           ///< [phases][kTileRows][kRowStride] queries times the scale
  float* logits;      ///< [kTileRows][kLogitStride] base-2 logits of a chunk, then exponentials
  float* parts;       ///< [kTileRows][part_stride] sums or greatest exponentials
  float* references;  ///< [kTileRows][chunks] the logit that the exponentials are relative to
  float* row_max;     ///< [kTileRows]
  float* row_sum;     ///< [kTileRows] of exponentials relative to row_max

  SharesMemory(const SharesJob& job, int64_t worker) {
    const SharesLayout& layout = job.layout;
    q = reinterpret_cast<float*>(job.workers + worker * layout.worker_bytes);
    logits = q + layout.q_floats;
    parts = logits + kTileRows * kLogitStride;
    references = parts + layout.parts_floats;
    row_max = references + kTileRows * layout.chunks;
    row_sum = row_max + kTileRows;
  }
};

/// The parts of all blocks of keys, in the order of the groups.
int64_t make_parts(const BlockSharesArgs& args, SharePart* parts) {
  int64_t count = 0;
  for (int64_t block = 0; block < args.kv_blocks; ++block) {
    for (int32_t at = args.kv_offsets[block]; at < args.kv_offsets[block + 1];) {
      const auto border = static_cast<int32_t>((at / kShareKeys + 1) * kShareKeys);
      const int32_t end = std::min(args.kv_offsets[block + 1], border);
      parts[count++] = {static_cast<int32_t>(block), at, end};
      at = end;
    }
  }
  return count;
}

template <typename T>
void pack_shares_unit(const SharesJob& job, int64_t unit) {
  const BlockSharesArgs& args = job.args;
  const T* data = static_cast<const T*>(args.k.data) + job.kv_head * args.k.head_stride;
  for (int64_t p = 0; p < args.phases; ++p) {
    const HeadView<T> keys{data, args.k.row_stride, args.kv_rows + p * args.kv_groups};
    pack_key_unit(keys, args.kv_groups, args.dim, unit,
                  job.packed + (unit * args.phases + p) * args.dim * kUnit);
  }
}

/// The logits of a chunk of groups of keys.
void multiply_chunk(const SharesJob& job, const SharesMemory& m, int64_t rows, int64_t chunk) {
  const BlockSharesArgs& args = job.args;
  const Run all_channels{0, 0, args.dim};
  const int64_t first = chunk * (kShareKeys / kUnit);
  const int64_t units = std::min(kShareKeys / kUnit, job.layout.kv_units - first);
  for (int64_t p = 0; p < args.phases; ++p) {
    for (int64_t s = 0; s < units; s += kGroupUnits) {
      Panels k;
      k.count = std::min<int64_t>(kGroupUnits, units - s);
      for (int64_t u = 0; u < k.count; ++u)
        k.panel[u] = job.packed + ((first + s + u) * args.phases + p) * args.dim * kUnit;
      using S = Strides<kRowStride, 1, kUnit, kLogitStride>;
      const float* q = m.q + p * kTileRows * kRowStride;
      float* logits = m.logits + s * kUnit;
      if (p == 0) {
        multiply_tile<FloatProduct, S>(rows, q, k, {&all_channels, 1}, logits, KeepSums());
      } else {
        multiply_tile<FloatProduct, S>(rows, q, k, {&all_channels, 1}, logits, AddSums());
      }
    }
  }
}

/// The sum, or the greatest, of non-negative values.
inline float gather(const float* from, int64_t count, bool largest) {
  Float most = {};
  int64_t at = 0;
  for (; at + kWidth <= count; at += kWidth) {
    Float x;
    std::memcpy(&x, from + at, sizeof(x));
    most = largest ? max_or_second(x, most) : most + x;
  }
  float lanes[4] = {};
  if (at > 0) {
    lanes[0] = largest ? fold(most, [](float a, float b) { return a > b ? a : b; })
                       : fold(most, [](float a, float b) { return a + b; });
  }
  for (; at < count; ++at) {
    float& lane = lanes[at % 4];
    lane = largest ? std::max(lane, from[at]) : lane + from[at];
  }
  return largest ? std::max(std::max(lanes[0], lanes[1]), std::max(lanes[2], lanes[3]))
                 : (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]);
}

/// Turns a row's logits of a chunk into exponentials relative to the greatest, and adds them to the
/// row's sum. `keys` is the number of groups.
void exponentials(const SharesJob& job, const SharesMemory& m, int64_t row, int64_t chunk,
                  int64_t keys) {
  const BlockSharesArgs& args = job.args;
  float* logits = m.logits + row * kLogitStride;
  const int64_t whole = (keys + kUnit - 1) / kUnit * kUnit;
  if (args.kv_weight) {
    const float* weight = args.kv_weight + chunk * kShareKeys;
    // What hidden groups hold may be anything.
    for (int64_t j = 0; j < keys; ++j) logits[j] = weight[j] > 0 ? logits[j] : -kInfinity;
  }
  for (int64_t j = keys; j < whole; ++j) logits[j] = -kInfinity;
  Float most = -kInfinity - Float{};
  for (int64_t j = 0; j < whole; j += kWidth) {
    Float x;
    std::memcpy(&x, logits + j, sizeof(x));
    most = max_or_second(x, most);
  }
  const float top = fold(most, [](float a, float b) { return a > b ? a : b; });
  const float from = top == -kInfinity ? 0.0f : top;
  Float sum = {};
  for (int64_t j = 0; j < whole; j += kWidth) {
    Float x;
    std::memcpy(&x, logits + j, sizeof(x));
    x = exp2_of_negative(x - from);
    sum += x;
    std::memcpy(logits + j, &x, sizeof(x));
  }
  float total = fold(sum, [](float a, float b) { return a + b; });
  if (args.kv_weight) {
    const float* weight = args.kv_weight + chunk * kShareKeys;
    for (int64_t j = 0; j < keys; ++j) logits[j] *= weight[j];
    total = gather(logits, keys, /*largest=*/false);
  }
  m.references[row * job.layout.chunks + chunk] = from;
  if (top == -kInfinity) return;
  const float after = std::max(m.row_max[row], top);
  m.row_sum[row] = m.row_sum[row] * exp2_of_negative(m.row_max[row] - after) +
                   total * exp2_of_negative(top - after);
  m.row_max[row] = after;
}

/// Adds a row's shares to those of its block of queries.
void add_row(const SharesJob& job, const SharesMemory& m, int64_t row, float weight, float* out) {
  if (m.row_sum[row] == 0.0f || weight == 0.0f) return;
  const float* parts = m.parts + row * job.layout.part_stride;
  const float* references = m.references + row * job.layout.chunks;
  int64_t chunk = -1;
  float factor = 0;
  for (int64_t i = 0; i < job.num_parts; ++i) {
    const SharePart& part = job.parts[i];
    if (part.first / kShareKeys != chunk) {
      chunk = part.first / kShareKeys;
      factor = exp2_of_negative(references[chunk] - m.row_max[row]) / m.row_sum[row] * weight;
    }
    float& to = out[part.block];
    to = job.args.largest ? std::max(to, parts[i] * factor) : to + parts[i] * factor;
  }
}

/// Groups of queries [begin, begin + rows), whose blocks begin with number `block`.
template <typename T>
void shares_tile(const SharesJob& job, const SharesMemory& m, int64_t head, int64_t begin,
                 int64_t rows) {
  const BlockSharesArgs& args = job.args;
  const T* data = static_cast<const T*>(args.q.data) + head * args.q.head_stride;
  for (int64_t p = 0; p < args.phases; ++p) {
    const HeadView<T> queries{data, args.q.row_stride, args.q_rows + p * args.q_groups};
    load_queries(queries, begin, rows, args.dim, args.scale * kLog2E,
                 m.q + p * kTileRows * kRowStride);
  }
  std::fill_n(m.row_max, rows, -kInfinity);
  std::fill_n(m.row_sum, rows, 0.0f);
  int64_t part = 0;
  for (int64_t chunk = 0; chunk < job.layout.chunks; ++chunk) {
    const int64_t first = chunk * kShareKeys;
    const int64_t keys = std::min(kShareKeys, args.kv_groups - first);
    multiply_chunk(job, m, rows, chunk);
    int64_t end = part;
    while (end < job.num_parts && job.parts[end].first < first + keys) ++end;
    for (int64_t r = 0; r < rows; ++r) {
      exponentials(job, m, r, chunk, keys);
      for (int64_t i = part; i < end; ++i) {
        const SharePart& own = job.parts[i];
        m.parts[r * job.layout.part_stride + i] = gather(
            m.logits + r * kLogitStride + own.first - first, own.last - own.first, args.largest);
      }
    }
    part = end;
  }
}

/// A few blocks of queries of one head.
template <typename T>
void shares_task(const SharesJob& job, int64_t task, int64_t worker) {
  const BlockSharesArgs& args = job.args;
  const SharesMemory memory(job, worker);
  const int64_t tasks = (args.q_blocks + job.layout.task_blocks - 1) / job.layout.task_blocks;
  const int64_t head = job.kv_head * (args.heads / args.kv_heads) + task / tasks;
  const int64_t first = task % tasks * job.layout.task_blocks;
  const int64_t last = std::min(first + job.layout.task_blocks, args.q_blocks);
  float* out = args.shares + head * args.q_blocks * args.kv_blocks;
  std::fill(out + first * args.kv_blocks, out + last * args.kv_blocks, 0.0f);
  int64_t block = first;
  for (int64_t at = args.q_offsets[first]; at < args.q_offsets[last]; at += kTileRows) {
    const int64_t rows = std::min<int64_t>(kTileRows, args.q_offsets[last] - at);
    shares_tile<T>(job, memory, head, at, rows);
    for (int64_t r = 0; r < rows; ++r) {
      while (at + r >= args.q_offsets[block + 1]) ++block;
      add_row(job, memory, r, args.q_weight ? args.q_weight[at + r] : 1.0f,
              out + block * args.kv_blocks);
    }
  }
}

}  // namespace

void block_sums(const BlockSumsArgs& args, const Parallel& parallel) {
  with_type(args.x.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    run_tasks(args, parallel, args.batch * args.blocks,
              [](const BlockSumsArgs& a, int64_t task, int64_t) {
                sum_blocks<T>(a, task / a.blocks, task % a.blocks);
              });
  });
}

void block_shares(const BlockSharesArgs& args, const SharesLayout& layout, unsigned char* memory,
                  const Parallel& parallel) {
  SharesJob job{args, layout, reinterpret_cast<float*>(memory + layout.packed_at),
                reinterpret_cast<SharePart*>(memory + layout.parts_at), memory + layout.workers_at};
  job.num_parts = make_parts(args, job.parts);
  const int64_t tasks =
      (args.q_blocks + layout.task_blocks - 1) / layout.task_blocks * (args.heads / args.kv_heads);
  with_type(args.q.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    for (job.kv_head = 0; job.kv_head < args.kv_heads; ++job.kv_head) {
      run_tasks(job, parallel, layout.kv_units,
                [](const SharesJob& j, int64_t task, int64_t) { pack_shares_unit<T>(j, task); });
      run_tasks(job, parallel, tasks, [](const SharesJob& j, int64_t task, int64_t worker) {
        shares_task<T>(j, task, worker);
      });
    }
  });
}

}  // namespace fovea::kernels::FOVEA_ISA
