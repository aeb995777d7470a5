#pragma once

#include <cstdint>

#include "kernels/attention/backward_order.h"
#include "kernels/attention/backward_schedule.h"
#include "kernels/attention/backward_sm90.cuh"

// The third form of the backward pass of compute capability 9.0a, for dense attention and lists of
// large blocks: columns that make the gradients of queries too, five products instead of the seven
// of two kernels.
//
// It is the columns form of backward_sm90.cuh with U = Q, W = dO, S, P and dS transposed, and more:
// both computing warpgroups write dS to shared memory, and each makes half of the channels of
// dQᵀ = Kᵀ dSᵀ of the step from all of it. That goes through shared memory into an fp32 buffer in
// global memory, by the copy engine, that a thread of the loading warpgroup commands: it waits for
// its turn at the step (backward_order.h, of lists backward_schedule.h), so that the order of
// additions is fixed. A last kernel rounds the buffer.
//
// The matrix units have work while threads do other things: dP while P is made, dV while dS is and
// the warpgroups wait for each other's, dK while dQ is written, S of the next step behind it.

namespace fovea::kernels::sm90 {

/// Without kAhead_ S of a step starts when the sums of the one before are done: fewer registers.
/// kApart_ is of AddOrder and BackwardSchedule: the wait for a turn has so many steps to be over,
/// and the cache as many times the number of blocks to hold.
/// With two kPlaces_ for dQ a late turn holds up the step after the next one only.
template <int kDim, int kOthers_, int kStages_, bool kAhead_, int kApart_ = 2, int kPieces_ = 0,
          int kPlaces_ = 1>
struct JointShape : BackwardShape<true, kDim, 2, kOthers_, kStages_, kPieces_> {
  static constexpr bool kJoint = true;
  static constexpr bool kAhead = kAhead_;
  static constexpr int kStats = 2 * kOthers_;
  static constexpr int kApart = kApart_;
  static constexpr int kPlaces = kPlaces_;
  static constexpr int kNotes = kPieces_ > 0 ? 8 : 1;  // steps of lists that are told ahead
  static_assert(kDim == 128, "a warpgroup makes 64 channels of dQ");
  static_assert(kPieces_ < 2, "a step is what dQ is added to");
  static_assert(kPlaces_ == 1 || kPlaces_ == 2);
};

/// Of lists, what is to be known of a step.
struct ColumnStep {
  KeySpan span;  // with the mask of the tile
  int at, rank;  // of all steps, and among the tiles that add to it; below 0: the end
};

template <typename Shape>
struct JointMemory : BackwardMemory<Shape> {
  alignas(1024) char ds[Shape::kOthers * Shape::kOwn * 2];  // (panels of 64 keys, queries, 64)
  alignas(128) float dq[Shape::kPlaces][Shape::kOthers * Shape::kDim];  // of QueryGradients
  uint64_t ds_empty, dq_full[Shape::kPlaces], dq_empty[Shape::kPlaces];
  uint64_t notes_full[Shape::kNotes], notes_empty[Shape::kNotes];
  ColumnStep notes[Shape::kNotes];
};

/// fp32 gradients of the queries of a step, as threads have them: [2 halves of the channels,
/// queries / 8, 128 threads] of float4, whose registers 4 i to 4 i + 3 they are.
struct QueryGradients {
  /// Of float4 number `at`: the first one's query and channel; the others are (query + 1, channel),
  /// (query, channel + 8) and (query + 1, channel + 8).
  template <int kQueries>
  __device__ static int2 place(int at) {
    const int thread = at % 128, i = at / 128 % (kQueries / 8), half = at / (16 * kQueries);
    return make_int2(fragment::column(thread, 4 * i), 64 * half + fragment::first_row(thread));
  }
};

struct JointParams {
  int steps;        // of queries that a tile goes round, of all heads of queries of its head
  float* dq;        // [batch, heads of queries, steps of a head] of QueryGradients
  int32_t* counts;  // of each step: how many tiles have added to it
  BackwardSchedule schedule;  // of lists
};

/// One of the computing warpgroups.
template <typename Shape, Type kType>
struct JointDifferentiator : Differentiator<Shape, kType> {
  using Base = Differentiator<Shape, kType>;
  using Base::dx, Base::dy, Base::group, Base::kStepRegisters, Base::memory, Base::place,
      Base::release, Base::thread;
  using typename Base::Operand;
  static constexpr int kBoth = 3;  // barrier of all computing threads

