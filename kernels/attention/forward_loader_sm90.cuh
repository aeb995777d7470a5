#pragma once

#include <cstdint>

#include "kernels/attention/block_sparse_cuda.h"
#include "kernels/common/ring.cuh"
#include "kernels/common/tma.cuh"
#include "kernels/common/wgmma.cuh"

// What the forward pass of compute capability 9.0a has in shared memory, and the warp that fills
// it; see forward_sm90.cuh.

namespace fovea::kernels::sm90 {

using wgmma::Type;

/// The shape of a kernel of 16-bit numbers; without pieces it is for dense attention, with one or
/// two for lists.
template <int kDim_, int kGroups_, int kKeys_, int kStages_, int kPieces_ = 0, bool kHold_ = false>
struct ForwardShape {
  static constexpr bool kIsBytes = false, kPacked = false;
  static constexpr int kHeights = 1;        // of copied boxes of keys
  static constexpr int kDim = kDim_;        // channels of a head
  static constexpr int kGroups = kGroups_;  // computing warpgroups
  static constexpr int kKeys = kKeys_;      // of a step
  static constexpr int kStages = kStages_;  // steps that a ring holds
  static constexpr bool kListed = kPieces_ > 0;
  static constexpr int kPieces = kListed ? kPieces_ : 1;  // spans of a step
  // The compiler waits for the values before the exponentials, unless something of these is stored
  // first: then the matrix units work meanwhile.
  static constexpr bool kHold = kHold_;
  static constexpr int kQueries = 64 * kGroups;
  static constexpr int kSpan = kKeys / kPieces;  // most keys of a span
  static constexpr int kPanels = kDim / 64;      // of 64 columns
  static constexpr int kQueryBytes = kQueries * kDim * 2;
  static constexpr int kLoadedQueryBytes = kQueryBytes;
  static constexpr int kStepBytes = kKeys * kDim * 2;
  static constexpr int kValueBytes = kStepBytes;  // of a slot
  // Small blocks share a multiprocessor: one works while others wait. They have a warp that loads,
  // and registers enough for all; the others a warpgroup, as registers move between such.
  static constexpr bool kSmall = kGroups == 1;
  static constexpr int kBlocks = kSmall ? 3 : 1;
  static constexpr int kThreads = 128 * kGroups + (kSmall ? 32 : 128);
  static constexpr int kLoadRegisters = kGroups == 3 ? 32 : kPieces == 2 ? 88 : 72;
  static constexpr int kComputeRegisters = kGroups == 3 ? 160 : kPieces == 2 ? 208 : 216;
  // Where there is room Q of the next tile is loaded meanwhile, or one step of V less is held.
  static constexpr int kRoom = 227 * 1024 / kBlocks - 2048;
  static constexpr int kRings = 2 * kStages * kStepBytes;
  static constexpr int kSlots = 2 * kQueryBytes + kRings <= kRoom ? 2 : 1;
  static constexpr int kValueStages = kQueryBytes + kRings <= kRoom ? kStages : kStages - 1;
};

/// The shape of a kernel of 8-bit numbers, in two warpgroups and steps of 128 keys, one span each.
/// Rows are 128 bytes; O is twice as large as Q and written into the same slot.
///
/// kLogits_  numbers of q and k: e4m3 or s8
/// kListed_  for lists
/// kByKey_   keys of a span differ in their scale
template <int kDim_, Type kLogits_, bool kListed_, bool kByKey_>
struct BytesShape {
  static constexpr bool kIsBytes = true, kPacked = false;
  static constexpr int kHeights = 1;
  static constexpr Type kLogits = kLogits_;
  static constexpr bool kByKey = kByKey_;
  static constexpr int kDim = kDim_, kGroups = 2, kKeys = 128, kStages = 4;
  static constexpr bool kListed = kListed_;
  static constexpr int kPieces = 1;
  static constexpr int kQueries = 64 * kGroups;
  static constexpr int kSpan = kKeys;
  static constexpr int kPanels = kDim / 128;  // of 128 columns
  static constexpr int kQueryBytes = kQueries * kDim * 2;
  static constexpr int kLoadedQueryBytes = kQueries * kDim;
  static constexpr int kStepBytes = kKeys * kDim;
  static constexpr int kOnesBytes = 8 * kKeys;  // as if V had eight channels more, all 1
  static constexpr int kValueBytes = kStepBytes + kOnesBytes;
  static constexpr int kScales = kByKey ? kKeys : 4;  // loaded of a step; of 4 the first is used
  static constexpr bool kSmall = false;
  static constexpr int kBlocks = 1;
  static constexpr int kThreads = 128 * kGroups + 128;
  static constexpr int kLoadRegisters = 72;
  static constexpr int kComputeRegisters = 216;
  static constexpr int kSlots = 2;
  static constexpr int kValueStages = kStages;
};

/// What a tile of queries has to do; `steps` below 0: there are no more tiles.
struct TileNotes {
  int head, item, begin, len, steps;
};

/// What is to be done with the logits of a step's spans.
template <int kPieces>
struct StepNotes {
  bool is_plain;               // nothing
  int32_t len[kPieces];        // keys that count
  uint32_t mask[kPieces];      // 1 + the number of a mask of pairs, or 0
  const float* bias[kPieces];  // of the first key, or null
  int32_t bias_from[kPieces];  // the first key that has one
};

/// Scales of the keys of steps, where numbers have 8 bits.
template <typename Shape, bool kIsBytes = Shape::kIsBytes>
struct KeyScales {
  alignas(16) float of_step[Shape::kStages][Shape::kScales];
};
template <typename Shape>
struct KeyScales<Shape, false> {};

/// What the warp that looks for tiles of packed lists tells those that load; `steps` below 0: there
/// are no more.
struct PackedTile {
  const PackedSpan* list;
  int item, kv_head, steps;
};
template <bool kPacked>
struct PackedNotes {
  PackedSpan first_spans[32];  // of the list
  PackedTile tile;
  uint64_t found, taken;
};
template <>
struct PackedNotes<false> {};

template <typename Shape>
struct ForwardMemory : KeyScales<Shape> {
  // (panels, queries, 64), then O in the same places
  alignas(1024) char q[Shape::kSlots][Shape::kQueryBytes];
  alignas(1024) char k[Shape::kStages][Shape::kStepBytes];        // (panels, keys, 64)
  alignas(1024) char v[Shape::kValueStages][Shape::kValueBytes];  // (pieces, panels, keys, 64)
  uint64_t q_full[Shape::kSlots], q_empty[Shape::kSlots];
  uint64_t k_full[Shape::kStages], k_empty[Shape::kStages];
  uint64_t v_full[Shape::kValueStages], v_empty[Shape::kValueStages];
  TileNotes tiles[Shape::kSlots];
  StepNotes<Shape::kPieces> steps[Shape::kListed ? Shape::kStages : 1];
  volatile float held[4 * Shape::kGroups];  // by warps; written, never read
  [[no_unique_address]] PackedNotes<Shape::kPacked> packed;
};

/// What makes 8-bit numbers values; see `EightBitOperands`.
struct ForwardScales {
  const float* q = nullptr;    // [batch, heads, q_len]
  const float* k = nullptr;    // [batch, kv_heads, places]
  const float* v = nullptr;    // [batch, kv_heads, dim]
  const float* lse = nullptr;  // [batch, heads, q_len] to be added to lse, or null
  int places = 0;
};

struct ForwardParams {
  int heads, heads_per_kv, q_len, kv_len;
  int tiles, num_tiles;  // of a head, of all heads
  int32_t* next_tile;
  TileLists lists;
  int more_begin;  // keys from here on are those of the other tensors
  KeyBias key_bias;
  RowOrder out_order;
  MutableHeadRows out;
  float* lse;
  float scale_log2;  // sm_scale * log2(e)
  float inverse_scale;
  ForwardScales scales;
};

/// Tensor maps of the copy engine, in the kernel's parameters; of keys and values by the rows of a
/// box, behind them those of the other tensors.
template <int kHeights>
struct ForwardMaps {
  CUtensorMap q, out;
  CUtensorMap k[2 * kHeights], v[2 * kHeights];
};

/// The number of a block's next tile, as the first lane of a warp has it: of lists whichever comes
/// next when the block is ready for it.
__device__ inline int draw_tile(const ForwardParams& params, int index, int lane) {
  if (params.next_tile == nullptr) return index + gridDim.x;
  int ticket = 0;
  if (lane == 0) {
    ticket = atomicAdd(params.next_tile, 1);
    // One for each tile is drawn: this is the last one.
    if (ticket == params.num_tiles - 1) *params.next_tile = 0;
  }
  return ticket + gridDim.x;
}

/// What is loaded, tile by tile; one warp. All its threads wait and read lists, 32 spans at a time
/// and one such time ahead; the first one copies.
template <typename Shape>
struct Loader {
  static constexpr int kPieces = Shape::kPieces;
  static constexpr unsigned kAll = 0xffffffff;

