#pragma once

#include <cstdint>

#include "kernels/attention/block_scores.h"
#include "kernels/attention/forward_sm80.cuh"

// Shares between groups on GPUs, logits in registers alone. A block multiplies a tile of groups of
// queries by some tiles of groups of keys. Of each row and each block of keys, as far as it lies in
// a strip of 64 groups, it keeps one number: the base-2 logarithm of the sum of exponentials, or
// the greatest logit. A second kernel, which knows whole rows, makes shares of these numbers.

namespace fovea::kernels::shares {

using mma::Type;

constexpr unsigned kAll = 0xffffffff;
constexpr int kQueries = 128;  // groups of queries of a tile
constexpr int kChannels = 64;  // of a step: of one phase
constexpr int kStrip = 64;     // groups of keys of a warp
constexpr int kPack = 8;       // channels of 16 bytes
constexpr int kRowBytes = 2 * kChannels;
constexpr int kQueryBytes = kQueries * kRowBytes;  // of a step
using Rows = mma::MixedRows<kRowBytes>;

/// A tile of kKeys groups of keys, a warp 64 x 64 logits of it. More keys need less of the memory's
/// time, fewer leave room for a second block, which multiplies while this one makes exponentials.
template <int kKeys_>
struct SharesShape {
  static constexpr int kKeys = kKeys_;
  static constexpr int kStrips = kKeys / kStrip;
  static constexpr int kWarps = 2 * kStrips;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kBlocks = kKeys > 128 ? 1 : 2;  // on a multiprocessor
  static constexpr int kKeyBytes = kKeys * kRowBytes;  // of a step
  static constexpr int kNoteBytes = kKeys * 8;
};

struct SharesParams {
  BlockSharesArgs args;
  float* bias;     // [key_rows] base-2 logarithm of a group's weight, -inf: it is not there
  int32_t* block;  // [key_rows] of a group, or -1
  float2* sums;    // [heads of a pass][slices][rows] greatest logit, sum relative to it
  float* parts;    // [heads of a pass][slots][rows]: of a block and a strip at their sum
  int64_t slots, slices;
  int first_head;     // of this pass
  int rows;           // groups of queries, whole tiles
  int key_rows;       // groups of keys, whole tiles
  int tiles;          // of keys
  int tiles_at_once;  // of a block
  int parts_of_row;   // blocks that share the tiles of keys
  int steps;          // of a phase
  int ring;           // slots in shared memory
  bool holds;         // all steps of the queries stay in shared memory
  float scale_log2;
};

// ---- Copies -------------------------------------------------------------------------------------

/// The rows of a side that a warp copies: lane l knows that of its group l.
struct SideRows {
  const char* data;  // of the head, at this lane's 16 bytes
  const int32_t* rows;
  int64_t groups;
  uint32_t len;
  int stride;  // bytes

  __device__ SideRows(const HeadRows& x, int64_t head, const int32_t* rows, int64_t groups,
                      int64_t len)
      : data(static_cast<const char*>(x.data) + 2 * head * x.head_stride + threadIdx.x % 8 * 16),
        rows(rows),
        groups(groups),
        len(static_cast<uint32_t>(len)),
        stride(static_cast<int>(2 * x.row_stride)) {}

  /// -1 where there is none.
  __device__ int row(int phase, int group) const {
    const int row = group < groups ? rows[phase * groups + group] : -1;
    return static_cast<uint32_t>(row) < len ? row : -1;
  }

  /// A step of kCount rows, whose numbers the lanes `own`; zeros for what is not there.
  template <int kCount>
  __device__ void copy(uint32_t to, int own, int step, bool has_channels) const {
    const int lane = threadIdx.x % 32;
    const uint32_t first = to + Rows::place(lane / 8, lane % 8);
    const char* const from = data + step * kRowBytes;
#pragma unroll
    for (int i = 0; i < kCount / 4; ++i) {
      const int row = __shfl_sync(kAll, own, 4 * i + lane / 8);
      mma::copy16((first ^ (i % 2 * 64)) + i * 4 * kRowBytes,
                  from + static_cast<int64_t>(max(row, 0)) * stride, row >= 0 && has_channels);
    }
  }
};

/// All copies of a block; every warp has a part of each step: all phases of a tile, then the next.
template <typename Shape>
struct SharesLoader {
  static constexpr int kQueryRows = kQueries / Shape::kWarps,
                       kKeyRows = Shape::kKeys / Shape::kWarps;
  const SharesParams& params;
  SideRows q, k;
  uint32_t held, ring;
  int tile, last, query;
  int phase = 0, step = 0, slot = 0;
  bool first_tile = true;
  int q_row = -1, k_row = -1, q_next, k_next;  // of this phase and the next one

