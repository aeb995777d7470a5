#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/attention/forward_sm90.cuh"

// What the backward pass of compute capability 9.0a has in shared memory, and the thread that fills
// it; see backward_sm90.cuh.

namespace fovea::kernels::sm90 {

/// The shape of a kernel; without pieces it is for dense attention, with one or two for lists.
template <bool kColumns_, int kDim_, int kGroups_, int kOthers_, int kStages_, int kPieces_ = 0,
          bool kHold_ = false>
struct BackwardShape {
  static constexpr bool kColumns = kColumns_;  // tiles are of keys
  static constexpr int kDim = kDim_;           // channels of a head
  static constexpr int kGroups = kGroups_;     // computing warpgroups
  static constexpr int kOthers = kOthers_;     // rows of a step
  static constexpr int kStages = kStages_;     // steps that a ring holds
  static constexpr bool kJoint = false;        // see backward_joint_sm90.cuh
  static constexpr bool kListed = kPieces_ > 0;
  static constexpr int kPieces = kListed ? kPieces_ : 1;  // spans of a step
  static constexpr int kOwn = 64 * kGroups;               // rows of a tile
  static constexpr int kSpan = kOthers / kPieces;         // most rows of a span
  static constexpr int kThreads = 128 * (kGroups + 1);
  static constexpr int kPanels = kDim / 64;  // of 64 columns
  static constexpr int kOwnBytes = kOwn * kDim * 2;
  static constexpr int kStepBytes = kOthers * kDim * 2;
  static constexpr int kStats = kColumns ? 4 * kOthers : 0;  // numbers of a step's queries
  // The compiler waits for dP of rows before the exponentials, unless something of these is stored
  // first: then the matrix units work meanwhile.
  static constexpr bool kHold = kHold_;
  static_assert(!kHold || !kColumns, "columns have a product between the two");
  static_assert(kStages >= 2, "U of a step is held until the next one has begun");
  // S of a step starts before the sums of the step before are done; with few registers not, and
  // begins with -lse instead of zero.
  static constexpr bool kAhead = !(kColumns && kDim == 128 && kGroups == 1);
  // Blocks on a multiprocessor, and what its register file gives each of their threads.
  static constexpr int kBlocks = kGroups == 1 ? 2 : 1;
  static constexpr int kLoadRegisters = kGroups == 3 ? 32 : 24;
  static constexpr int kComputeRegisters = kGroups == 3 ? 160 : kGroups == 2 ? 240 : 232;
  // What each thread has at first, in steps of 8: more than all these a block does not get.
  static constexpr int kEntryRegisters = 65536 / (kThreads * kBlocks) / 8 * 8;
  static_assert(kLoadRegisters + kGroups * kComputeRegisters <= kEntryRegisters * (kGroups + 1));
};

/// What is to be known of a span.
struct alignas(8) SpanNotes {
  uint32_t bits;  // length, and 256 times (1 + the mask, or 0)
  int at;         // for biases: of rows the first key, of columns the head of the queries
};

template <typename Shape>
struct BackwardMemory {
  static constexpr int kToY = Shape::kOwnBytes, kToW = Shape::kStages * Shape::kStepBytes;

  // (panels, own rows, 64), then dX and dY in the same places.
  alignas(1024) char x[Shape::kOwnBytes];
  alignas(1024) char y[Shape::kOwnBytes];
  alignas(1024) char u[Shape::kStages][Shape::kStepBytes];  // (panels, other rows, 64)
  alignas(1024) char w[Shape::kStages][Shape::kStepBytes];
  // Of columns: (-lse log2(e), -delta, -, -) of a step's queries; of joint ones all -lse first.
  alignas(128) float stats[Shape::kStages][Shape::kStats > 0 ? Shape::kStats : 32];
  uint64_t own_full, own_empty;
  TileNotes tile;  // what there is to do with the own rows
  uint64_t u_full[Shape::kStages], u_empty[Shape::kStages];
  uint64_t w_full[Shape::kStages], w_empty[Shape::kStages];
  volatile uint32_t held[4 * Shape::kGroups];  // written, never read
  SpanNotes spans[Shape::kStages][Shape::kPieces];
};

/// Tensors as the copy engine sees them. `more` are those of forward.more: of keys that are other
/// rows U and W, or own rows X, Y, dX and dY.
struct BackwardMaps {
  CUtensorMap x, y, u, w, dx, dy, stats;
  CUtensorMap more_x, more_y, more_u, more_w, more_dx, more_dy;
};

struct BackwardParams {
  int heads, heads_per_kv;  // those of own rows; of columns as many heads of others for each
  int own_len, other_len;
  int more_begin, more_len;  // positions of more keys; 2^31 - 1 where there are none
  int tiles, num_tiles;      // of a head, of all heads
  TileLists lists;
  KeyBias key_bias;
  MutableHeadRows dx, dy, more_dx, more_dy;
  // [batch, heads of queries, queries] of (-lse log2(e), -delta, -, -): what the copy engine brings
  // begins at multiples of 16 bytes. Of joint ones [batch, heads, steps, 2, queries of a step].
  const float* stats;
  float scale, scale_log2, per_scale_log2;  // sm_scale, times log2(e), and 1 over that
  float inverse_scale;                      // 1 over sm_scale
};

/// The other rows that a tile sees, of one head.
template <typename Shape>
struct Walk {
  const KeySpan* list = nullptr;
  int spans, steps, len;