  JointMemory<Shape>& joint;
  // Of Kᵀ this warpgroup's channels, and dS.
  wgmma::Matrix k = wgmma::k_major(ptx::shared_address(memory.x) + group * Shape::kOwn * 128);
  wgmma::Matrix ds = wgmma::k_major(ptx::shared_address(joint.ds));
  uint32_t steps_done = 0;

  /// Keys behind the end of the sequence get weights of 0: their gradients are not stored, but what
  /// they give to queries has to be 0. Queries behind the end are zeros, and so is all they give.
  __device__ void hide_keys(float (&s)[kStepRegisters]) const {
    const int len = memory.tile.len;
    if (len == Shape::kOwn) return;
    const int first = group * 64 + fragment::first_row(thread);
#pragma unroll
    for (int i = 0; i < kStepRegisters; ++i) {
      if (first + i / 2 % 2 * 8 >= len) s[i] = -INFINITY;
    }
  }

  /// This warpgroup's keys of dS to their place, a row of keys for each query.
  __device__ void store_logit_gradients(const Operand& gradients) const {
    ptx::wait(&joint.ds_empty, steps_done % 2 ^ 1);
    const uint32_t panel = ptx::shared_address(joint.ds) + group * Shape::kOthers * 128;
    fragment::store_transposed(gradients, panel, thread);
    ptx::fence_async_proxy();
  }

  /// dQᵀ = Kᵀ dSᵀ of this warpgroup's channels.
  __device__ void start_query_gradients(float (&dq)[kStepRegisters]) const {
    wgmma::fence();
#pragma unroll
    for (int step = 0; step < Shape::kOwn / 16; ++step) {
      const int of_ds = step / 4 * Shape::kOthers * 128 + step % 4 * wgmma::kStepBytes;
      wgmma::multiply<kType, false, true>(dq, k.further(step * 2048), ds.further(of_ds), step > 0);
    }
    wgmma::commit();
  }

  /// dQ to its place, from where it is added; that of dS is free then.
  __device__ void store_query_gradients(const float (&dq)[kStepRegisters]) const {
    release(&joint.ds_empty);
    const uint32_t which = steps_done % Shape::kPlaces;
    ptx::wait(&joint.dq_empty[which], steps_done / Shape::kPlaces % 2 ^ 1);
    int first = group * 16 * Shape::kOthers + thread;
    ptx::opaque(first);  // or its place is kept from the begin of the kernel
    auto* const to = reinterpret_cast<float4*>(joint.dq[which]) + first;
#pragma unroll
    for (int i = 0; i < kStepRegisters / 4; ++i) {
      to[i * 128] = make_float4(dq[4 * i], dq[4 * i + 1], dq[4 * i + 2], dq[4 * i + 3]);
    }
    ptx::fence_async_proxy();
    __syncwarp();
    release(&joint.dq_full[which]);
  }

  /// The ring's next step; dK of the one before may be under way, as that of this one then.
  __device__ void step(bool is_first) {
    Operand gradients;
    {
      float s[kStepRegisters], dp[kStepRegisters];
      if constexpr (Shape::kAhead) this->start_logits(s);
      wgmma::wait<Shape::kAhead ? 1 : 0>();
      if (!is_first) this->end_step();
      if constexpr (!Shape::kAhead) this->start_logits(s);
      this->start_weight_gradients(dp);
      wgmma::wait<1>();
      wgmma::pin(s);
      if constexpr (Shape::kListed) this->hide(s);
      hide_keys(s);
      this->weigh(s);
      Operand weights;
      this->make_operand(s, weights);
      this->start_sum(dy, weights, true);
      wgmma::wait<1>();
      wgmma::pin(dp);
#pragma unroll
      for (int i = 0; i < kStepRegisters; ++i) s[i] *= dp[i];
      this->make_operand(s, gradients);
    }
    store_logit_gradients(gradients);
    ptx::named_sync(kBoth, 128 * Shape::kGroups);
    float dq[kStepRegisters];
    start_query_gradients(dq);
    this->start_sum(dx, gradients, false);
    wgmma::wait<1>();
    wgmma::pin(dq);
    store_query_gradients(dq);
    place.next();
    ++steps_done;
  }

