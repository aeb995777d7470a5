#pragma once

#include <cstdint>
#include <type_traits>

#include "kernels/attention/block_sparse_cuda.h"
#include "kernels/attention/online_softmax.cuh"
#include "kernels/common/fragment.cuh"
#include "kernels/common/mma.cuh"

// The forward pass of softmax attention on compute capability 8.0 and newer (FlashAttention-2, Dao
// 2023, arXiv:2307.08691).
//
// A block computes a tile of queries. Its warps share what is copied of K and V, step by step, into
// a ring: K of a step, V of it, K of the next one, and so on. While they work on one, the next ones
// are under way. Each warp has rows of its own, whose softmax and O stay in its registers.

namespace fovea::kernels::sm80 {

using mma::Type;

/// The shape of a kernel; with integers Q and K are those, and V is not.
template <int kDim_, int kQueries_, bool kIntegers_ = false>
struct ForwardShape {
  static constexpr int kDim = kDim_;                  // channels of a head
  static constexpr int kQueries = kQueries_;          // of a tile
  static constexpr int kKeys = kDim > 128 ? 32 : 64;  // of a step
  static constexpr bool kIntegers = kIntegers_;
  static constexpr int kRowBytes = kDim * (kIntegers ? 1 : 2);  // of Q and K
  // Fragments of 16 rows that a warp has. With two, all that is read of K and V is used twice: one
  // alone needs as much time to read it from shared memory as to multiply.
  static constexpr int kFragments = kDim > 128 ? 1 : kQueries / 64;
  static constexpr int kWarps = kQueries / 16 / kFragments;
  static constexpr int kThreads = 32 * kWarps;
  // Whether Q stays in registers, or is read from shared memory in every step.
  static constexpr bool kHold = kFragments * kDim <= 128;
  // Blocks on a multiprocessor that there are registers for.
  static constexpr int kBlocks = kWarps > 4                                       ? 1
                                 : kDim <= 32 || (kDim <= 128 && kFragments == 1) ? 3
                                                                                  : 2;
  static constexpr int kQueryBytes = kQueries * kDim * 2;  // as O needs them
  static constexpr int kSlotBytes = kKeys * kDim * 2;
};

/// What a warp does at a time: keys that lie together.
struct alignas(16) Step {
  int position;  // of the first key
  int len;       // -1: there are no more steps
  int mask;      // 0, or 1 + the number of the tile's pair mask
  int offset;    // of the first key within its span
};

/// Slots of the ring, at least 2 and at most this.
constexpr int kMostSlots = 6;
/// Steps of which something is in the ring.
constexpr int kSteps = (kMostSlots + 1) / 2;

struct ForwardParams {
  CudaAttentionArgs args;
  int tiles;  // of a head
  int slots;
  float scale_log2;  // sm_scale * log2(e)
  float bias_scale;  // 1 / sm_scale
};

/// A tile of queries, and its keys. It lies in shared memory: registers are short.
struct TileWork {
  int head, item;
  QueryTile queries;
  const KeySpan* list;  // null: all keys
  int ranges;           // of keys
};

template <typename Shape>
__device__ inline TileWork find_work(const ForwardParams& params, int index) {
  const CudaAttentionArgs& args = params.args;
  const TileLists& lists = args.lists;
  const int heads = static_cast<int>(args.heads);
  const int tile = index % params.tiles;
  TileWork work{};
  work.head = index / params.tiles % heads;
  work.item = index / params.tiles / heads;
  if (lists.tiles != nullptr) {
    const int64_t map = work.item * lists.batch_stride + work.head * lists.head_stride;
    work.queries = lists.tiles[map * lists.tiles_per_map + tile];
    const int64_t row = map * lists.rows + work.queries.row;
    work.list = lists.spans + row * lists.capacity;
    work.ranges = work.queries.len > 0 ? lists.counts[row] : 0;
  } else {
    const int begin = tile * Shape::kQueries;
    work.queries = {begin, min(Shape::kQueries, static_cast<int>(args.q_len) - begin), 0, 0};
    work.ranges = args.more.len > 0 ? 2 : 1;
  }
  return work;
}

/// The begin of shared memory; the slots come behind it.
template <typename Shape>
struct alignas(128) ForwardMemory {
  char q[Shape::kQueryBytes];  // then O
  float bias[kSteps][Shape::kKeys];
  float scale[Shape::kIntegers ? kSteps : 1][Shape::kIntegers ? Shape::kKeys : 1];  // of keys
  Step steps[kSteps];
  TileWork work;
};

/// Cuts ranges of keys into steps.
template <int kKeys>
struct StepWalk {
  const CudaAttentionArgs& args;
  const TileWork& work;
  int at = 0, offset = 0;
  int begin = 0, len = 0, mask = 0;  // of the range

