#pragma once

// From the lists of a plan to steps: keys that a tile of queries computes together. For the
// *_cpu.cpp files of this folder.

#include <algorithm>

#include "kernels/attention/block_sparse.h"
#include "kernels/attention/panels_cpu.h"
#include "kernels/attention/tile_cpu.h"

namespace fovea::kernels::FOVEA_ISA {
namespace {

constexpr double kLn2 = 0.6931471805599453;

/// Queries that are computed together.
struct QueryTile {
  const BlockSparseArgs& args;
  int64_t batch, head;
  const int32_t* q_order;
  const int32_t* kv_order;
  int64_t begin, rows;  ///< positions of the queries

  /// Row of K; only its own keys have an order.
  int64_t key_row(int64_t position) const {
    return kv_order && position < own_keys(args) ? kv_order[position] : position;
  }
};

/// Up to 16 keys of a step: lanes [first, last) of one packed unit.
struct Slot {
  int64_t unit = 0;
  int first = 0, last = 0;
  const uint64_t* bits = nullptr;  ///< of the tile's first row; null: all pairs are visible
  int64_t bit_words = 0;           ///< of one row
  int64_t bit_of_lane_0 = 0;       ///< may be negative: the block begins within the unit
  int64_t entry = 0;               ///< of the lists; of ranges that were joined the first one's
};

/// The keys that are computed together.
struct Step {
  int64_t capacity = kStepUnits;  ///< at most so many slots are used
  Slot slots[kStepUnits];
  int64_t num_slots = 0;
  Run runs[kStepUnits];  ///< the same keys as consecutive positions, columns against rows of V
  int64_t num_runs = 0;
};

inline int64_t map_of(const BlockLists& lists, int64_t batch, int64_t head) {
  return batch * lists.map_batch_stride + head * lists.map_head_stride;
}

inline const float* bias_of(const LogitBias& bias, int64_t batch, int64_t head) {
  return bias.data ? bias.data + batch * bias.batch_stride + head * bias.head_stride : nullptr;
}

/// Of 16 keys of a row's bits the visible ones, one a bit; what is beyond the words may be
/// anything.
inline uint32_t visible_keys(const Slot& slot, int64_t row) {
  const uint64_t* bits = slot.bits + row * slot.bit_words;
  const int64_t at = slot.bit_of_lane_0;
  if (at < 0) return static_cast<uint32_t>(bits[0] << -at);
  uint64_t out = bits[at / 64] >> (at % 64);
  if (at % 64 > 64 - kUnit && at / 64 + 1 < slot.bit_words)
    out |= bits[at / 64 + 1] << (64 - at % 64);
  return static_cast<uint32_t>(out);
}

/// Biases that all rows of a slot share.
struct SlotBias {
  int64_t key[kUnit] = {};  ///< rows of K
  float value[kUnit] = {};
  bool is_zero = true;

