#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/attention/forward_sm90.cuh"

// The backward pass of softmax attention on compute capability 9.0a: one kernel in two forms, that
// for gradients of queries and that for those of keys and values.
//
// A block has one warpgroup that loads and kGroups that compute, 64 rows each of a tile: its own
// rows X and Y. The tile walks over other rows U and W, that come step by step in two rings:
//
//            X  Y   U  W      a step
//   rows     Q  dO  K  V      S = X Uᵀ  dP = Y Wᵀ  dX += dS U
//   columns  K  V   Q  dO     the same, and dY += P W, with S, P, dP and dS transposed
//
// P = exp(scale S - lse) and dS = P (dP - delta) with delta = sum(out dO) - dlse of each query
// (FlashAttention-2, Dao 2023, arXiv:2307.08691, section 3.1.2). P and dS stay in registers, as
// they are what the matrix units take from there. Nothing is added up in global memory: what comes
// out is the same bit by bit each time.
//
// The loading thread tells the others what each tile has to do, as in forward_sm90.cuh. A computing
// warpgroup starts S of a step before the sums of the step before are done, makes P while dP is
// made, and of columns dS while dY is.

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
  static constexpr bool kListed = kPieces_ > 0;
  static constexpr int kPieces = kListed ? kPieces_ : 1;  // spans of a step
  static constexpr int kOwn = 64 * kGroups;               // rows of a tile
  static constexpr int kSpan = kOthers / kPieces;         // most rows of a span
  static constexpr int kThreads = 128 * (kGroups + 1);
  static constexpr int kPanels = kDim / 64;  // of 64 columns
  static constexpr int kOwnBytes = kOwn * kDim * 2;
  static constexpr int kStepBytes = kOthers * kDim * 2;
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

template <typename Shape>
struct BackwardMemory {
  static constexpr int kToY = Shape::kOwnBytes, kToW = Shape::kStages * Shape::kStepBytes;