  __device__ SharesLoader(const SharesParams& params, int head, int q_tile, int tile, int last)
      : params(params),
        q(params.args.q, head, params.args.q_rows, params.args.q_groups, params.args.q_len),
        k(params.args.k, head / (params.args.heads / params.args.kv_heads), params.args.kv_rows,
          params.args.kv_groups, params.args.kv_len),
        held(ptx::shared_address(ptx::dynamic_memory())),
        ring(held + held_bytes(params)),
        tile(tile),
        last(last),
        query(q_tile * kQueries + warp() * kQueryRows + threadIdx.x % kQueryRows) {
    find_rows(tile, 0);
  }

  __device__ static int warp() { return threadIdx.x / 32; }
  __device__ static uint32_t held_bytes(const SharesParams& params) {
    return params.holds ? static_cast<uint32_t>(params.args.phases) * params.steps * kQueryBytes
                        : 0;
  }
  /// A slot has keys, then what is known of them, then queries.
  __device__ static int slot_bytes(const SharesParams& params) {
    return Shape::kKeyBytes + Shape::kNoteBytes + (params.holds ? 0 : kQueryBytes);
  }

  /// Long before they are needed.
  __device__ void find_rows(int of_tile, int of_phase) {
    q_next = q.row(of_phase, query);
    const int key = of_tile * Shape::kKeys + warp() * kKeyRows + static_cast<int>(threadIdx.x % 32);
    k_next = k.row(of_phase, key);
  }

  /// A third of the next step's copies, or nothing; all three form a group. Between products they
  /// take no time: other warps multiply.
  __device__ void load(int third) {
    if (third == 0 && tile < last) load_keys();
    if (third == 1 && tile < last) load_queries();
    if (third != 2) return;
    if (tile < last) advance();
    mma::commit_copies();
    if (++slot == params.ring) slot = 0;
  }

  __device__ uint32_t slot_address() const { return ring + slot * slot_bytes(params); }
  __device__ bool has_channels() const {
    return step * kChannels + static_cast<int>(threadIdx.x % 8) * kPack < params.args.dim;
  }

  __device__ void load_keys() {
    if (step == 0) {
      const bool is_last = phase + 1 == params.args.phases;
      q_row = q_next, k_row = k_next;
      find_rows(is_last ? tile + 1 : tile, is_last ? 0 : phase + 1);
    }
    k.copy<kKeyRows>(slot_address() + warp() * kKeyRows * kRowBytes, k_row, step, has_channels());
  }

  __device__ void load_queries() {
    const uint32_t to = slot_address();
    if (!params.holds || first_tile) {
      const uint32_t queries = params.holds ? held + (phase * params.steps + step) * kQueryBytes
                                            : to + Shape::kKeyBytes + Shape::kNoteBytes;
      q.copy<kQueryRows>(queries + warp() * kQueryRows * kRowBytes, q_row, step, has_channels());
    }
    if (phase + 1 < params.args.phases || step + 1 < params.steps) return;
    for (int i = threadIdx.x; i < Shape::kKeys; i += Shape::kThreads) {
      const int key = tile * Shape::kKeys + i;
      mma::copy4(to + Shape::kKeyBytes + 4 * i, params.bias + key, true);
      mma::copy4(to + Shape::kKeyBytes + 4 * (Shape::kKeys + i), params.block + key, true);
    }
  }