  /// Asks for the range long before it is needed.
  __device__ void enter() {
    if (at >= work.ranges) return;
    if (work.list != nullptr) {
      const KeySpan span = work.list[at];
      begin = span.begin, len = span.len, mask = span.mask;
    } else {
      begin = at == 0 ? 0 : args.more.begin;
      len = at == 0 ? static_cast<int>(args.kv_len) : args.more.len;
    }
  }

  __device__ Step next() {
    if (at >= work.ranges) return {0, -1, 0, 0};
    const Step step = {begin + offset, min(kKeys, len - offset),
                       mask == 0 ? 0 : mask + work.queries.part, offset};
    offset += kKeys;
    if (offset >= len) {
      offset = 0;
      ++at;
      enter();
    }
    return step;
  }
};

/// Copies kCount rows of kBytes; those from `len` on become zeros.
template <int kBytes, int kCount, int kThreads>
__device__ inline void copy_rows(uint32_t shared, const char* global, int64_t row_bytes, int len) {
  using Rows = mma::MixedRows<kBytes>;
  static_assert(kCount * Rows::kUnits % kThreads == 0);
  constexpr int kPieces = kCount * Rows::kUnits / kThreads;
  if constexpr (kThreads % (8 * Rows::kUnits) == 0) {
    // A thread's pieces are of one column, and alike in how units change places.
    constexpr int kApart = kThreads / Rows::kUnits;
    const int first = static_cast<int>(threadIdx.x) / Rows::kUnits;
    const int unit = static_cast<int>(threadIdx.x) % Rows::kUnits;
    const uint32_t to = shared + Rows::place(first, unit);
    const char* from = global + first * row_bytes + unit * 16;
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      mma::copy16(to + i * kApart * kBytes, from, first + i * kApart < len);
      from += kApart * row_bytes;
    }
  } else {
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      const int piece = static_cast<int>(threadIdx.x) + i * kThreads;
      const int row = piece / Rows::kUnits, unit = piece % Rows::kUnits;
      mma::copy16(shared + Rows::place(row, unit), global + row * row_bytes + unit * 16, row < len);
    }
  }
}

/// Where a row of a head begins, whose numbers have kBytes.
template <int kBytes, typename Tensor>
__device__ inline char* row_of(const Tensor& x, int item, int head, int64_t row) {
  return static_cast<char*>(const_cast<void*>(static_cast<const void*>(x.data))) +
         kBytes * (item * x.batch_stride + head * x.head_stride + row * x.row_stride);
}

template <typename Shape>
__device__ inline void load_queries(const CudaAttentionArgs& args, ForwardMemory<Shape>& memory) {
  const int head = memory.work.head, item = memory.work.item;
  const QueryTile queries = memory.work.queries;
  const uint32_t to = ptx::shared_address(memory.q);
  if constexpr (Shape::kIntegers) {
    copy_rows<Shape::kRowBytes, Shape::kQueries, Shape::kThreads>(
        to, row_of<1>(args.q_int8, item, head, queries.begin), args.q_int8.row_stride, queries.len);
  } else {
    copy_rows<Shape::kRowBytes, Shape::kQueries, Shape::kThreads>(
        to, row_of<2>(args.q, item, head, queries.begin), 2 * args.q.row_stride, queries.len);
  }
}

/// All copies of a block into the ring; every thread has a part of each.
template <typename Shape>
struct Loader {
  const ForwardParams& params;
  ForwardMemory<Shape>& memory;
  StepWalk<Shape::kKeys> walk{params.args, memory.work};
  Step step{};
  int slot = 0, place = 0;
  bool values = false;  // what comes next