  const ForwardParams& params;
  const ForwardMaps<Shape::kHeights>& maps;
  ForwardMemory<Shape>& memory;
  int lane;
  uint64_t once = tma::evict_first(), often = tma::evict_last();
  RingPlace<Shape::kStages> k_place = {};
  RingPlace<Shape::kValueStages> v_place = {};
  RingPlace<Shape::kSlots> q_place = {};

  // Of the tile at hand.
  TileNotes tile = {};
  int kv_head = 0, spans = 0, part = 0;
  const KeySpan* list = nullptr;
  KeySpan kept = {}, kept_next = {};  // by this thread
  // The tile after it. What it has to do is found out bit by bit, as each answer of the memory
  // takes hundreds of cycles.
  int index = 0, found = 0;
  QueryTile queries = {};
  int upcoming_spans = 0;
  bool is_announced = false;
  KeySpan upcoming_kept = {};

  struct Step {
    KeySpan spans[kPieces];
  };

  /// The map of the upcoming tile.
  __device__ int64_t upcoming_map() const {
    const int head = index / params.tiles % params.heads;
    const int item = index / params.tiles / params.heads;
    return item * params.lists.batch_stride + head * params.lists.head_stride;
  }
  __device__ const KeySpan* upcoming_list() const {
    return params.lists.spans +
           (upcoming_map() * params.lists.rows + queries.row) * params.lists.capacity;
  }