  __device__ Walk(const BackwardParams& params, int item, int head, const QueryTile& own)
      : len(params.other_len) {
    if constexpr (Shape::kListed) {
      const TileLists& lists = params.lists;
      const int64_t map = item * lists.batch_stride + head * lists.head_stride;
      const int64_t row = map * lists.rows + own.row;
      list = lists.spans + row * lists.capacity;
      spans = own.len > 0 ? lists.counts[row] : 0;
    } else {
      spans = (len + Shape::kSpan - 1) / Shape::kSpan;
    }
    steps = (spans + Shape::kPieces - 1) / Shape::kPieces;
  }

  /// A piece of step i. From the last step to the first: what is not full comes first then.
  __device__ KeySpan span(int i, int piece) const {
    const int at = (steps - 1 - i) * Shape::kPieces + piece;
    if (at >= spans) return {len, 0};  // the copy engine brings zeros
    if constexpr (Shape::kListed) return list[at];
    return {at * Shape::kSpan, static_cast<uint32_t>(min(Shape::kSpan, len - at * Shape::kSpan))};
  }
};

/// What a tile has to do.
template <typename Shape>
struct BackwardWork {
  int head, item;
  QueryTile own;

  __device__ BackwardWork(const BackwardParams& params, int index) {
    const int tile = index % params.tiles;
    head = index / params.tiles % params.heads;
    item = index / params.tiles / params.heads;
    if constexpr (Shape::kListed) {
      const TileLists& lists = params.lists;
      const int64_t map = item * lists.batch_stride + first_head(params) * lists.head_stride;
      own = lists.tiles[map * lists.tiles_per_map + tile];
    } else {
      const int begin = tile * Shape::kOwn;
      own = {begin, min(Shape::kOwn, params.own_len - begin), 0, 0};
    }
  }

  /// Heads of queries that the tile has to do with.
  __device__ int first_head(const BackwardParams& params) const {
    return Shape::kColumns ? head * params.heads_per_kv : head;
  }
  __device__ int walks(const BackwardParams& params) const {
    return Shape::kColumns ? params.heads_per_kv : 1;
  }
  __device__ Walk<Shape> walk(const BackwardParams& params, int i) const {
    return Walk<Shape>(params, item, first_head(params) + i, own);
  }
  __device__ int steps(const BackwardParams& params) const {
    int sum = 0;
    for (int i = 0; i < walks(params); ++i) sum += walk(params, i).steps;
    return sum;
  }
};

/// Whether the own rows that begin there are more keys, which the joint form does not take.
template <typename Shape>
__device__ bool is_more(const BackwardParams& params, int begin) {
  return Shape::kColumns && Shape::kListed && !Shape::kJoint && begin >= params.more_begin;
}

/// The copies of a tile's steps; one thread.
template <typename Shape>
struct BackwardLoader {
  static constexpr int kPieces = Shape::kPieces;

  const BackwardParams& params;
  const BackwardMaps& maps;
  BackwardMemory<Shape>& memory;
  uint64_t policy;
  RingPlace<Shape::kStages> place;
  int head = 0, item = 0;  // of the other rows
  int part = 0;            // of the tile, for masks
  uint32_t own_parity = 0;
  int before_own = 0;  // steps to load before the own rows; below 0: they are loaded

  /// Spans of a step, asked for before they are needed.
  struct Step {
    KeySpan spans[kPieces];
  };
  __device__ static Step step(const Walk<Shape>& walk, int i) {
    Step out;
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece) out.spans[piece] = walk.span(i, piece);
    return out;
  }