  /// The next K or V, or nothing: always one group.
  __device__ void load() {
    const CudaAttentionArgs& args = params.args;
    if (!values) {
      step = walk.next();
      if (threadIdx.x == 0) memory.steps[place] = step;
      if (args.key_bias.data != nullptr) load_bias();
      if constexpr (Shape::kIntegers) load_scales();
      if (++place == kSteps) place = 0;
    }
    if (step.len >= 0) load_rows();
    mma::commit_copies();
    values = !values;
    if (++slot == params.slots) slot = 0;
  }

  __device__ void load_rows() {
    const CudaAttentionArgs& args = params.args;
    const int item = memory.work.item;
    const int kv_head = memory.work.head / static_cast<int>(args.heads / args.kv_heads);
    const uint32_t to = ptx::shared_address(&memory + 1) + slot * Shape::kSlotBytes;
    if constexpr (Shape::kIntegers) {
      if (!values) {
        copy_rows<Shape::kRowBytes, Shape::kKeys, Shape::kThreads>(
            to, row_of<1>(args.k_int8, item, kv_head, step.position), args.k_int8.row_stride,
            step.len);
        return;
      }
    }
    const bool more = args.more.k.data != nullptr && step.position >= args.more.begin;
    const HeadRows& rows = values ? (more ? args.more.v : args.v) : (more ? args.more.k : args.k);
    const int row = step.position - (more ? args.more.begin : 0);
    copy_rows<Shape::kDim * 2, Shape::kKeys, Shape::kThreads>(
        to, row_of<2>(rows, item, kv_head, row), 2 * rows.row_stride, step.len);
  }

  __device__ void load_scales() {
    const CudaAttentionArgs& args = params.args;
    const int key = threadIdx.x;
    if (key >= Shape::kKeys || step.len < 0) return;
    const int kv_head = memory.work.head / static_cast<int>(args.heads / args.kv_heads);
    const float* of_head = args.k_int8.scale + memory.work.item * args.k_int8.scale_batch_stride +
                           kv_head * args.k_int8.scale_head_stride;
    mma::copy4(ptx::shared_address(&memory.scale[place][key]), of_head + step.position + key,
               key < step.len);
  }

  /// Keys before the first one with a bias have 0.
  __device__ void load_bias() {
    const KeyBias& bias = params.args.key_bias;
    const int key = threadIdx.x;
    if (key >= Shape::kKeys || step.len < 0) return;
    const int64_t at = static_cast<int64_t>(step.position) + key - bias.begin;
    const float* of_head =
        bias.data + memory.work.item * bias.batch_stride + memory.work.head * bias.head_stride;
    mma::copy4(ptx::shared_address(&memory.bias[place][key]), of_head + at,
               at >= 0 && key < step.len);
  }
};

/// What a warp computes.
template <typename Shape, Type kType>
struct Computer {
  static constexpr int kFragments = Shape::kFragments, kDim = Shape::kDim, kKeys = Shape::kKeys;
  static constexpr int kRowBytes = Shape::kRowBytes;
  static constexpr int kProducts = kRowBytes / 32;  // along the channels
  using Rows = mma::MixedRows<kDim * 2>;            // of V and O
  using KeyRows = mma::MixedRows<kRowBytes>;        // of Q and K
  // What sums of products become.
  using Sum = std::conditional_t<Shape::kIntegers, int32_t, float>;

  ForwardMemory<Shape>& memory;
  int first_row;  // of the warp, in the tile
  int lane;
  uint32_t q_lane, k_lane, v_lane;  // where this lane reads of 16 rows
  OnlineSoftmax softmax[kFragments];
  float o[kFragments][kDim / 2];
  float s[kFragments][kKeys / 2];
  uint32_t p[kFragments][kKeys / 16][4];
  uint32_t q[Shape::kHold ? kFragments : 1][Shape::kHold ? kProducts : 1][4];

  __device__ explicit Computer(ForwardMemory<Shape>& memory)
      : memory(memory),
        first_row(static_cast<int>(threadIdx.x) / 32 * 16 * kFragments),
        lane(threadIdx.x % 32),
        q_lane(KeyRows::place(lane % 16, lane / 16)),
        k_lane(KeyRows::place(lane / 16 * 8 + lane % 8, lane / 8 % 2)),
        v_lane(Rows::place(lane % 16, lane / 16)) {
#pragma unroll
    for (auto& fragment : o) {
#pragma unroll
      for (float& x : fragment) x = 0;
    }
  }