  // (panels, own rows, 64), then dX and dY in the same places.
  alignas(1024) char x[Shape::kOwnBytes];
  alignas(1024) char y[Shape::kOwnBytes];
  alignas(1024) char u[Shape::kStages][Shape::kStepBytes];  // (panels, other rows, 64)
  alignas(1024) char w[Shape::kStages][Shape::kStepBytes];
  // Of columns: the stats of a step's queries, (pieces, 2, span).
  alignas(128) float4 stats[Shape::kStages][Shape::kColumns ? Shape::kOthers : 8];
  uint64_t own_full, own_empty;
  TileNotes tile;  // what there is to do with the own rows
  uint64_t u_full[Shape::kStages], u_empty[Shape::kStages];
  uint64_t w_full[Shape::kStages], w_empty[Shape::kStages];
  volatile uint32_t held[4 * Shape::kGroups];      // written, never read
  uint32_t spans[Shape::kStages][Shape::kPieces];  // length, and 256 times (1 + the mask, or 0)
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
  MutableHeadRows dx, dy, more_dx, more_dy;
  // [batch, heads of queries, queries] of (-lse log2(e), -delta, -, -): what the copy engine brings
  // begins at multiples of 16 bytes.
  const float4* stats;
  float scale, scale_log2, per_scale_log2;  // sm_scale, times log2(e), and 1 over that
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

/// Whether the own rows that begin there are more keys.
template <typename Shape>
__device__ bool is_more(const BackwardParams& params, int begin) {
  return Shape::kColumns && Shape::kListed && begin >= params.more_begin;
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
      memory.spans[slot][piece] = span.len | (span.mask == 0 ? 0 : span.mask + part) << 8;
    }
    constexpr int kStatsBytes = Shape::kColumns ? 16 * Shape::kOthers : 0;
    ptx::arrive_expect(&memory.u_full[slot], Shape::kStepBytes + kStatsBytes);
    load_rows(memory.u[slot], maps.u, maps.more_u, step, &memory.u_full[slot]);
    if constexpr (Shape::kColumns) {
#pragma unroll
      for (int piece = 0; piece < kPieces; ++piece) {
        tma::load(memory.stats[slot] + piece * Shape::kSpan, maps.stats,
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

/// One of the computing warpgroups.
template <typename Shape, Type kType>
struct Differentiator {
  static constexpr int kRegisters = Shape::kDim / 2;         // of dX and of dY
  static constexpr int kStepRegisters = Shape::kOthers / 2;  // of S and of dP
  using Operand = uint32_t[Shape::kOthers / 16][4];
  using Memory = BackwardMemory<Shape>;
  static_assert(offsetof(Memory, y) - offsetof(Memory, x) == Memory::kToY);
  static_assert(offsetof(Memory, w) - offsetof(Memory, u) == Memory::kToW);

  const BackwardParams& params;
  BackwardMemory<Shape>& memory;
  int group, thread;
  // Of X, this warpgroup's rows, and of U, the first slot's; those of Y and W lie as far from them
  // as one another.
  wgmma::Matrix x = wgmma::k_major(ptx::shared_address(memory.x) + group * 64 * 128);
  wgmma::Matrix u = wgmma::k_major(ptx::shared_address(memory.u));
  RingPlace<Shape::kStages> place = {};
  float dx[kRegisters];
  float dy[kRegisters];                // of columns
  float minus_lse[2], minus_delta[2];  // of rows: those of a thread's two

  /// One thread a warp says that it has read a slot.
  __device__ void release(uint64_t* empty) const {
    if (thread % 32 == 0) ptx::arrive(empty);
  }

  /// Of U, or of W, the ring's next slot.
  __device__ wgmma::Matrix others(bool is_w) const {
    return u.further(place.slot * Shape::kStepBytes + (is_w ? Memory::kToW : 0));
  }

  /// S = X Uᵀ or dP = Y Wᵀ, or that is added, as a group of its own.
  template <bool kAdds>
  __device__ void start_product(float (&c)[kStepRegisters], bool is_dp) const {
    const wgmma::Matrix a = x.further(is_dp ? Memory::kToY : 0), b = others(is_dp);
    wgmma::fence();
#pragma unroll
    for (int step = 0; step < Shape::kDim / 16; ++step) {
      const int inside = step % 4 * wgmma::kStepBytes;
      wgmma::multiply<kType>(c, a.further(step / 4 * Shape::kOwn * 128 + inside),
                             b.further(step / 4 * Shape::kOthers * 128 + inside),
                             kAdds || step > 0);
    }
    wgmma::commit();
  }

  /// dX += A U or dY += A W.
  __device__ void start_sum(float (&c)[kRegisters], const Operand& a, bool is_dy) const {
    const wgmma::Matrix b = others(is_dy).by_columns(Shape::kOthers * 128);
    wgmma::fence();
#pragma unroll
    for (int step = 0; step < Shape::kOthers / 16; ++step) {
      wgmma::multiply<kType, true>(c, a[step], b.further(step * 2048), 1);
    }
    wgmma::commit();
  }

  __device__ static void make_operand(const float (&c)[kStepRegisters], Operand& a) {
#pragma unroll
    for (int step = 0; step < Shape::kOthers / 16; ++step) {
      fragment::to_operand<kType>(c, step, a[step]);
    }
  }

  /// What lies behind the end of a span, or is hidden by a mask, gets logits of -inf.
  __device__ void hide(float (&s)[kStepRegisters]) const {
    constexpr int kOfPiece = Shape::kSpan / 2;  // registers
    const uint32_t(&spans)[Shape::kPieces] = memory.spans[place.slot];
    bool is_full = true;
#pragma unroll
    for (int i = 0; i < Shape::kPieces; ++i) is_full = is_full && spans[i] == Shape::kSpan;
    if (is_full) return;
#pragma unroll
    for (int piece = 0; piece < Shape::kPieces; ++piece) {
      const int len = static_cast<int>(spans[piece] & 255);
      uint32_t seen[2] = {~0u, ~0u};
      if constexpr (Shape::kListed) {
        if (const uint32_t mask = spans[piece] >> 8; mask != 0) {
          const int64_t tile = static_cast<int64_t>(mask) - 1;
          const int row = group * 64 + fragment::first_row(thread);
          const uint32_t* words =
              params.lists.masks + (tile * Shape::kOwn + row) * kMaskWords + thread % 4;
          seen[0] = words[0], seen[1] = words[8 * kMaskWords];
        }
      }
#pragma unroll
      for (int i = 0; i < kOfPiece; ++i) {
        const bool is_seen = seen[i / 2 % 2] >> (i / 4 * 2 + i % 2) & 1;
        if (!is_seen || fragment::column(thread, i) >= len) s[piece * kOfPiece + i] = -INFINITY;
      }
    }
  }

  /// The numbers of the queries of columns 8 i + 2 (thread % 4) and + 1 of the step: 0 is -lse, 1
  /// is -delta.
  __device__ float2 of_columns(int which, int i) const {
    const float4* const stats = memory.stats[place.slot] + 8 * i + thread % 4 * 2;
    return which == 0 ? make_float2(stats[0].x, stats[1].x) : make_float2(stats[0].y, stats[1].y);
  }

  /// Numbers of the queries of the columns that the registers have.
  __device__ void begin(float (&c)[kStepRegisters], int which, float factor) const {
#pragma unroll
    for (int i = 0; i < kStepRegisters; i += 4) {
      const float2 two = of_columns(which, i / 4);
      c[i] = c[i + 2] = two.x * factor, c[i + 1] = c[i + 3] = two.y * factor;
    }
  }

  /// S of the ring's next step.
  __device__ void start_logits(float (&s)[kStepRegisters]) const {
    ptx::wait(&memory.u_full[place.slot], place.parity);
    if constexpr (!Shape::kAhead) {
      begin(s, 0, params.per_scale_log2);
      wgmma::pin(s);
    }
    start_product<!Shape::kAhead>(s, false);
  }

  /// Its dP - delta.
  __device__ void start_weight_gradients(float (&dp)[kStepRegisters]) const {
    ptx::wait(&memory.w_full[place.slot], place.parity);
    if constexpr (Shape::kColumns) {
      begin(dp, 1, 1);
    } else {
#pragma unroll
      for (int i = 0; i < kStepRegisters; ++i) dp[i] = minus_delta[i / 2 % 2];
    }
    wgmma::pin(dp);
    start_product<true>(dp, true);
  }

  /// S becomes P.
  __device__ void weigh(float (&s)[kStepRegisters]) const {
#pragma unroll
    for (int i = 0; i < kStepRegisters; i += 4) {
      float2 upper = make_float2(minus_lse[0], minus_lse[0]);
      float2 lower = make_float2(minus_lse[1], minus_lse[1]);
      if constexpr (!Shape::kAhead) upper = lower = make_float2(0, 0);
      if constexpr (Shape::kColumns && Shape::kAhead) upper = lower = of_columns(0, i / 4);
      s[i] = ptx::exp2_approx(fmaf(s[i], params.scale_log2, upper.x));
      s[i + 1] = ptx::exp2_approx(fmaf(s[i + 1], params.scale_log2, upper.y));
      s[i + 2] = ptx::exp2_approx(fmaf(s[i + 2], params.scale_log2, lower.x));
      s[i + 3] = ptx::exp2_approx(fmaf(s[i + 3], params.scale_log2, lower.y));
    }
  }

  /// The ring's next step. The sums of the one before may be under way, as those of this one then.
  __device__ void step(bool is_first) {
    const int slot = place.slot;
    float s[kStepRegisters], dp[kStepRegisters];
    Operand gradients;
    if constexpr (Shape::kAhead) start_logits(s);
    wgmma::wait<Shape::kAhead ? 1 : 0>();
    if (!is_first) end_step();
    if constexpr (!Shape::kAhead) start_logits(s);
    start_weight_gradients(dp);
    wgmma::wait<1>();
    wgmma::pin(s);
    hide(s);
    weigh(s);
    if constexpr (Shape::kColumns) {
      Operand weights;
      make_operand(s, weights);
      start_sum(dy, weights, true);
      wgmma::wait<1>();
      wgmma::pin(dp);
    } else {
      if constexpr (Shape::kHold) {
        uint32_t all = 0;
#pragma unroll
        for (const float weight : s) all ^= __float_as_uint(weight);
        memory.held[group * 4 + thread / 32] = all;
      }
      wgmma::wait<0>();
      wgmma::pin(dp);
      release(&memory.w_empty[slot]);
    }
#pragma unroll
    for (int i = 0; i < kStepRegisters; ++i) s[i] *= dp[i];
    make_operand(s, gradients);
    start_sum(dx, gradients, false);
    place.next();
  }

  /// The sums of the step before the ring's next one are done.
  __device__ void end_step() {
    const int slot = place.slot == 0 ? Shape::kStages - 1 : place.slot - 1;
    release(&memory.u_empty[slot]);
    if constexpr (Shape::kColumns) release(&memory.w_empty[slot]);
  }

  __device__ void clear() {
#pragma unroll
    for (float& number : dx) number = 0;
    wgmma::pin(dx);
    if constexpr (Shape::kColumns) {
#pragma unroll
      for (float& number : dy) number = 0;
      wgmma::pin(dy);
    }
  }

  /// All steps of a tile, at least one.
  __device__ void walk(int steps) {
    for (int i = 0; i < steps; ++i) step(i == 0);
    wgmma::wait<0>();
    wgmma::pin(dx);
    if constexpr (Shape::kColumns) wgmma::pin(dy);
    end_step();
  }

  /// The numbers of a thread's two queries.
  __device__ void read_stats(const TileNotes& tile) {
    const int64_t head = static_cast<int64_t>(tile.item) * params.heads + tile.head;
    const float4* const stats = params.stats + head * params.own_len;
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const int at = tile.begin + group * 64 + fragment::first_row(thread) + 8 * row;
      const bool is_one = at < params.own_len;
      minus_lse[row] = is_one ? stats[at].x : 0;
      minus_delta[row] = is_one ? stats[at].y : 0;
    }
  }

  /// Writes a gradient into the place of this warpgroup's rows, and from there away; the copies are
  /// not waited for.
  __device__ void write(const float (&c)[kRegisters], char* own, const CUtensorMap& map,
                        const MutableHeadRows& to) const {
    const TileNotes& tile = memory.tile;
    const bool more = is_more<Shape>(params, tile.begin);
    const int first = tile.begin + group * 64 - (more ? params.more_begin : 0);
    const int end = more ? params.more_len : params.own_len;
    const int rows = min(min(64, tile.len - group * 64), end - first);  // below 1: none
    char* const box = own + group * 64 * 128;
    fragment::store<kType>(c, ptx::shared_address(box), Shape::kOwn * 128, thread);
    ptx::fence_async_proxy();
    ptx::named_sync(1 + group, 128);
    // The copy engine leaves out rows behind the end of the sequence, but not those of another
    // tile.
    if (!Shape::kListed || rows == 64 || first + rows == end) {
      if (thread == 0 && rows > 0) {
#pragma unroll
        for (int panel = 0; panel < Shape::kPanels; ++panel) {
          tma::store(map, {0, first, panel, tile.head, tile.item}, box + panel * Shape::kOwn * 128);
        }
      }
    } else {
      char* const head = static_cast<char*>(to.data) +
                         2 * (tile.item * to.batch_stride + tile.head * to.head_stride);
      copy_rows(box, head + 2 * first * to.row_stride, 2 * to.row_stride, rows);
    }
  }

  /// The first rows of `box` to their places, 16 bytes at a time.
  __device__ void copy_rows(const char* box, char* to, int64_t stride, int rows) const {
    constexpr int kUnits = Shape::kDim / 8;  // of 8 columns
    int begin = thread;
    ptx::opaque(begin);  // or its places are found, and kept, long before
#pragma unroll 1
    for (int i = begin; i < rows * kUnits; i += 128) {
      const int row = i / kUnits, unit = i % kUnits;
      const char* from = box + unit / 8 * Shape::kOwn * 128 + row * 128 + (unit % 8 ^ row % 8) * 16;
      *reinterpret_cast<uint4*>(to + row * stride + unit * 16) =
          *reinterpret_cast<const uint4*>(from);
    }
  }

  /// Both gradients of a tile; its own rows are free then.
  __device__ void write_all(const BackwardMaps& maps) {
    const bool more = is_more<Shape>(params, memory.tile.begin);
#pragma unroll
    for (float& number : dx) number *= params.scale;
    write(dx, memory.x, more ? maps.more_dx : maps.dx, more ? params.more_dx : params.dx);
    if constexpr (Shape::kColumns) {
      write(dy, memory.y, more ? maps.more_dy : maps.dy, more ? params.more_dy : params.dy);
    }
    if (thread == 0) {
      ptx::bulk_commit();
      ptx::bulk_wait_read<0>();
    }
    ptx::named_sync(1 + group, 128);
    if (thread == 0) ptx::arrive(&memory.own_empty);
  }

  __device__ void compute_all(const BackwardMaps& maps) {
    for (uint32_t parity = 0;; parity ^= 1) {
      ptx::wait(&memory.own_full, parity);
      const int steps = memory.tile.steps;
      if (steps < 0) break;
      if constexpr (!Shape::kColumns) read_stats(memory.tile);
      clear();
      if (steps > 0) walk(steps);
      write_all(maps);
    }
  }
};

/// Grid: as many blocks as are to run at a time; each takes every gridDim.x-th tile.
template <typename Shape, Type kType>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kBlocks)
    backward_kernel(const __grid_constant__ BackwardMaps maps,
                    const __grid_constant__ BackwardParams params) {
#ifdef FOVEA_SM90A
  extern __shared__ char shared[];
  const uint32_t past = ptx::shared_address(shared) % 1024;
  auto& memory = *reinterpret_cast<BackwardMemory<Shape>*>(shared + (1024 - past) % 1024);
  if (threadIdx.x == 0) {
    ptx::barrier_init(&memory.own_full, 1);
    ptx::barrier_init(&memory.own_empty, Shape::kGroups);
    for (int i = 0; i < Shape::kStages; ++i) {
      ptx::barrier_init(&memory.u_full[i], 1);
      ptx::barrier_init(&memory.w_full[i], 1);
      ptx::barrier_init(&memory.u_empty[i], 4 * Shape::kGroups);
      ptx::barrier_init(&memory.w_empty[i], 4 * Shape::kGroups);
    }
    ptx::fence_barrier_init();
  }
  __syncthreads();
  const int thread = static_cast<int>(threadIdx.x);
  // As one lane has it, so that the compiler knows that all have the same.
  const int warpgroup = __shfl_sync(0xffffffff, thread / 128, 0);
  if (warpgroup == Shape::kGroups) {
    ptx::give_registers<Shape::kLoadRegisters>();
    if (thread == 128 * Shape::kGroups) load_tiles(params, maps, memory);
  } else {
    ptx::take_registers<Shape::kComputeRegisters>();
    Differentiator<Shape, kType>{params, memory, warpgroup, thread % 128}.compute_all(maps);
  }
#endif
}

}  // namespace fovea::kernels::sm90