  __device__ void advance() {
    if (++step < params.steps) return;
    step = 0;
    if (++phase < params.args.phases) return;
    phase = 0;
    ++tile;
    first_tile = false;
  }
};

// ---- What a warp computes -----------------------------------------------------------------------

/// Of 64 x 64 logits: lane l holds of register i of fragment f row 16 f + l / 4 + 8 (i / 2 % 2),
/// and the column that fragment.cuh says. Its rows are numbered j = 2 f + i / 2 % 2. When all four
/// lanes of a row have been joined, lane l has rows j = l % 4 and l % 4 + 4.
template <typename Shape, Type kType, bool kLargest>
struct SharesComputer {
  static constexpr int kRows = 8;
  const SharesParams& params;
  int lane = threadIdx.x % 32;
  int warp_row = static_cast<int>(threadIdx.x) / 32 % 2 * 64;
  int strip = static_cast<int>(threadIdx.x) / 64;  // of the tile
  uint32_t q_lane, k_lane;
  float* parts;  // of the head, at this lane's first row
  float c[4][kStrip / 2];
  float top[kRows];       // greatest logits so far
  float sum[2] = {0, 0};  // of exponentials relative to them
  float part[kRows];      // of the segment at hand
  int blocks[2];          // of columns l and l + 32

  __device__ SharesComputer(const SharesParams& params, int head, int q_tile)
      : params(params),
        q_lane(Rows::place(warp_row + lane % 16, lane / 16)),
        k_lane(Rows::place(strip * kStrip + lane / 16 * 8 + lane % 8, lane / 8 % 2)),
        parts(params.parts + head * params.slots * params.rows + row(q_tile)) {
#pragma unroll
    for (float& x : top) x = -INFINITY;
  }

  /// The first of this lane's two rows; the other one is 32 behind it.
  __device__ int row(int q_tile) const {
    return q_tile * kQueries + warp_row + lane % 4 * 8 + lane / 4;
  }

  __device__ void clear() {
#pragma unroll
    for (auto& fragment : c) {
#pragma unroll
      for (float& x : fragment) x = 0;
    }
  }

  /// c += 16 channels of queries and keys.
  __device__ void multiply(uint32_t q, uint32_t k, int at) {
    uint32_t a[4][4];
    const uint32_t queries = Rows::behind(q + q_lane, 2 * at),
                   keys = Rows::behind(k + k_lane, 2 * at);
#pragma unroll
    for (int f = 0; f < 4; ++f) mma::load_matrices(queries + f * 16 * kRowBytes, a[f]);
#pragma unroll
    for (int n = 0; n < kStrip / 16; ++n) {
      uint32_t b[4];
      mma::load_matrices(keys + n * 16 * kRowBytes, b);
#pragma unroll
      for (int f = 0; f < 4; ++f) {
        mma::multiply<kType>(c[f], 8 * n, a[f], b[0], b[1]);
        mma::multiply<kType>(c[f], 8 * n + 4, a[f], b[2], b[3]);
      }
    }
  }

  /// Calls between(0), (1) and (2) on its way.
  template <typename Between>
  __device__ void multiply_step(uint32_t q, uint32_t k, int channels, Between between) {
#pragma unroll
    for (int at = 0; at < kChannels / 16; ++at) {
      if (at * 16 < channels) multiply(q, k, at);
      if (at < 3) between(at);
    }
  }

  __device__ static float join(float a, float b) { return kLargest ? fmaxf(a, b) : a + b; }