  /// 32 bytes of 16 rows of Q.
  __device__ void load_query(int fragment, int step, uint32_t (&a)[4]) const {
    const uint32_t rows =
        ptx::shared_address(memory.q) + (first_row + fragment * 16) * kRowBytes + q_lane;
    mma::load_matrices(KeyRows::behind(rows, 2 * step), a);
  }

  /// Once Q is there.
  __device__ void hold_query() {
    if constexpr (Shape::kHold) {
#pragma unroll
      for (int f = 0; f < kFragments; ++f) {
#pragma unroll
        for (int step = 0; step < kProducts; ++step) load_query(f, step, q[f][step]);
      }
    }
  }

  /// sum += Q Kᵀ.
  __device__ void multiply_keys(uint32_t k, Sum (&sum)[kFragments][kKeys / 2]) const {
#pragma unroll
    for (int step = 0; step < kProducts; ++step) {
      uint32_t a[kFragments][4];
#pragma unroll
      for (int f = 0; f < kFragments; ++f) {
        if constexpr (Shape::kHold) {
#pragma unroll
          for (int r = 0; r < 4; ++r) a[f][r] = q[f][step][r];
        } else {
          load_query(f, step, a[f]);
        }
      }
      const uint32_t rows = KeyRows::behind(k + k_lane, 2 * step);
#pragma unroll
      for (int keys = 0; keys < kKeys / 16; ++keys) {
        uint32_t b[4];
        mma::load_matrices(rows + keys * 16 * kRowBytes, b);
#pragma unroll
        for (int f = 0; f < kFragments; ++f) {
          if constexpr (Shape::kIntegers) {
            mma::multiply(sum[f], 8 * keys, a[f], b[0], b[1]);
            mma::multiply(sum[f], 8 * keys + 4, a[f], b[2], b[3]);
          } else {
            mma::multiply<kType>(sum[f], 8 * keys, a[f], b[0], b[1]);
            mma::multiply<kType>(sum[f], 8 * keys + 4, a[f], b[2], b[3]);
          }
        }
      }
    }
  }

  /// S = Q Kᵀ.
  __device__ void make_logits(uint32_t k) {
#pragma unroll
    for (auto& fragment : s) {
#pragma unroll
      for (float& x : fragment) x = 0;
    }
    multiply_keys(k, s);
  }

  /// The same of integers. Their sums begin with the bits of 1.5 * 2^23, next to which an integer
  /// more is a bit more: they become floats by a subtraction. They are below 2^22.
  __device__ void make_logits(uint32_t k, const float* scale, const float (&row)[kFragments][2]) {
    constexpr int32_t kBits = 0x4b400000;
    Sum sum[kFragments][kKeys / 2];
#pragma unroll
    for (auto& fragment : sum) {
#pragma unroll
      for (Sum& x : fragment) x = kBits;
    }
    multiply_keys(k, sum);
#pragma unroll
    for (int keys = 0; keys < kKeys / 8; ++keys) {
      const float2 x = *reinterpret_cast<const float2*>(scale + 8 * keys + lane % 4 * 2);
#pragma unroll
      for (int f = 0; f < kFragments; ++f) {
#pragma unroll
        for (int i = 4 * keys; i < 4 * keys + 4; ++i) {
          const float exact = __int_as_float(sum[f][i]) - __int_as_float(kBits);
          s[f][i] = exact * (row[f][i / 2 % 2] * (i % 2 == 0 ? x.x : x.y));
        }
      }
    }
  }

