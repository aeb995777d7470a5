#pragma once

#include <cstdint>

#include "kernels/attention/block_sparse_cuda.h"
#include "kernels/attention/online_softmax.cuh"
#include "kernels/common/fragment.cuh"
#include "kernels/common/tma.cuh"
#include "kernels/common/wgmma.cuh"

// The forward pass of softmax attention on compute capability 9.0a.
//
// A block has one warpgroup that loads and kGroups that compute, 64 queries each. The loading warp
// takes tiles of queries one after the other; of each it tells the others what there is to do,
// loads Q, then the keys step by step into two rings, of K and of V. A computing warpgroup starts
// S = Q Kᵀ of a step and O += P V of the step before it together, and makes P of the former while
// the matrix units still work on the latter (FlashAttention-3, Shah et al. 2024, arXiv:2407.08608,
// section 3.2). The softmax is online (Milakov and Gimelshein 2018, arXiv:1805.02867); sums of a
// row are kept by four threads and joined at the end.

namespace fovea::kernels::sm90 {

using wgmma::Type;

/// The shape of a kernel; without pieces it is for dense attention, with one or two for lists.
template <int kDim_, int kGroups_, int kKeys_, int kStages_, int kPieces_ = 0, bool kHold_ = false>
struct ForwardShape {
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
  static constexpr int kStepBytes = kKeys * kDim * 2;
  // Small blocks share a multiprocessor: one works while others wait. They have a warp that loads,
  // and registers enough for all; the others a warpgroup, as registers move between such.
  static constexpr bool kSmall = kGroups == 1;
  static constexpr int kBlocks = kSmall ? 3 : 1;
  static constexpr int kThreads = 128 * kGroups + (kSmall ? 32 : 128);
  static constexpr int kLoadRegisters = kGroups == 3 ? 32 : 88;
  static constexpr int kComputeRegisters = kGroups == 3 ? 160 : 208;
  // Where there is room Q of the next tile is loaded meanwhile, or one step of V less is held.
  static constexpr int kRoom = 227 * 1024 / kBlocks - 2048;
  static constexpr int kRings = 2 * kStages * kStepBytes;
  static constexpr int kSlots = 2 * kQueryBytes + kRings <= kRoom ? 2 : 1;
  static constexpr int kValueStages = kQueryBytes + kRings <= kRoom ? kStages : kStages - 1;
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

template <typename Shape>
struct ForwardMemory {
  // (panels, queries, 64), then O in the same places
  alignas(1024) char q[Shape::kSlots][Shape::kQueryBytes];
  alignas(1024) char k[Shape::kStages][Shape::kStepBytes];       // (panels, keys, 64)
  alignas(1024) char v[Shape::kValueStages][Shape::kStepBytes];  // (pieces, panels, keys, 64)
  uint64_t q_full[Shape::kSlots], q_empty[Shape::kSlots];
  uint64_t k_full[Shape::kStages], k_empty[Shape::kStages];
  uint64_t v_full[Shape::kValueStages], v_empty[Shape::kValueStages];
  TileNotes tiles[Shape::kSlots];
  StepNotes<Shape::kPieces> steps[Shape::kListed ? Shape::kStages : 1];
  volatile float held[4 * Shape::kGroups];  // by warps; written, never read
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
};

/// Tensor maps of the copy engine, in the kernel's parameters.
struct ForwardMaps {
  CUtensorMap q, k, v, more_k, more_v, out;
};

/// A place in a ring, and the parity of its phase.
template <int kStages>
struct RingPlace {
  int slot = 0;
  uint32_t parity = 0;

  __device__ void next() {
    if (++slot == kStages) slot = 0, parity ^= 1;
  }
};

/// What is loaded, tile by tile; one warp. All its threads wait and read lists, 32 spans at a time
/// and one such time ahead; the first one copies.
template <typename Shape>
struct Loader {
  static constexpr int kPieces = Shape::kPieces;
  static constexpr unsigned kAll = 0xffffffff;

  const ForwardParams& params;
  const ForwardMaps& maps;
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

  /// The number of the next tile: of lists whichever comes next when this block is ready for it.
  __device__ int draw() const {
    if (params.next_tile == nullptr) return index + gridDim.x;
    int ticket = 0;
    if (lane == 0) {
      ticket = atomicAdd(params.next_tile, 1);
      // One for each tile is drawn: this is the last one.
      if (ticket == params.num_tiles - 1) *params.next_tile = 0;
    }
    return ticket + gridDim.x;
  }

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
        index = draw();
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
    ptx::arrive_expect(full, Shape::kStepBytes);
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece) {
      const auto [map, begin] = place_of(step.spans[piece], maps.k, maps.more_k);
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

  __device__ void load_v(const Step& step) {
    const auto [slot, parity] = v_place;
    v_place.next();
    ptx::wait(&memory.v_empty[slot], parity ^ 1);
    if (lane != 0) return;
    ptx::arrive_expect(&memory.v_full[slot], Shape::kStepBytes);
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece) {
      const auto [map, begin] = place_of(step.spans[piece], maps.v, maps.more_v);
      tma::load(memory.v[slot] + piece * (Shape::kStepBytes / kPieces), *map,
                {0, begin, 0, kv_head, tile.item}, &memory.v_full[slot], often);
    }
  }