  /// Of eight rows those two that are this lane's.
  __device__ void pick(const float (&x)[kRows], float (&out)[2]) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float low = lane & 1 ? x[4 * i + 1] : x[4 * i];
      const float high = lane & 1 ? x[4 * i + 3] : x[4 * i + 2];
      out[i] = lane & 2 ? high : low;
    }
  }

  /// The four lanes' parts of each row joined: each lane gets two rows.
  template <typename Join>
  __device__ void gather(const float (&x)[kRows], Join join, float (&out)[2]) const {
    float half[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float own = lane & 1 ? x[2 * i + 1] : x[2 * i];
      const float others = lane & 1 ? x[2 * i] : x[2 * i + 1];
      half[i] = join(own, __shfl_xor_sync(kAll, others, 1));
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float own = lane & 2 ? half[2 * i + 1] : half[2 * i];
      const float others = lane & 2 ? half[2 * i] : half[2 * i + 1];
      out[i] = join(own, __shfl_xor_sync(kAll, others, 2));
    }
  }

  __device__ void begin_segment() {
#pragma unroll
    for (float& x : part) x = kLargest ? -INFINITY : 0;
  }

  /// Adds columns [from, to) of the eight of number `t` to the segment.
  __device__ void take(int t, int from, int to) {
    const int column = lane % 4 * 2;
    const bool first = column >= from && column < to;
    const bool second = column + 1 >= from && column + 1 < to;
#pragma unroll
    for (int j = 0; j < kRows; ++j) {
      const float* const pair = c[j / 2] + 4 * t + 2 * (j % 2);
      if (first) part[j] = join(part[j], pair[0]);
      if (second) part[j] = join(part[j], pair[1]);
    }
  }

  /// Bit c of word w: a segment begins at column 32 w + c, the first one left out.
  __device__ void find_segments(const int32_t* of_strip, uint32_t (&starts)[2]) {
    blocks[0] = of_strip[lane], blocks[1] = of_strip[32 + lane];
    const int middle = __shfl_sync(kAll, blocks[0], 31);
    const int before = __shfl_up_sync(kAll, blocks[0], 1);
    const int behind = __shfl_up_sync(kAll, blocks[1], 1);
    starts[0] = __ballot_sync(kAll, lane != 0 && blocks[0] != before);
    starts[1] = __ballot_sync(kAll, blocks[1] != (lane == 0 ? middle : behind));
  }

  /// Calls end(first column) for each segment, its part complete.
  template <typename End>
  __device__ void for_each_segment(const uint32_t (&starts)[2], End end) {
    int begin = 0;
    begin_segment();
#pragma unroll
    for (int t = 0; t < kStrip / 8; ++t) {
      uint32_t bits = starts[t / 4] >> (t % 4 * 8) & 0xff;
      int from = 0;
      while (bits != 0) {
        const int to = __ffs(static_cast<int>(bits)) - 1;
        bits &= bits - 1;
        if (to > from) take(t, from, to);
        end(begin);
        begin_segment();
        begin = 8 * t + to;
        from = to;
      }
      take(t, from, 8);
    }
    end(begin);
  }

  /// A number of a segment of this strip for each of this lane's rows.
  __device__ void store(int tile, int begin, const float (&value)[2]) const {
    const int block = __shfl_sync(kAll, begin < 32 ? blocks[0] : blocks[1], begin % 32);
    if (block < 0) return;
    // Blocks and strips ascend together: their sum is of one segment alone.
    const int64_t slot = block + tile * Shape::kStrips + strip;
    float* const to = parts + slot * params.rows;
    to[0] = value[0], to[32] = value[1];
  }

  /// Sums of products become base-2 logits.
  __device__ void make_logits(const float* bias) {
#pragma unroll
    for (int t = 0; t < kStrip / 8; ++t) {
      const float2 own = *reinterpret_cast<const float2*>(bias + 8 * t + lane % 4 * 2);
      // +inf, or -inf to hide what may be not a number.
      const float2 most = {(own.x + 3e38f) * 2, (own.y + 3e38f) * 2};
#pragma unroll
      for (int f = 0; f < 4; ++f) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          float& x = c[f][4 * t + i];
          x = fminf(fmaf(x, params.scale_log2, i % 2 == 0 ? own.x : own.y),
                    i % 2 == 0 ? most.x : most.y);
        }
      }
    }
  }

  /// The greatest logits of all four lanes; what was added up so far becomes relative to them.
  __device__ void raise_top(const float (&of_tile)[kRows], float (&shift)[kRows]) {
    float keep[kRows], own[2];
#pragma unroll
    for (int j = 0; j < kRows; ++j) {
      float now = fmaxf(top[j], of_tile[j]);
      now = fmaxf(now, __shfl_xor_sync(kAll, now, 1));
      now = fmaxf(now, __shfl_xor_sync(kAll, now, 2));
      shift[j] = now == -INFINITY ? 0 : now;
      keep[j] = top[j] - shift[j];
      top[j] = now;
    }
    pick(keep, own);
#pragma unroll
    for (int i = 0; i < 2; ++i) sum[i] *= ptx::exp2_approx(own[i]);
  }

  /// All that becomes of a tile's products.
  __device__ void finish_tile(int tile, const char* notes) {
    const auto* const bias = reinterpret_cast<const float*>(notes) + strip * kStrip;
    const auto* const of_strip =
        reinterpret_cast<const int32_t*>(notes) + Shape::kKeys + strip * kStrip;
    uint32_t starts[2];
    find_segments(of_strip, starts);
    make_logits(bias);
    float of_tile[kRows], shift[kRows];
#pragma unroll
    for (float& x : of_tile) x = -INFINITY;
    if constexpr (kLargest) {
      for_each_segment(starts, [&](int begin) {
        float own[2];
        gather(
            part, [](float a, float b) { return fmaxf(a, b); }, own);
        store(tile, begin, own);
#pragma unroll
        for (int j = 0; j < kRows; ++j) of_tile[j] = fmaxf(of_tile[j], part[j]);
      });
    } else {
#pragma unroll
      for (int f = 0; f < 4; ++f) {
#pragma unroll
        for (int i = 0; i < kStrip / 2; ++i) {
          float& most = of_tile[2 * f + i / 2 % 2];
          most = fmaxf(most, c[f][i]);
        }
      }
    }
    raise_top(of_tile, shift);
#pragma unroll
    for (int f = 0; f < 4; ++f) {
#pragma unroll
      for (int i = 0; i < kStrip / 2; ++i) {
        c[f][i] = ptx::exp2_approx(c[f][i] - shift[2 * f + i / 2 % 2]);
      }
    }
    const auto add = [](float a, float b) { return a + b; };
    float own[2];
    if constexpr (kLargest) {
      float total[kRows] = {};
#pragma unroll
      for (int f = 0; f < 4; ++f) {
#pragma unroll
        for (int i = 0; i < kStrip / 2; ++i) total[2 * f + i / 2 % 2] += c[f][i];
      }
      gather(total, add, own);
      sum[0] += own[0], sum[1] += own[1];
    } else {
      float relative_to[2];
      pick(shift, relative_to);
      for_each_segment(starts, [&](int begin) {
        gather(part, add, own);
        sum[0] += own[0], sum[1] += own[1];
        const float logs[2] = {log2f(own[0]) + relative_to[0], log2f(own[1]) + relative_to[1]};
        store(tile, begin, logs);
      });
    }
  }

  /// What is known of whole rows, as far as this warp saw them.
  __device__ void finish(int head, int part_of_row, int q_tile) const {
    const int64_t slice = part_of_row * Shape::kStrips + strip;
    float2* const to = params.sums + (head * params.slices + slice) * params.rows + row(q_tile);
    float tops[2];
    pick(top, tops);
    to[0] = {tops[0], sum[0]}, to[32] = {tops[1], sum[1]};
  }
};