  /// Scales of this thread's rows.
  __device__ void find_scales(const CudaAttentionArgs& args, const TileWork& work,
                              float (&row)[kFragments][2]) const {
    const ScaledIntegers& q = args.q_int8;
    const float* of_head = q.scale + work.item * q.scale_batch_stride +
                           work.head * q.scale_head_stride + work.queries.begin;
#pragma unroll
    for (int f = 0; f < kFragments; ++f) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int own = first_row + f * 16 + lane / 4 + i * 8;
        row[f][i] = own < work.queries.len ? of_head[own] : 0;
      }
    }
  }

  /// O += P V.
  __device__ void add_values(uint32_t v) {
#pragma unroll
    for (int channels = 0; channels < kDim / 16; ++channels) {
      const uint32_t rows = Rows::behind(v + v_lane, 2 * channels);
#pragma unroll
      for (int step = 0; step < kKeys / 16; ++step) {
        uint32_t b[4];
        mma::load_transposed(rows + step * 16 * kDim * 2, b);
#pragma unroll
        for (int f = 0; f < kFragments; ++f) {
          mma::multiply<kType>(o[f], 8 * channels, p[f][step], b[0], b[1]);
          mma::multiply<kType>(o[f], 8 * channels + 4, p[f][step], b[2], b[3]);
        }
      }
    }
  }

  /// Logits are those before the scale: so is the bias.
  __device__ void add_bias(const float* bias, float bias_scale) {
#pragma unroll
    for (int keys = 0; keys < kKeys / 8; ++keys) {
      const float2 x = *reinterpret_cast<const float2*>(bias + 8 * keys + lane % 4 * 2);
#pragma unroll
      for (int f = 0; f < kFragments; ++f) {
#pragma unroll
        for (int row = 0; row < 2; ++row) {
          float* const pair = s[f] + 4 * keys + 2 * row;
          pair[0] = biased(pair[0], x.x, bias_scale);
          pair[1] = biased(pair[1], x.y, bias_scale);
        }
      }
    }
  }

  /// Keys behind the end of the step count nothing.
  __device__ void cut(int len) {
#pragma unroll
    for (int i = 0; i < kKeys / 2; ++i) {
      if (fragment::column(lane, i) < len) continue;
#pragma unroll
      for (int f = 0; f < kFragments; ++f) s[f][i] = -INFINITY;
    }
  }

  /// Pairs whose bit is 0 count nothing.
  __device__ void mask(const uint32_t* masks, const Step& step) {
    const uint32_t* const tile =
        masks + static_cast<int64_t>(step.mask - 1) * Shape::kQueries * kMaskWords;
#pragma unroll
    for (int f = 0; f < kFragments; ++f) {
#pragma unroll
      for (int row = 0; row < 2; ++row) {
        const int own = first_row + f * 16 + lane / 4 + row * 8;
        const uint32_t bits = tile[own * kMaskWords + lane % 4] >> (step.offset / 4);
#pragma unroll
        for (int i = 0; i < kKeys / 4; ++i) {
          if ((bits >> i & 1) == 0) s[f][i / 2 * 4 + 2 * row + i % 2] = -INFINITY;
        }
      }
    }
  }

  /// Logits become weights.
  __device__ void make_weights(float scale_log2) {
#pragma unroll
    for (int f = 0; f < kFragments; ++f) {
      float keep[2];
      softmax[f].step(scale_log2, s[f], keep);
#pragma unroll
      for (int step = 0; step < kKeys / 16; ++step) {
        fragment::to_operand<kType>(s[f], step, p[f][step]);
      }
      if (!__any_sync(0xffffffff, keep[0] != 1 || keep[1] != 1)) continue;
#pragma unroll
      for (int i = 0; i < kDim / 2; ++i) o[f][i] *= keep[i / 2 % 2];
    }
  }

  /// Divides, and puts O into the place of Q; the lse goes away.
  __device__ void finish(const ForwardParams& params, const TileWork& work) {
    const CudaAttentionArgs& args = params.args;
    char* const rows = memory.q;
#pragma unroll
    for (int f = 0; f < kFragments; ++f) {
      softmax[f].join();
#pragma unroll
      for (int row = 0; row < 2; ++row) {
        const float share = softmax[f].sum[row] == 0 ? 0 : 1 / softmax[f].sum[row];
        const int own = first_row + f * 16 + lane / 4 + row * 8;
#pragma unroll
        for (int unit = 0; unit < kDim / 8; ++unit) {
          const float* const pair = o[f] + 4 * unit + 2 * row;
          *reinterpret_cast<uint32_t*>(rows + Rows::place(own, unit) + lane % 4 * 4) =
              fragment::pack<kType>(pair[0] * share, pair[1] * share);
        }
        if (args.lse != nullptr && lane % 4 == 0 && own < work.queries.len) {
          const int64_t of_head = item_head(args, work) * args.q_len;
          args.lse[of_head + out_row(args, work, own)] = softmax[f].lse(params.scale_log2, row);
        }
      }
    }
  }

  /// The warp's rows of O to their places, 16 bytes at a time.
  __device__ void write(const CudaAttentionArgs& args, const TileWork& work) const {
#pragma unroll
    for (int i = 0; i < kFragments * 16 * Rows::kUnits / 32; ++i) {
      const int piece = lane + 32 * i;
      const int own = first_row + piece / Rows::kUnits, unit = piece % Rows::kUnits;
      if (own >= work.queries.len) break;
      char* const to = row_of<2>(args.out, work.item, work.head, out_row(args, work, own));
      *reinterpret_cast<uint4*>(to + unit * 16) =
          *reinterpret_cast<const uint4*>(memory.q + Rows::place(own, unit));
    }
  }

  __device__ static int64_t item_head(const CudaAttentionArgs& args, const TileWork& work) {
    return static_cast<int64_t>(work.item) * args.heads + work.head;
  }
  /// Row of out and lse of a row of the tile.
  __device__ static int out_row(const CudaAttentionArgs& args, const TileWork& work, int own) {
    const RowOrder& order = args.out_order;
    const int query = work.queries.begin + own;
    if (order.rows == nullptr) return query;
    return order.rows[work.item * order.batch_stride + work.head * order.head_stride + query];
  }
};