  /// One step further in finding out what the upcoming tile has to do.
  __device__ void look_ahead() {
    const TileLists& lists = params.lists;
    const bool is_one = index < params.num_tiles;
    switch (found++) {
      case 0:
        index = draw_tile(params, index, lane);
        break;
      case 1:
        index = __shfl_sync(kAll, index, 0);
        queries = {};
        if (index < params.num_tiles) {
          queries = lists.tiles[upcoming_map() * lists.tiles_per_map + index % params.tiles];
        }
        break;
      case 2:
        upcoming_spans = 0;
        if (is_one && queries.len > 0) {
          upcoming_spans = lists.counts[upcoming_map() * lists.rows + queries.row];
        }
        break;
      case 3:
        if (is_one && queries.len == 0) {  // a place without a tile
          found = 0;
        } else {
          upcoming_kept = kept_of(upcoming_list(), upcoming_spans, 0);
        }
        break;
    }
  }
  static constexpr int kAllFound = 4;

  __device__ TileNotes upcoming_notes() const {
    TileNotes out;
    out.head = index / params.tiles % params.heads;
    out.item = index / params.tiles / params.heads;
    int spans = upcoming_spans;
    if constexpr (Shape::kListed) {
      out.begin = queries.begin, out.len = queries.len;
    } else {
      out.begin = index % params.tiles * Shape::kQueries;
      out.len = min(Shape::kQueries, params.q_len - out.begin);
      spans = (params.kv_len + Shape::kSpan - 1) / Shape::kSpan;
    }
    out.steps = index < params.num_tiles ? (spans + kPieces - 1) / kPieces : -1;
    return out;
  }

  /// The upcoming tile becomes the one at hand.
  __device__ void take() {
    tile = upcoming_notes();
    kv_head = tile.head / params.heads_per_kv;
    is_announced = false;
    if constexpr (Shape::kListed) {
      spans = upcoming_spans, part = queries.part, list = upcoming_list();
      kept_next = upcoming_kept;
      found = 0;
    } else {
      index += gridDim.x;
    }
  }

  /// The span that this thread keeps of those of a tile from number `first` on. From the last step
  /// to the first: what is not full comes first then.
  __device__ KeySpan kept_of(const KeySpan* list, int spans, int first) const {
    const int number = first + lane, steps = (spans + kPieces - 1) / kPieces;
    const int at = (steps - 1 - number / kPieces) * kPieces + number % kPieces;
    if (at < 0 || at >= spans) return {params.kv_len, 0};  // the copy engine brings zeros
    return list[at];
  }

  __device__ Step step(int i) {
    Step out;
    if constexpr (Shape::kListed) {
      const int first = i * kPieces % 32;
      if (first == 0) {
        kept = kept_next;
        kept_next = kept_of(list, spans, i * kPieces + 32);
      }
#pragma unroll
      for (int piece = 0; piece < kPieces; ++piece) {
        const uint64_t bits = __shfl_sync(kAll, bits_of(kept), first + piece);
        memcpy(&out.spans[piece], &bits, sizeof bits);
      }
    } else {
      out.spans[0] = {(tile.steps - 1 - i) * Shape::kSpan, 0};
    }
    return out;
  }
  __device__ static uint64_t bits_of(const KeySpan& span) {
    uint64_t bits;
    static_assert(sizeof bits == sizeof span);
    memcpy(&bits, &span, sizeof bits);
    return bits;
  }

  __device__ StepNotes<kPieces> notes_of(const Step& step) const {
    StepNotes<kPieces> out;
    out.is_plain = true;
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece) {
      const KeySpan& span = step.spans[piece];
      const KeyBias& bias = params.key_bias;
      out.len[piece] = static_cast<int32_t>(span.len);
      out.mask[piece] = span.mask == 0 ? 0 : span.mask + part;
      out.bias[piece] = nullptr;
      out.bias_from[piece] = bias.begin - span.begin;
      if (bias.data != nullptr && static_cast<int32_t>(span.len) > out.bias_from[piece]) {
        out.bias[piece] = bias.data + tile.item * bias.batch_stride + tile.head * bias.head_stride -
                          out.bias_from[piece];
      }
      out.is_plain =
          out.is_plain && span.len == Shape::kSpan && span.mask == 0 && out.bias[piece] == nullptr;
    }
    return out;
  }