/// Grid: tiles of queries of parts of rows of heads; neighbours read the same keys.
template <typename Shape, Type kType, bool kLargest>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kBlocks)
    shares_kernel(const __grid_constant__ SharesParams params) {
  const int q_tiles = params.rows / kQueries;
  const int q_tile = blockIdx.x % q_tiles, rest = blockIdx.x / q_tiles;
  const int part_of_row = rest % params.parts_of_row, head = rest / params.parts_of_row;
  const int first = part_of_row * params.tiles_at_once;
  const int last = min(first + params.tiles_at_once, params.tiles);
  SharesLoader<Shape> loader(params, params.first_head + head, q_tile, first, last);
  for (int i = 1; i < params.ring; ++i) {
    for (int third = 0; third < 3; ++third) loader.load(third);
  }
  SharesComputer<Shape, kType, kLargest> computer(params, head, q_tile);
  const auto phases = static_cast<int>(params.args.phases), dim = static_cast<int>(params.args.dim);
  const int slot_bytes = loader.slot_bytes(params);
  int slot = 0;
  for (int tile = first; tile < last; ++tile) {
    computer.clear();
    uint32_t keys = 0;
    uint32_t held = loader.held;
    for (int phase = 0; phase < phases; ++phase) {
      for (int step = 0; step < params.steps; ++step) {
        sm80::await_slot(params.ring);
        keys = loader.ring + slot * slot_bytes;
        const uint32_t queries = params.holds ? held : keys + Shape::kKeyBytes + Shape::kNoteBytes;
        computer.multiply_step(queries, keys, dim - step * kChannels,
                               [&](int third) { loader.load(third); });
        held += kQueryBytes;
        if (++slot == params.ring) slot = 0;
      }
    }
    // The slot is filled again after the next wait only.
    computer.finish_tile(tile, ptx::dynamic_memory() + (keys - loader.held) + Shape::kKeyBytes);
  }
  computer.finish(head, part_of_row, q_tile);
}