  __device__ void compute_all(const BackwardMaps& maps) {
    for (uint32_t own_parity = 0;; own_parity ^= 1) {
      ptx::wait(&memory.own_full, own_parity);
      const int steps = memory.tile.steps;
      if (steps < 0) break;
      this->clear();
      for (int i = 0; i < steps; ++i) step(i == 0);
      wgmma::wait<0>();
      wgmma::pin(dx);
      wgmma::pin(dy);
      if (!Shape::kListed || steps > 0) this->end_step();
      ptx::named_sync(kBoth, 128 * Shape::kGroups);  // dK takes the place of K
      this->write_all(maps);
    }
  }
};

template <typename Shape>
__device__ AddOrder order_of(const BackwardParams& params, const JointParams& joint, int tile) {
  const auto blocks = static_cast<int>(gridDim.x);
  return AddOrder::of(tile, params.tiles, blocks, joint.steps, Shape::kApart);
}

/// Everything that is loaded; one thread.
template <typename Shape>
__device__ void load_joint_tiles(const BackwardParams& params, const JointParams& joint,
                                 const BackwardMaps& maps, BackwardMemory<Shape>& memory) {
  BackwardLoader<Shape> loader{params, maps, memory, tma::evict_last()};
  for (int index = blockIdx.x; index < params.num_tiles; index += gridDim.x) {
    const BackwardWork<Shape> work(params, index);
    const Walk<Shape> walk = work.walk(params, 0);  // that of each of its heads of queries
    loader.begin(work);
    const int first = order_of<Shape>(params, joint, index).first_step();
    const int first_head = work.first_head(params);
    loader.head = first_head + first / walk.steps;
    int at = first % walk.steps;
#pragma unroll 1
    for (int i = 0; i < joint.steps; ++i) {
      if (loader.before_own == 0) loader.load_own(work);
      --loader.before_own;
      loader.load(BackwardLoader<Shape>::step(walk, walk.steps - 1 - at));  // walks count down
      if (++at < walk.steps) continue;
      at = 0;
      if (++loader.head == first_head + params.heads_per_kv) loader.head = first_head;
    }
    loader.load_own(work);
  }
  loader.tell({0, 0, 0, 0, -1});
}

/// Adds dQ to the gradients of queries; one thread.
template <typename Shape>
struct QueryAdder {
  const JointParams& joint;
  JointMemory<Shape>& memory;
  uint32_t steps_done = 0;

  /// That of the block's next step, to step `at` of all, behind `rank` others.
  __device__ void add(int64_t at, int rank) {
    float* const to = joint.dq + at * (Shape::kOthers * Shape::kDim);
    ptx::wait_for_turn(joint.counts + at, rank);
    const uint32_t which = steps_done % Shape::kPlaces;
    ptx::wait(&memory.dq_full[which], steps_done / Shape::kPlaces % 2);
    ++steps_done;
    if (rank == 0) {
      ptx::bulk_store(to, memory.dq[which], sizeof memory.dq[which]);
    } else {
      ptx::bulk_add(to, memory.dq[which], sizeof memory.dq[which]);
    }
    ptx::bulk_commit();
    ptx::bulk_wait_read<0>();
    ptx::arrive(&memory.dq_empty[which]);
    ptx::bulk_wait<0>();
    ptx::pass_turn(joint.counts + at);
  }
};

/// Adds the dQ of all steps in their turns; one thread.
template <typename Shape>
__device__ void add_query_gradients(const BackwardParams& params, const JointParams& joint,
                                    JointMemory<Shape>& memory) {
  QueryAdder<Shape> adder{joint, memory};
  for (int index = blockIdx.x; index < params.num_tiles; index += gridDim.x) {
    const AddOrder order = order_of<Shape>(params, joint, index);
    const int64_t head = index / params.tiles;
    int step = order.first_step();
#pragma unroll 1
    for (int i = 0; i < joint.steps; ++i) {
      adder.add(head * joint.steps + step, order.rank(step));
      step = step + 1 == joint.steps ? 0 : step + 1;
    }
  }
}

/// The block's tile of a wave; below 0: there are no more.
__device__ inline int dealt_tile(const JointParams& joint, int wave) {
  const BackwardSchedule& schedule = joint.schedule;
  return wave == schedule.waves ? -1 : schedule.order[wave * gridDim.x + blockIdx.x];
}

/// Writes notes to their ring; one thread.
template <typename Shape>
struct StepTeller {
  JointMemory<Shape>& memory;
  uint32_t count = 0;  // one register