  SlotBias(const QueryTile& tile, const Slot& slot) {
    const LogitBias& from = tile.args.key_bias;
    const float* data = bias_of(from, tile.batch, tile.head);
    for (int i = slot.first; i < slot.last; ++i) {
      key[i] = tile.key_row(slot.unit * kUnit + i);
      if (data) value[i] = data[key[i] * from.key_stride];
      is_zero = is_zero && value[i] == 0.0f;
    }
  }
};

/// finish_slot() where rows have biases of their own.
inline void finish_biased_slot(const QueryTile& tile, const Slot& slot, const SlotBias& shared,
                               float* logits, int64_t stride) {
  const BlockSparseArgs& args = tile.args;
  const float* bias = bias_of(args.bias, tile.batch, tile.head);
  const float log2e = static_cast<float>(kLog2E);
  const uint32_t lanes = (1u << slot.last) - (1u << slot.first);
  for (int64_t r = 0; r < tile.rows; ++r) {
    const int64_t position = tile.begin + r;
    const int64_t row = tile.q_order ? tile.q_order[position] : position;
    const float* from = bias + row * args.bias.row_stride;
    float add[kUnit] = {};
    for (int i = slot.first; i < slot.last; ++i)
      add[i] = shared.value[i] + from[shared.key[i] * args.bias.key_stride];
    const uint32_t visible = slot.bits ? lanes & visible_keys(slot, r) : lanes;
    float* at = logits + r * stride;
    for (int i = 0; i < kUnit; ++i)
      at[i] =
          (visible >> i & 1u) != 0 && add[i] != -kInfinity ? at[i] + add[i] * log2e : -kInfinity;
  }
}

/// Adds the biases to the base-2 logits of one slot (rows `stride` apart) and puts -inf where a row
/// does not see a key. Whatever stands there, also NaN, is replaced.
inline void finish_slot(const QueryTile& tile, const Slot& slot, float* logits, int64_t stride) {
  const SlotBias shared(tile, slot);
  if (tile.args.bias.data) return finish_biased_slot(tile, slot, shared, logits, stride);
  if (shared.is_zero && !slot.bits && slot.last - slot.first == kUnit) return;
  uint32_t lanes = (1u << slot.last) - (1u << slot.first);
  alignas(64) float add[kUnit];
  alignas(64) uint32_t bit[kUnit];
  for (int i = 0; i < kUnit; ++i) {
    if (shared.value[i] == -kInfinity) lanes &= ~(1u << i);
    add[i] = shared.value[i] * static_cast<float>(kLog2E);
    bit[i] = 1u << i;
  }
  const Float hidden_logit = -kInfinity - Float{};
  for (int64_t r = 0; r < tile.rows; ++r) {
    const uint32_t visible = slot.bits ? lanes & visible_keys(slot, r) : lanes;
    for (int p = 0; p < kUnit; p += kWidth) {
      Float x, more;
      Word own, hidden;
      std::memcpy(&x, logits + r * stride + p, sizeof(x));
      std::memcpy(&more, add + p, sizeof(more));
      std::memcpy(&own, bit + p, sizeof(own));
      const Word seen = (Word)((own & visible) != 0u);
      std::memcpy(&hidden, &hidden_logit, sizeof(hidden));
      x += more;
      Word bits;
      std::memcpy(&bits, &x, sizeof(bits));
      bits = (bits & seen) | (hidden & ~seen);
      std::memcpy(logits + r * stride + p, &bits, sizeof(bits));
    }
  }
}

/// A range of positions of keys that a tile sees.
struct KeyRange {
  int64_t begin = 0, end = 0;
  const uint64_t* bits = nullptr;
  int64_t bit_words = 0, bit_begin = 0;  ///< words of a row, position of the first bit
  int64_t entry = 0;
};

/// Adds the range to the step; run() computes and empties the step whenever it is full.
template <typename F>
inline void add_range(const KeyRange& range, Step& step, F run) {
  for (int64_t at = range.begin; at < range.end;) {
    const int64_t unit = at / kUnit;
    const int64_t end = std::min((unit + 1) * kUnit, range.end);
    if (step.num_slots == step.capacity) run();
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
                                    unit * kUnit - range.bit_begin,
                                    range.entry};
    at = end;
  }
}

/// Calls f(runs) for all of up to kStepUnits runs, kChunkKeys rows of V at a time.
template <typename F>
inline void for_each_chunk(const Run* runs, int64_t num_runs, F f) {
  Run chunk[kStepUnits + 1];
  int64_t next = 0, taken = 0;  // the run to go on with, and how much of it is done
  while (next < num_runs) {
    int64_t count = 0;
    for (int64_t left = kChunkKeys; left > 0 && next < num_runs;) {
      const Run& run = runs[next];
      const int64_t now = std::min(left, run.count - taken);
      chunk[count++] = {run.column + taken, run.row + taken, now};
      left -= now;
      taken += now;
      if (taken == run.count) ++next, taken = 0;
    }
    f(Runs{chunk, count});
  }
}

/// Positions of the valid keys of a block.
inline Span keys_of_block(const BlockLists& lists, int64_t map, int64_t index) {
  const int32_t* offsets = lists.kv_offsets + map * (lists.num_kv_blocks + 1) + index;
  const int64_t len = lists.kv_block_len ? lists.kv_block_len[map * lists.num_kv_blocks + index]
                                         : offsets[1] - offsets[0];
  return {offsets[0], offsets[0] + len};
}

/// The first entry of a block of queries whose block of keys ends behind `position`.
inline int64_t first_entry(const BlockLists& lists, int64_t map, int64_t block, int64_t position) {
  const int64_t* row = lists.row_ptr + map * (lists.num_q_blocks + 1) + block;
  const int32_t* ends = lists.kv_offsets + map * (lists.num_kv_blocks + 1) + 1;
  return std::partition_point(lists.kv_index + row[0], lists.kv_index + row[1],
                              [&](int32_t index) { return ends[index] <= position; }) -
         lists.kv_index;
}

/// Calls f(range) for the positions within `within` that a tile's list names, ascending; ranges
/// that touch become one, so that no unit is computed twice, unless entries have factors.
template <typename F>
inline void for_each_range(const QueryTile& tile, int64_t map, int64_t block, Span within, F f) {
  const BlockLists& lists = tile.args.lists;
  const int64_t row = map * (lists.num_q_blocks + 1) + block;
  const int32_t* offsets = lists.kv_offsets + map * (lists.num_kv_blocks + 1);
  const int64_t first_row = tile.begin - lists.q_offsets[row];
  const bool joins = !tile.args.weights.per_entry;
  KeyRange range;
  for (int64_t i = first_entry(lists, map, block, within.begin); i < lists.row_ptr[row + 1]; ++i) {
    const int64_t index = lists.kv_index[i];
    if (offsets[index] >= within.end) break;
    const Span keys = keys_of_block(lists, map, index);
    KeyRange next{std::max(keys.begin, within.begin), std::min(keys.end, within.end)};
    next.entry = i;
    if (next.begin >= next.end) continue;
    if (lists.bits_offset && lists.bits_offset[i] >= 0) {
      next.bit_words = (offsets[index + 1] - offsets[index] + 63) / 64;
      next.bits = lists.bits + lists.bits_offset[i] + first_row * next.bit_words;
      next.bit_begin = keys.begin;
    }
    if (joins && !next.bits && !range.bits && next.begin == range.end) {
      range.end = next.end;
      continue;
    }
    f(range);
    range = next;
  }
  f(range);
}

}  // namespace
}  // namespace fovea::kernels::FOVEA_ISA