  struct Place {
    const CUtensorMap* map;
    int begin;
  };
  __device__ Place place_of(const KeySpan& span, const CUtensorMap& own,
                            const CUtensorMap& more) const {
    if (!Shape::kListed || span.begin < params.more_begin) return {&own, span.begin};
    return {&more, span.begin - params.more_begin};
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
    ptx::arrive_expect(full, Shape::kQueryBytes);
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

/// One of the computing warpgroups.
template <typename Shape, Type kType>
struct Computer {
  static constexpr int kPieces = Shape::kPieces;

  const ForwardParams& params;
  const ForwardMaps& maps;
  ForwardMemory<Shape>& memory;
  int group, thread;
  // Matrices of this warpgroup's queries, and of the first slots.
  wgmma::Matrix q = wgmma::k_major(ptx::shared_address(memory.q) + group * 64 * 128);
  wgmma::Matrix k = wgmma::k_major(ptx::shared_address(memory.k));
  wgmma::Matrix v = wgmma::n_major(ptx::shared_address(memory.v), Shape::kSpan * 128);
  RingPlace<Shape::kStages> k_place = {};
  RingPlace<Shape::kValueStages> v_place = {};
  RingPlace<Shape::kSlots> q_place = {};
  bool stores = false;  // of the tile before, from the other slot
  float o[Shape::kDim / 2];
  float s[Shape::kKeys / 2];
  uint32_t p[Shape::kKeys / 16][4];

  /// One thread a warp says that it has read a slot.
  __device__ void release(uint64_t* empty) const {
    if (thread % 32 == 0) ptx::arrive(empty);
  }

  /// S = Q Kᵀ of the ring's next step, as a group of its own.
  __device__ void start_logits() {
    const wgmma::Matrix queries =
        Shape::kSlots == 1 ? q : q.further(q_place.slot * Shape::kQueryBytes);
    const wgmma::Matrix keys = k.further(k_place.slot * Shape::kStepBytes);
    wgmma::fence();
#pragma unroll
    for (int step = 0; step < Shape::kDim / 16; ++step) {
      const int inside = step % 4 * wgmma::kStepBytes;
      wgmma::multiply<kType>(s, queries.further(step / 4 * Shape::kQueries * 128 + inside),
                             keys.further(step / 4 * Shape::kKeys * 128 + inside), step > 0);
    }
    wgmma::commit();
  }

  /// O += P V of the ring's next step.
  __device__ void start_values(bool is_first) {
    const wgmma::Matrix values = v.further(v_place.slot * Shape::kStepBytes);
    wgmma::fence();
#pragma unroll
    for (int step = 0; step < Shape::kKeys / 16; ++step) {
      constexpr int kSteps = Shape::kSpan / 16;  // of a piece
      constexpr int kPieceBytes = Shape::kStepBytes / kPieces;
      const int rows = step / kSteps * kPieceBytes + step % kSteps * 2048;
      wgmma::multiply<kType, true>(o, p[step], values.further(rows), step > 0 || !is_first);
    }
    wgmma::commit();
  }

  /// Keys from column `len` of a piece on count nothing.
  __device__ void cut(int piece, int len) {
#pragma unroll
    for (int i = 0; i < Shape::kSpan / 2; ++i) {
      if (fragment::column(thread, i) >= len) s[piece * (Shape::kSpan / 2) + i] = -INFINITY;
    }
  }

  /// What a step's notes ask for.
  __device__ void amend(const StepNotes<kPieces>& notes) {
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece) {
      constexpr int kCount = Shape::kSpan / 2;
      float* const own = s + piece * kCount;
      const int len = notes.len[piece];
      if (const float* const bias = notes.bias[piece]; bias != nullptr) {
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
          const int key = fragment::column(thread, i);
          if (key < notes.bias_from[piece] || key >= len) continue;
          own[i] = fmaf(bias[key], params.inverse_scale, own[i]);
        }
      }
      if (notes.mask[piece] != 0) {
        const int64_t row = static_cast<int64_t>(notes.mask[piece] - 1) * Shape::kQueries +
                            group * 64 + fragment::first_row(thread);
        const uint32_t* const words = params.lists.masks + row * kMaskWords + thread % 4;
        const uint32_t seen[2] = {words[0], words[8 * kMaskWords]};
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
          if ((seen[i / 2 % 2] >> (i / 4 * 2 + i % 2) & 1) == 0) own[i] = -INFINITY;
        }
      }
      if (len < Shape::kSpan) cut(piece, len);
    }
  }