  __device__ void load_k(const Step& step) {
    const auto [slot, parity] = k_place;
    uint64_t* const full = &memory.k_full[slot];
    k_place.next();
    ptx::wait(&memory.k_empty[slot], parity ^ 1);
    if (lane != 0) return;
    if constexpr (Shape::kListed) memory.steps[slot] = notes_of(step);
    if constexpr (Shape::kIsBytes) {
      load_scales(step.spans[0].begin, slot);
    } else {
      ptx::arrive_expect(full, Shape::kStepBytes);
    }
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece) {
      const auto [map, begin] = place_of(step.spans[piece], maps.k);
      if constexpr (kPieces == 1) {
        tma::load(memory.k[slot], *map, {0, begin, 0, kv_head, tile.item}, full, often);
      } else {
#pragma unroll
        for (int panel = 0; panel < Shape::kPanels; ++panel) {
          char* const rows = memory.k[slot] + (panel * Shape::kKeys + piece * Shape::kSpan) * 128;
          tma::load(rows, *map, {0, begin, panel, kv_head, tile.item}, full, often);
        }
      }
    }
  }

  /// Announces a step of keys, and loads their scales: as many as there are.
  __device__ void load_scales(int begin, int slot) {
    const int bytes = min(Shape::kScales, params.scales.places - begin) * 4;
    ptx::arrive_expect(&memory.k_full[slot], Shape::kStepBytes + bytes);
    const int64_t row =
        static_cast<int64_t>(tile.item) * (params.heads / params.heads_per_kv) + kv_head;
    ptx::bulk_load(memory.of_step[slot], params.scales.k + row * params.scales.places + begin,
                   bytes, &memory.k_full[slot]);
  }

  __device__ void load_v(const Step& step) {
    const auto [slot, parity] = v_place;
    v_place.next();
    ptx::wait(&memory.v_empty[slot], parity ^ 1);
    if (lane != 0) return;
    ptx::arrive_expect(&memory.v_full[slot], Shape::kStepBytes);
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece) {
      const auto [map, begin] = place_of(step.spans[piece], maps.v);
      // Transposed where numbers have 8 bits.
      const tma::Corner at = Shape::kIsBytes ? tma::Corner{begin, 0, 0, kv_head, tile.item}
                                             : tma::Corner{0, begin, 0, kv_head, tile.item};
      tma::load(memory.v[slot] + piece * (Shape::kStepBytes / kPieces), *map, at,
                &memory.v_full[slot], often);
    }
  }

  struct Place {
    const CUtensorMap* map;
    int begin;
  };
  __device__ Place place_of(const KeySpan& span, const CUtensorMap (&own)[2]) const {
    if (!Shape::kListed || Shape::kIsBytes || span.begin < params.more_begin)
      return {own, span.begin};
    return {own + 1, span.begin - params.more_begin};
  }

  /// Tells the others about the upcoming tile and loads its Q, or that there is none.
  __device__ void announce() {
    const TileNotes notes = upcoming_notes();
    const auto [slot, parity] = q_place;
    uint64_t* const full = &memory.q_full[slot];
    q_place.next();
    is_announced = true;
    ptx::wait(&memory.q_empty[slot], parity ^ 1);
    if (lane != 0) return;
    memory.tiles[slot] = notes;
    if (notes.steps < 0) {
      ptx::arrive(full);
      return;
    }
    ptx::arrive_expect(full, Shape::kLoadedQueryBytes);
    tma::load(memory.q[slot], maps.q, {0, notes.begin, 0, notes.head, notes.item}, full, once);
  }

  __device__ void load_tile() {
    Step before = {};
#pragma unroll 1
    for (int i = 0; i < tile.steps; ++i) {
      const Step step = this->step(i);
      load_k(step);
      if (i > 0) load_v(before);
      before = step;
      __syncwarp();
      if (!Shape::kListed) continue;
      if (found < kAllFound) {
        look_ahead();
      } else if (Shape::kSlots > 1 && !is_announced && i > Shape::kStages) {
        announce();  // does not wait: the tile before this one is done
        __syncwarp();
      }
    }
    if (tile.steps > 0) load_v(before);
    __syncwarp();
  }

  __device__ void load_all() {
    index = blockIdx.x;
    found = 1;
    while (true) {
      while (Shape::kListed && found < kAllFound) look_ahead();
      if (!is_announced) announce();
      __syncwarp();
      if (index >= params.num_tiles) break;
      take();
      load_tile();
    }
  }
};

}  // namespace fovea::kernels::sm90