  /// All pieces of U or W, of keys also from the more keys.
  __device__ void load_rows(char* ring, const CUtensorMap& map, const CUtensorMap& more,
                            const Step& step, uint64_t* full) const {
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece) {
      const KeySpan span = step.spans[piece];
      bool is_more = false;
      if constexpr (!Shape::kColumns && Shape::kListed) {
        is_more = span.len > 0 && span.begin >= params.more_begin;
      }
      const CUtensorMap& from = is_more ? more : map;
      const int begin = is_more ? span.begin - params.more_begin : span.begin;
      if constexpr (kPieces == 1) {
        tma::load(ring, from, {0, begin, 0, head, item}, full, policy);
      } else {
#pragma unroll
        for (int panel = 0; panel < Shape::kPanels; ++panel) {
          char* const rows = ring + (panel * Shape::kOthers + piece * Shape::kSpan) * 128;
          tma::load(rows, from, {0, begin, panel, head, item}, full, policy);
        }
      }
    }
  }

  /// W first: its place is free first.
  __device__ void load(const Step& step) {
    const int slot = place.slot;
    ptx::wait(&memory.w_empty[slot], place.parity ^ 1);
    ptx::arrive_expect(&memory.w_full[slot], Shape::kStepBytes);
    load_rows(memory.w[slot], maps.w, maps.more_w, step, &memory.w_full[slot]);
    ptx::wait(&memory.u_empty[slot], place.parity ^ 1);
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece) {
      const KeySpan span = step.spans[piece];
      const uint32_t mask = span.mask == 0 ? 0 : span.mask + part;
      memory.spans[slot][piece] = {span.len | mask << 8, Shape::kColumns ? head : span.begin};
    }
    ptx::arrive_expect(&memory.u_full[slot], Shape::kStepBytes + 4 * Shape::kStats);
    load_rows(memory.u[slot], maps.u, maps.more_u, step, &memory.u_full[slot]);
    if constexpr (Shape::kJoint) {
      const int64_t of_head =
          static_cast<int64_t>(item) * params.heads * params.heads_per_kv + head;
      const int steps = (params.other_len + Shape::kOthers - 1) / Shape::kOthers;
      const int64_t at = of_head * steps + step.spans[0].begin / Shape::kOthers;
      ptx::bulk_load(memory.stats[slot], params.stats + at * Shape::kStats, 4 * Shape::kStats,
                     &memory.u_full[slot]);
    } else if constexpr (Shape::kColumns) {
#pragma unroll
      for (int piece = 0; piece < kPieces; ++piece) {
        tma::load(memory.stats[slot] + 4 * piece * Shape::kSpan, maps.stats,
                  {0, step.spans[piece].begin, head, item, 0}, &memory.u_full[slot], policy);
      }
    }
    place.next();
  }

  __device__ void begin(const BackwardWork<Shape>& work) {
    item = work.item, part = work.own.part;
    before_own = Shape::kStages;
  }

  /// Tells the others what comes, once their place for own rows is free, and loads these unless
  /// that is nothing.
  __device__ void tell(const TileNotes& tile) {
    ptx::wait(&memory.own_empty, own_parity ^ 1);
    own_parity ^= 1;
    memory.tile = tile;
    if (tile.steps < 0) {
      ptx::arrive(&memory.own_full);
      return;
    }
    const bool more = is_more<Shape>(params, tile.begin);
    const int first = tile.begin - (more ? params.more_begin : 0);
    const uint64_t once = tma::evict_first();
    ptx::arrive_expect(&memory.own_full, 2 * Shape::kOwnBytes);
    tma::load(memory.x, more ? maps.more_x : maps.x, {0, first, 0, tile.head, tile.item},
              &memory.own_full, once);
    tma::load(memory.y, more ? maps.more_y : maps.y, {0, first, 0, tile.head, tile.item},
              &memory.own_full, once);
  }

  /// The tile's own rows, once. Their place is free when the tile before has been written, those of
  /// the rings are before that.
  __device__ void load_own(const BackwardWork<Shape>& work) {
    if (before_own < 0) return;
    before_own = -1;
    tell({work.head, item, work.own.begin, work.own.len, work.steps(params)});
  }

  __device__ void load_all(const Walk<Shape>& walk, const BackwardWork<Shape>& work) {
    if (walk.steps == 0) return;
    Step now = step(walk, 0);
#pragma unroll 1
    for (int i = 1; i <= walk.steps; ++i) {
      Step next = now;
      if (i < walk.steps) next = step(walk, i);
      if (before_own == 0) load_own(work);
      --before_own;
      load(now);
      now = next;
    }
  }
};

/// Everything that is loaded; one thread.
template <typename Shape>
__device__ void load_tiles(const BackwardParams& params, const BackwardMaps& maps,
                           BackwardMemory<Shape>& memory) {
  BackwardLoader<Shape> loader{params, maps, memory, tma::evict_last()};
  for (int index = blockIdx.x; index < params.num_tiles; index += gridDim.x) {
    const BackwardWork<Shape> work(params, index);
    if (work.own.len == 0) continue;
    loader.begin(work);
    for (int i = 0; i < work.walks(params); ++i) {
      // Keys of a head of queries, or queries of each head of a kv head.
      loader.head = Shape::kColumns ? work.first_head(params) + i : work.head / params.heads_per_kv;
      loader.load_all(work.walk(params, i), work);
    }
    loader.load_own(work);
  }
  loader.tell({0, 0, 0, 0, -1});
}

}  // namespace fovea::kernels::sm90