  __device__ void make_operand() {
#pragma unroll
    for (int step = 0; step < Shape::kKeys / 16; ++step) {
      fragment::to_operand<kType>(s, step, p[step]);
    }
  }

  __device__ void rescale(const float (&keep)[2]) {
    if (!__any_sync(0xffffffff, keep[0] != 1 || keep[1] != 1)) return;
#pragma unroll
    for (int i = 0; i < Shape::kDim / 2; ++i) o[i] *= keep[i / 2 % 2];
  }

  /// The logits of the step just made, whose slot is free then. Of dense attention only the first
  /// step has less than all keys.
  __device__ void finish_logits(bool is_first) {
    wgmma::pin(s);
    if constexpr (Shape::kListed) {
      const StepNotes<kPieces>& notes = memory.steps[k_place.slot];
      if (!notes.is_plain) amend(notes);
    } else if (is_first) {
      const int len = params.kv_len - (params.kv_len - 1) / Shape::kKeys * Shape::kKeys;
      if (len < Shape::kKeys) cut(0, len);
    }
    release(&memory.k_empty[k_place.slot]);
    k_place.next();
  }

  /// Logits of the next step, and what becomes of them.
  __device__ void take_logits(bool is_first) {
    ptx::wait(&memory.k_full[k_place.slot], k_place.parity);
    start_logits();
    wgmma::wait<0>();
    finish_logits(is_first);
  }
  __device__ void finish_values() {
    wgmma::pin(o);
    release(&memory.v_empty[v_place.slot]);
    v_place.next();
  }

  /// All steps of a tile, at least one: products and softmax of this warpgroup side by side.
  __device__ void attend(int steps, OnlineSoftmax& softmax) {
    float keep[2];
    take_logits(true);
    softmax.step(params.scale_log2, s, keep);
    make_operand();
    if constexpr (Shape::kSlots > 1) release_stored();
    for (int i = 1; i < steps; ++i) {
      ptx::wait(&memory.k_full[k_place.slot], k_place.parity);
      start_logits();
      ptx::wait(&memory.v_full[v_place.slot], v_place.parity);
      start_values(i == 1);
      wgmma::wait<1>();
      finish_logits(false);
      softmax.step(params.scale_log2, s, keep);
      if constexpr (Shape::kHold)
        memory.held[group * 4 + thread / 32] = softmax.sum[0] + softmax.sum[1];
      wgmma::wait<0>();
      finish_values();
      make_operand();
      rescale(keep);
    }
    ptx::wait(&memory.v_full[v_place.slot], v_place.parity);
    start_values(steps == 1);
    wgmma::wait<0>();
    finish_values();
  }

  /// The same one after the other, with fewer registers: other blocks work meanwhile. O is 0.
  __device__ void attend_alone(int steps, OnlineSoftmax& softmax) {
    float keep[2];
    bool is_first = true;
    do {
      take_logits(is_first);
      softmax.step(params.scale_log2, s, keep);
      make_operand();
      if (!is_first) rescale(keep);
      is_first = false;
      wgmma::pin(o);
      ptx::wait(&memory.v_full[v_place.slot], v_place.parity);
      start_values(false);
      wgmma::wait<0>();
      finish_values();
    } while (--steps > 0);
  }