// ---- Shares of whole rows -----------------------------------------------------------------------

constexpr int kJoinThreads = 128;  // blocks of keys, and groups of queries at a time

/// A thread makes the share of a pair of blocks. Grid: (blocks of queries, 128 blocks of keys each,
/// heads of the pass).
template <bool kLargest>
__global__ void __launch_bounds__(kJoinThreads)
    join_shares_kernel(const __grid_constant__ SharesParams params) {
  __shared__ float lse[kJoinThreads];
  __shared__ float weight[kJoinThreads];  // 0: the row does not count
  const BlockSharesArgs& args = params.args;
  const int64_t block = static_cast<int64_t>(blockIdx.y) * kJoinThreads + threadIdx.x;
  const auto q_groups = static_cast<int>(args.q_groups),
             kv_groups = static_cast<int>(args.kv_groups);
  const int begin = max(args.q_offsets[blockIdx.x], 0);
  const int end = min(args.q_offsets[blockIdx.x + 1], q_groups);
  int strip = 0, last_strip = -1;  // of the block of keys
  if (block < args.kv_blocks) {
    const int from = max(args.kv_offsets[block], 0),
              to = min(args.kv_offsets[block + 1], kv_groups);
    if (from < to) strip = from / kStrip, last_strip = (to - 1) / kStrip;
  }
  const float* const parts = params.parts + blockIdx.z * params.slots * params.rows;
  const float2* const sums = params.sums + blockIdx.z * params.slices * params.rows;
  float share = 0;
  // Rows in whole fours: those before the first one do not count.
  for (int at = begin / 4 * 4; at < end; at += kJoinThreads) {
    const int row = at + static_cast<int>(threadIdx.x);
    float top = -INFINITY, sum = 0, own = 0;
    if (row >= begin && row < end) {
      for (int64_t i = 0; i < params.slices; ++i) top = fmaxf(top, sums[i * params.rows + row].x);
      const float shift = top == -INFINITY ? 0 : top;
      for (int64_t i = 0; i < params.slices; ++i) {
        const float2 slice = sums[i * params.rows + row];
        sum = fmaf(slice.y, exp2f(slice.x - shift), sum);
      }
      own = args.q_weight != nullptr ? args.q_weight[row] : 1;
    }
    __syncthreads();
    lse[threadIdx.x] = top + log2f(sum);
    weight[threadIdx.x] = sum == 0 ? 0 : own;
    __syncthreads();
    for (int s = strip; s <= last_strip; ++s) {
      const float* const from = parts + (block + s) * params.rows + at;
      for (int r = 0; r < min(kJoinThreads, end - at); r += 4) {
        const float4 part = *reinterpret_cast<const float4*>(from + r);
        const float values[4] = {part.x, part.y, part.z, part.w};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if (weight[r + i] == 0) continue;  // whatever the row holds
          const float x = exp2f(values[i] - lse[r + i]) * weight[r + i];
          share = kLargest ? fmaxf(share, x) : share + x;
        }
      }
    }
  }
  if (block >= args.kv_blocks) return;
  const int64_t head = params.first_head + static_cast<int>(blockIdx.z);
  args.shares[(head * args.q_blocks + blockIdx.x) * args.kv_blocks + block] = share;
}

}  // namespace fovea::kernels::shares