  __device__ void tell(const ColumnStep& notes) {
    const uint32_t slot = count % Shape::kNotes;
    ptx::wait(&memory.notes_empty[slot], count / Shape::kNotes % 2 ^ 1);
    memory.notes[slot] = notes;
    ptx::arrive(&memory.notes_full[slot]);
    ++count;
  }
};

/// Reads them; each of the two threads that do.
template <typename Shape>
struct StepReader {
  JointMemory<Shape>& memory;
  uint32_t count = 0;

  __device__ ColumnStep read() {
    const uint32_t slot = count % Shape::kNotes;
    ptx::wait(&memory.notes_full[slot], count / Shape::kNotes % 2);
    const ColumnStep out = memory.notes[slot];
    ptx::arrive(&memory.notes_empty[slot]);
    ++count;
    return out;
  }
};

/// Of lists, tells what all steps are; one thread, as those that load and add have few registers.
template <typename Shape>
__device__ void tell_steps(const BackwardParams& params, const JointParams& joint,
                           JointMemory<Shape>& memory) {
  const BackwardSchedule& schedule = joint.schedule;
  StepTeller<Shape> teller{memory};
#pragma unroll 1
  for (int wave = 0;; ++wave) {
    const int index = dealt_tile(joint, wave);
    if (index < 0) break;
    auto place = static_cast<uint32_t>(index) * static_cast<uint32_t>(schedule.ranks_of_tile());
#pragma unroll 1
    for (int i = 0; i < params.heads_per_kv; ++i) {
      const ColumnList own = schedule.lists[index * params.heads_per_kv + i];
      const int first = (index / params.tiles * params.heads_per_kv + i) * schedule.steps;
      int at = own.first;
#pragma unroll 1
      for (int left = own.spans; left > 0; --left) {
        KeySpan span = schedule.columns.spans[own.begin + at];
        if (span.mask != 0) span.mask += own.part;
        teller.tell({span, first + span.begin / Shape::kOthers, schedule.ranks[place]});
        ++place;
        if (++at == own.spans) at = 0;
      }
    }
  }
  teller.tell({{0, 0}, -1, 0});
}

/// Of lists, the other rows of all steps; one thread.
template <typename Shape>
__device__ void load_listed_steps(const BackwardParams& params, int steps, const BackwardMaps& maps,
                                  JointMemory<Shape>& memory) {
  BackwardLoader<Shape> loader{params, maps, memory, tma::evict_last()};
  StepReader<Shape> reader{memory};
#pragma unroll 1
  while (true) {
    const ColumnStep notes = reader.read();
    if (notes.at < 0) break;
    const int head = notes.at / steps, heads = params.heads * params.heads_per_kv;
    loader.head = head % heads, loader.item = head / heads;
    loader.load({{notes.span}});
  }
}

/// Of lists, the own rows of all tiles; one thread.
template <typename Shape>
__device__ void load_listed_tiles(const BackwardParams& params, const JointParams& joint,
                                  const BackwardMaps& maps, BackwardMemory<Shape>& memory) {
  BackwardLoader<Shape> loader{params, maps, memory};
#pragma unroll 1
  for (int wave = 0;; ++wave) {
    const int index = dealt_tile(joint, wave);
    if (index < 0) break;
    const BackwardWork<Shape> work(params, index);
    const int steps = joint.schedule.weights[index] - BackwardSchedule::kTileCost;
    loader.tell({work.head, work.item, work.own.begin, work.own.len, steps});
  }
  loader.tell({0, 0, 0, 0, -1});
}

/// Of lists, as `add_query_gradients`.
template <typename Shape>
__device__ void add_listed_gradients(const JointParams& joint, JointMemory<Shape>& memory) {
  QueryAdder<Shape> adder{joint, memory};
  StepReader<Shape> reader{memory};
#pragma unroll 1
  while (true) {
    const ColumnStep notes = reader.read();
    if (notes.at < 0) break;
    adder.add(notes.at, notes.rank);
  }
}

/// Grid: as many blocks as run at a time, one a multiprocessor, started together as they wait for
/// one another; each takes every gridDim.x-th tile, of lists those that are dealt to it.
template <typename Shape, Type kType>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kBlocks)
    joint_backward_kernel(const __grid_constant__ BackwardMaps maps,
                          const __grid_constant__ BackwardParams params,
                          const __grid_constant__ JointParams joint) {
#ifdef FOVEA_SM90A
  auto& memory = *reinterpret_cast<JointMemory<Shape>*>(ptx::hidden_dynamic_memory());
  const int thread = static_cast<int>(threadIdx.x);
  if (thread == 0) {
    make_barriers(memory);
    ptx::barrier_init(&memory.ds_empty, 4 * Shape::kGroups);
    for (int i = 0; i < Shape::kPlaces; ++i) {
      ptx::barrier_init(&memory.dq_full[i], 4 * Shape::kGroups);
      ptx::barrier_init(&memory.dq_empty[i], 1);
    }
    for (int i = 0; i < Shape::kNotes; ++i) {
      ptx::barrier_init(&memory.notes_full[i], 1);
      ptx::barrier_init(&memory.notes_empty[i], 2);
    }
    ptx::fence_barrier_init();
  }
  __syncthreads();
  // As one lane has it, so that the compiler knows that all have the same.
  const int warpgroup = __shfl_sync(0xffffffff, thread / 128, 0);
  if (warpgroup == Shape::kGroups) {
    ptx::give_registers<Shape::kLoadRegisters>();
    // The same of the warp; with conditions on threads 24 registers are too few.
    const int warp = __shfl_sync(0xffffffff, thread / 32, 0) - 4 * Shape::kGroups;
    if constexpr (Shape::kListed) {
      if (warp == 0) {
        if (ptx::elect_one()) load_listed_steps(params, joint.schedule.steps, maps, memory);
      } else if (warp == 1) {
        if (ptx::elect_one()) add_listed_gradients(joint, memory);
      } else if (warp == 2) {
        if (ptx::elect_one()) load_listed_tiles(params, joint, maps, memory);
      } else {
        if (ptx::elect_one()) tell_steps(params, joint, memory);
      }
    } else if (warp == 0) {
      if (ptx::elect_one()) load_joint_tiles(params, joint, maps, memory);
    } else if (warp == 1) {
      if (ptx::elect_one()) add_query_gradients(params, joint, memory);
    }
  } else {
    ptx::take_registers<Shape::kComputeRegisters>();
    JointDifferentiator<Shape, kType>{{params, memory, warpgroup, thread % 128}, memory}
        .compute_all(maps);
  }
#endif
}