  /// Divides, writes O into the place of this warpgroup's queries, and from there away.
  __device__ void write(const TileNotes& tile, OnlineSoftmax& softmax) {
    softmax.join();
    const int first = tile.begin + group * 64;
    const int rows = min(64, tile.len - group * 64);  // below 1: none
    const RowOrder& order = params.out_order;
    const int32_t* const places =
        order.rows == nullptr
            ? nullptr
            : order.rows + tile.item * order.batch_stride + tile.head * order.head_stride + first;
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const float share = softmax.sum[row] == 0 ? 0 : 1 / softmax.sum[row];
#pragma unroll
      for (int i = 2 * row; i < Shape::kDim / 2; i += 4) o[i] *= share, o[i + 1] *= share;
      const int own = fragment::first_row(thread) + 8 * row;
      if (params.lse != nullptr && thread % 4 == 0 && own < rows) {
        const int64_t of_head = static_cast<int64_t>(tile.item) * params.heads + tile.head;
        const int place = places == nullptr ? first + own : places[own];
        params.lse[of_head * params.q_len + place] = softmax.lse(params.scale_log2, row);
      }
    }
    char* const box = memory.q[q_place.slot] + group * 64 * 128;
    fragment::store<kType>(o, ptx::shared_address(box), Shape::kQueries * 128, thread);
    ptx::fence_async_proxy();
    ptx::named_sync(1 + group, 128);
    // The copy engine leaves out rows behind the end of the sequence, but not those of another
    // tile, and knows no orders.
    if (places == nullptr && (!Shape::kListed || rows == 64 || first + rows == params.q_len)) {
      if (thread == 0 && rows > 0) {
#pragma unroll
        for (int panel = 0; panel < Shape::kPanels; ++panel) {
          tma::store(maps.out, {0, first, panel, tile.head, tile.item},
                     box + panel * Shape::kQueries * 128);
        }
        ptx::bulk_commit();
      }
    } else {
      copy_rows(tile, places, box, rows);
      ptx::named_sync(1 + group, 128);
    }
    stores = true;
    if constexpr (Shape::kSlots == 1) release_stored();
    q_place.next();
  }

  /// The slot of the queries whose O was written last is free when that has been read. Where there
  /// is another slot this is asked in the middle of the next tile, when it has.
  __device__ void release_stored() {
    if (!stores) return;
    stores = false;
    if (thread != 0) return;
    ptx::bulk_wait_read<0>();
    ptx::arrive(&memory.q_empty[q_place.slot ^ (Shape::kSlots - 1)]);
  }

  /// The first rows of `box` to their places, 16 bytes at a time.
  __device__ void copy_rows(const TileNotes& tile, const int32_t* places, const char* box,
                            int rows) const {
    const MutableHeadRows& out = params.out;
    char* const head = static_cast<char*>(out.data) +
                       2 * (tile.item * out.batch_stride + tile.head * out.head_stride);
    constexpr int kUnits = Shape::kDim / 8;  // of 8 columns
    for (int i = thread; i < rows * kUnits; i += 128) {
      const int row = i / kUnits, unit = i % kUnits;
      const char* from =
          box + unit / 8 * Shape::kQueries * 128 + row * 128 + ((unit % 8 ^ row % 8) * 16);
      const int64_t place = places == nullptr ? tile.begin + group * 64 + row : places[row];
      *reinterpret_cast<uint4*>(head + 2 * place * out.row_stride + unit * 16) =
          *reinterpret_cast<const uint4*>(from);
    }
  }

  __device__ void compute_all() {
    while (true) {
      ptx::wait(&memory.q_full[q_place.slot], q_place.parity);
      const TileNotes& tile = memory.tiles[q_place.slot];
      const int steps = tile.steps;
      if (steps < 0) break;
      OnlineSoftmax softmax;
      if (Shape::kSmall || steps == 0) {
#pragma unroll
        for (float& x : o) x = 0;
      }
      if (steps == 0) {
        if constexpr (Shape::kSlots > 1) release_stored();
      } else {
        Shape::kSmall ? attend_alone(steps, softmax) : attend(steps, softmax);
      }
      write(tile, softmax);
    }
    if (Shape::kSlots > 1 && thread == 0) ptx::bulk_wait_read<0>();
  }
};

/// Grid: as many blocks as are to run at a time; see `draw`.
template <typename Shape, Type kType>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kBlocks)
    forward_kernel(const __grid_constant__ ForwardMaps maps,
                   const __grid_constant__ ForwardParams params) {
#ifdef FOVEA_SM90A
  // Behind 1024 bytes of the system's: at a multiple of that.
  extern __shared__ __align__(1024) char shared[];
  auto& memory = *reinterpret_cast<ForwardMemory<Shape>*>(shared);
  if (threadIdx.x == 0) {
    for (int i = 0; i < Shape::kSlots; ++i) {
      ptx::barrier_init(&memory.q_full[i], 1);
      ptx::barrier_init(&memory.q_empty[i], Shape::kGroups);
    }
    for (int i = 0; i < Shape::kStages; ++i) {
      ptx::barrier_init(&memory.k_full[i], 1);
      ptx::barrier_init(&memory.k_empty[i], 4 * Shape::kGroups);
    }
    for (int i = 0; i < Shape::kValueStages; ++i) {
      ptx::barrier_init(&memory.v_full[i], 1);
      ptx::barrier_init(&memory.v_empty[i], 4 * Shape::kGroups);
    }
    ptx::fence_barrier_init();
  }
  __syncthreads();
  const int thread = static_cast<int>(threadIdx.x);
  // As one lane has it, so that the compiler knows that all have the same.
  const int warpgroup = __shfl_sync(0xffffffff, thread / 128, 0);
  if (warpgroup == Shape::kGroups) {
    if constexpr (!Shape::kSmall) ptx::give_registers<Shape::kLoadRegisters>();
    if (thread / 32 % 4 == 0) Loader<Shape>{params, maps, memory, thread % 32}.load_all();
  } else {
    if constexpr (!Shape::kSmall) ptx::take_registers<Shape::kComputeRegisters>();
    Computer<Shape, kType>{params, maps, memory, warpgroup, thread % 128}.compute_all();
  }
#endif
}

}  // namespace fovea::kernels::sm90