/// Waits until the oldest group of a full ring is there, for all threads.
__device__ inline void await_slot(int slots) {
  static_assert(kMostSlots == 6);
  switch (slots) {
    case 2:
      mma::wait_copies<0>();
      break;
    case 3:
      mma::wait_copies<1>();
      break;
    case 4:
      mma::wait_copies<2>();
      break;
    case 5:
      mma::wait_copies<3>();
      break;
    default:
      mma::wait_copies<4>();
      break;
  }
  __syncthreads();
}

/// Grid: a block for each tile of each head.
template <typename Shape, Type kType>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kBlocks)
    forward_kernel(const __grid_constant__ ForwardParams params) {
  auto& memory = *reinterpret_cast<ForwardMemory<Shape>*>(ptx::dynamic_memory());
  const CudaAttentionArgs& args = params.args;
  const TileWork& work = memory.work;
  if (threadIdx.x == 0) memory.work = find_work<Shape>(params, blockIdx.x);
  __syncthreads();
  if (work.queries.len == 0) return;
  load_queries<Shape>(args, memory);
  Loader<Shape> loader{params, memory};
  loader.walk.enter();
  for (int i = 1; i < params.slots; ++i) loader.load();
  Computer<Shape, kType> computer(memory);
  [[maybe_unused]] float row_scales[Shape::kFragments][2];
  if constexpr (Shape::kIntegers) computer.find_scales(args, work, row_scales);
  const bool idle = computer.first_row >= work.queries.len;
  const uint32_t ring = ptx::shared_address(&memory + 1);
  // The ring is full but for a slot: when all threads are done with one, and wait for the next, it
  // is filled again.
  for (int slot = 0, place = 0, i = 0;; ++i) {
    await_slot(params.slots);
    loader.load();
    const Step step = memory.steps[place];
    if (step.len < 0) break;
    if (i == 0) computer.hold_query();
    if (!idle) {
      if constexpr (Shape::kIntegers) {
        computer.make_logits(ring + slot * Shape::kSlotBytes, memory.scale[place], row_scales);
      } else {
        computer.make_logits(ring + slot * Shape::kSlotBytes);
      }
      if (args.key_bias.data != nullptr) computer.add_bias(memory.bias[place], params.bias_scale);
      if (step.mask != 0) computer.mask(args.lists.masks, step);
      if (step.len < Shape::kKeys) computer.cut(step.len);
      computer.make_weights(params.scale_log2);
    }
    if (++place == kSteps) place = 0;
    if (++slot == params.slots) slot = 0;
    await_slot(params.slots);
    loader.load();
    if (!idle) computer.add_values(ring + slot * Shape::kSlotBytes);
    if (++slot == params.slots) slot = 0;
  }
  computer.finish(params, work);
  __syncwarp();
  computer.write(args, work);
}

}  // namespace fovea::kernels::sm80