struct RoundParams {
  int heads, q_len, steps;  // steps of a head
  const float* from;        // of QueryGradients
  const int32_t* counts;    // of tiles that have added to it
  MutableHeadRows to;
  float scale;
};

/// Rounds the gradients of a step of queries; a block each.
template <int kDim, int kQueries, Type kType>
__global__ void __launch_bounds__(256)
    round_queries_kernel(const __grid_constant__ RoundParams params) {
  constexpr int kPitch = kDim + 4;  // threads of a warp reach all banks
  __shared__ float4 places[kQueries * kPitch / 4];
  auto* const rows = reinterpret_cast<float*>(places);
  const int64_t step = blockIdx.x;
  const auto* const from = reinterpret_cast<const float4*>(params.from + step * (kQueries * kDim));
  const bool is_seen = params.counts[step] > 0;  // by keys
#pragma unroll 4
  for (int at = threadIdx.x; at < kQueries * kDim / 4; at += 256) {
    const float4 x = is_seen ? from[at] : make_float4(0, 0, 0, 0);
    const int2 place = QueryGradients::place<kQueries>(at);
    float* const to = rows + place.x * kPitch + place.y;
    to[0] = x.x * params.scale, to[kPitch] = x.y * params.scale;
    to[8] = x.z * params.scale, to[kPitch + 8] = x.w * params.scale;
  }
  __syncthreads();
  const int64_t of_head = step / params.steps, item = of_head / params.heads;
  const int64_t head = of_head % params.heads, begin = step % params.steps * kQueries;
  char* const to = static_cast<char*>(params.to.data) +
                   2 * (item * params.to.batch_stride + head * params.to.head_stride);
  const auto queries = static_cast<int>(min(int64_t{kQueries}, params.q_len - begin));
  for (int unit = threadIdx.x; unit < queries * (kDim / 8); unit += 256) {
    const int query = unit / (kDim / 8), channel = unit % (kDim / 8) * 8;
    const float* const x = rows + query * kPitch + channel;
    uint4 bits;
    bits.x = fragment::pack<kType>(x[0], x[1]), bits.y = fragment::pack<kType>(x[2], x[3]);
    bits.z = fragment::pack<kType>(x[4], x[5]), bits.w = fragment::pack<kType>(x[6], x[7]);
    *reinterpret_cast<uint4*>(to + 2 * ((begin + query) * params.to.row_stride + channel)) = bits;
  }
}

}  // namespace fovea::kernels::sm90
