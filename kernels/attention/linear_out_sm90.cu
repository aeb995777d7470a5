#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "kernels/attention/linear_rows.cuh"
#include "kernels/common/launch.cuh"
#include "kernels/common/ring.cuh"
#include "kernels/common/tma.cuh"
#include "kernels/common/tma.h"
#include "kernels/common/wgmma.cuh"

// What queries make of states, on compute capability 9.0a. It is bound by memory: a block of
// threads a multiprocessor goes through many blocks of queries, one warpgroup copies what comes
// next into a ring of slots, and two compute, 64 rows each. A slot's parts are copied anew as soon
// as each of them was used: queries are in registers before the first product, the state is not
// needed behind it, and rows that are added become the result where they lie.

namespace fovea::kernels {
namespace {

using namespace linear;

template <int kDim_, int kRows_, bool kProjects_>
struct OutShape {
  static constexpr int kDim = kDim_;    // channels
  static constexpr int kRows = kRows_;  // of a block of queries, 64 or 128
  static constexpr bool kProjects = kProjects_;
  static constexpr int kGroups = 2;          // computing warpgroups
  static constexpr int kShare = kRows / 64;  // of them work on the same block of queries
  static constexpr int kThreads = 128 * kGroups + 128;
  static constexpr int kMatrixBytes = 2 * kDim * kDim;
  static constexpr int kSlotBytes = 4 * kRows * kDim + kMatrixBytes + 4 * kDim;
  static constexpr int kRoom = 226 * 1024 - (kProjects ? kMatrixBytes : 0);
  static constexpr int kSlots = std::min(4, kRoom / kSlotBytes);
  // Barriers that say what is there. Each of them has the same waiting warpgroups every time, as
  // who has not seen one phase cannot know of the next one.
  static constexpr int kFull = kSlots * (kGroups / kShare);
};

struct OutMaps {
  CUtensorMap states, weight;
};

/// Matrices as the matrix units want them, panels of 64 columns; rows as `Matrix` has them.
template <typename Shape>
struct OutMemory {
  char state[Shape::kSlots][Shape::kMatrixBytes];
  char weight[Shape::kProjects ? Shape::kMatrixBytes : 128];
  char q[Shape::kSlots][2 * Shape::kRows * Shape::kDim];
  char added[Shape::kSlots][2 * Shape::kRows * Shape::kDim];  // then the result
  float total[Shape::kSlots][Shape::kDim];
  float bias[Shape::kDim];
  // Queries and totals, a state, what is added: whether it is there, and whether a slot is free.
  uint64_t q_full[Shape::kFull], state_full[Shape::kFull], added_full[Shape::kFull];
  uint64_t q_empty[Shape::kSlots], state_empty[Shape::kSlots], added_empty[Shape::kSlots];
  uint64_t weight_full;
};

/// The warpgroup that copies: rows by its threads, as they may be anywhere, matrices by the copy
/// engine.
template <typename Shape>
struct OutLoader {
  const LinearOutArgs& args;
  const OutMaps& maps;
  OutMemory<Shape>& memory;
  int thread;

  static constexpr int kUnits = Shape::kDim / 8;  // threads that copy a row
  static constexpr int kStep = 128 / kUnits;      // rows that are copied at a time
  static constexpr int kPasses = Shape::kRows / kStep, kAtOnce = std::min(8, kPasses);

  __device__ void copy(char* to, const HeadRows& from, const Work& work, const Block& block) const {
    const int unit = thread % kUnits;
    const auto* const own = rows_of<const __nv_bfloat16>(from, work) + 8 * unit;
    const uint32_t at = shared_address(to);
#pragma unroll 1
    for (int part = 0; part < kPasses; part += kAtOnce) {
      const int first = thread / kUnits + part * kStep;
      int rows[kAtOnce];
      block.find_rows(first, kStep, rows);
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        mma::copy16(at + Matrix<Shape::kDim>::place(first + i * kStep, unit),
                    own + int64_t{max(rows[i], 0)} * from.row_stride, rows[i] >= 0);
      }
    }
  }

  __device__ void load_state(const RingPlace<Shape::kSlots>& place, int matrix,
                             uint64_t* full) const {
    ptx::wait(&memory.state_empty[place.slot], place.parity ^ 1);
    ptx::arrive_expect(full, Shape::kMatrixBytes);
    tma::load(memory.state[place.slot], maps.states, {0, 0, 0, matrix, 0}, full,
              tma::evict_first());
  }

  __device__ void load_all(unsigned total) const {
    if (Shape::kProjects && thread == 0) {
      ptx::arrive_expect(&memory.weight_full, Shape::kMatrixBytes);
      tma::load(memory.weight, maps.weight, {0, 0, 0, 0, 0}, &memory.weight_full,
                tma::evict_last());
    }
    RingPlace<Shape::kSlots> place;
    RingPlace<Shape::kFull> full;
#pragma unroll 1
    for (unsigned i = blockIdx.x; i < total; i += gridDim.x, place.next(), full.next()) {
      const auto [slot, parity] = place;
      const Work work(i, args.heads, args.queries);
      const Block block(args.queries, work);
      ptx::wait(&memory.q_empty[slot], parity ^ 1);
      copy(memory.q[slot], args.q, work, block);
      if (thread < Shape::kDim / 4) {
        mma::copy16(shared_address(memory.total[slot] + 4 * thread),
                    args.totals + int64_t{work.place} * Shape::kDim + 4 * thread, true);
      }
      mma::arrive_with_copies(&memory.q_full[full.slot]);
      if (thread == 0) load_state(place, work.place, &memory.state_full[full.slot]);
      __syncwarp();
      ptx::wait(&memory.added_empty[slot], parity ^ 1);
      if (args.added.data) copy(memory.added[slot], args.added, work, block);
      mma::arrive_with_copies(&memory.added_full[full.slot]);
    }
    mma::commit_copies();
    mma::wait_copies<0>();  // no thread ends before its copies
  }
};

/// A warpgroup that computes: all blocks of queries where both share them, else every other one.
template <typename Shape>
struct OutComputer {
  static constexpr int kDim = Shape::kDim, kCount = kDim / 2;
  using Rows = Matrix<kDim>;

  const LinearOutArgs& args;
  OutMemory<Shape>& memory;
  wgmma::Matrix state = wgmma::n_major(shared_address(memory.state), kDim * 128);
  wgmma::Matrix weight = wgmma::k_major(shared_address(memory.weight));

  __device__ static int lane() { return static_cast<int>(threadIdx.x) % 32; }
  /// The first of a warp's 16 rows in its block of queries.
  __device__ static int first_row() {
    return static_cast<int>(threadIdx.x) / 32 * 16 % Shape::kRows;
  }

  /// All lanes are done with it.
  __device__ static void release(uint64_t* empty) {
    __syncwarp();
    if (lane() == 0) ptx::arrive(empty);
  }

  /// phi(q) state, as it comes from the matrix units. Meanwhile `work`.
  template <typename Meanwhile>
  __device__ void multiply_state(float (&c)[kCount], const Queries<kDim>& queries, int slot,
                                 Meanwhile work) const {
    const wgmma::Matrix own = state.further(slot * Shape::kMatrixBytes);
    wgmma::fence();
#pragma unroll
    for (int step = 0; step < kDim / 16; ++step) {
      wgmma::multiply<Type::bf16, true>(c, queries.a[step], own.further(step * 2048), step > 0);
    }
    wgmma::commit();
    work();
    wgmma::wait<0>();
    wgmma::pin(c);
    release(&memory.state_empty[slot]);
  }

  /// d += own weight^T
  __device__ void project(float (&d)[kCount], const uint32_t (&own)[kDim / 16][4]) const {
    ptx::wait(&memory.weight_full, 0);
    wgmma::pin(d);
    wgmma::fence();
#pragma unroll
    for (int step = 0; step < kDim / 16; ++step) {
      const int further = step / 4 * (kDim * 128) + step % 4 * wgmma::kStepBytes;
      wgmma::multiply<Type::bf16>(d, own[step], weight.further(further), 1);
    }
    wgmma::commit();
    wgmma::wait<0>();
    wgmma::pin(d);
  }

  /// f(i, x) for what is added to c[i]: the bias, and what lies in the slot.
  template <typename F>
  __device__ void for_each_added(uint32_t at, F f) const {
#pragma unroll
    for (int step = 0; step < kDim / 16; ++step) {
      uint32_t bits[4] = {};
      if (args.added.data) mma::load_matrices(Rows::behind(at, 2 * step), bits);
#pragma unroll
      for (int half = 0; half < 2; ++half) {  // 8 columns, two of them this lane's
        const auto bias =
            *reinterpret_cast<const float2*>(memory.bias + 16 * step + 8 * half + lane() % 4 * 2);
#pragma unroll
        for (int r = 2 * half; r < 2 * half + 2; ++r) {
          f(8 * step + 2 * r, bias.x + low_of(bits[r]));
          f(8 * step + 2 * r + 1, bias.y + high_of(bits[r]));
        }
      }
    }
  }

  /// Stores a warp's 16 rows, whole rows after one another, by way of the slot.
  ///
  /// at   as `for_each_added`
  /// row  that of lane % 16, or -1
  __device__ void store(const float (&c)[kCount], const char* staged, uint32_t at, const Work& work,
                        int row) const {
#pragma unroll
    for (int step = 0; step < kDim / 16; ++step) {
      uint32_t bits[4];
      fragment::to_operand<Type::bf16>(c, step, bits);
      ptx::store_matrices(Rows::behind(at, 2 * step), bits);
    }
    __syncwarp();
    constexpr int kUnits = kDim / 8;
    const int unit = lane() % kUnits;
    auto* const out = rows_of<__nv_bfloat16>(args.out, work) + 8 * unit;
#pragma unroll
    for (int i = 0; i < kUnits / 2; ++i) {
      const int own = i * (32 / kUnits) + lane() / kUnits;
      const int to = __shfl_sync(kAll, row, own);
      const uint4 bits = *reinterpret_cast<const uint4*>(staged + Rows::place(own, unit));
      if (to >= 0) __stcs(reinterpret_cast<uint4*>(out + to * args.out.row_stride), bits);
    }
  }

  __device__ void compute(unsigned number, int slot, RingPlace<Shape::kFull> full) const {
    constexpr int kRowBytes = 2 * kDim;
    const Work work(number, args.heads, args.queries);
    int row = 0;
    const auto meanwhile = [&] {
      row = Block(args.queries, work).row(first_row() + lane() % 16);
      ptx::wait(&memory.added_full[full.slot], full.parity);
    };
    char* const staged = memory.added[slot] + first_row() * kRowBytes;
    const Lane matrices;
    const uint32_t at = shared_address(staged) +
                        Rows::place(matrices.matrix % 2 * 8 + matrices.row, matrices.matrix / 2);
    ptx::wait(&memory.q_full[full.slot], full.parity);
    const Queries<kDim> queries(shared_address(memory.q[slot]), first_row(), memory.total[slot],
                                args);
    release(&memory.q_empty[slot]);
    ptx::wait(&memory.state_full[full.slot], full.parity);
    float c[kCount];
    if constexpr (Shape::kProjects) {
      float d[kCount];
      multiply_state(c, queries, slot, [&] {
        meanwhile();
        for_each_added(at, [&](int i, float x) { d[i] = x; });
      });
#pragma unroll
      for (int i = 0; i < kCount; ++i) c[i] *= queries.factor[i / 2 % 2];
      uint32_t own[kDim / 16][4];
#pragma unroll
      for (int step = 0; step < kDim / 16; ++step) {
        fragment::to_operand<Type::bf16>(c, step, own[step]);
      }
      project(d, own);
      store(d, staged, at, work, row);
    } else {
      multiply_state(c, queries, slot, meanwhile);
      for_each_added(at, [&](int i, float x) { c[i] = c[i] * queries.factor[i / 2 % 2] + x; });
      store(c, staged, at, work, row);
    }
    release(&memory.added_empty[slot]);
  }

  __device__ void compute_all(unsigned total, int group) const {
    constexpr int kStep = Shape::kGroups / Shape::kShare;  // blocks of queries
    RingPlace<Shape::kSlots> place;
    RingPlace<Shape::kFull> full;
    int ahead = group / Shape::kShare;  // that are not this warpgroup's
#pragma unroll 1
    for (unsigned i = blockIdx.x; i < total; i += gridDim.x, place.next(), full.next()) {
      if (ahead-- > 0) continue;
      ahead = kStep - 1;
      compute(i, place.slot, full);
    }
  }
};

/// Grid: a block of threads a multiprocessor, at most one for each block of queries.
template <int kDim, int kRows, bool kProjects>
__global__ void __launch_bounds__(384, 1)
    linear_out_sm90_kernel(const __grid_constant__ OutMaps maps,
                           const __grid_constant__ LinearOutArgs args, unsigned total) {
#ifdef FOVEA_SM90A
  constexpr int kLoadRegisters = 72, kComputeRegisters = 216;
  using Shape = OutShape<kDim, kRows, kProjects>;
  auto& memory = *reinterpret_cast<OutMemory<Shape>*>(ptx::dynamic_memory());
  const int thread = static_cast<int>(threadIdx.x);
  if (thread == 0) {
    for (int i = 0; i < Shape::kFull; ++i) {
      ptx::barrier_init(&memory.q_full[i], 128);
      ptx::barrier_init(&memory.state_full[i], 1);
      ptx::barrier_init(&memory.added_full[i], 128);
    }
    for (int i = 0; i < Shape::kSlots; ++i) {
      for (uint64_t* const empty : {memory.q_empty, memory.state_empty, memory.added_empty}) {
        ptx::barrier_init(empty + i, 4 * Shape::kShare);
      }
    }
    ptx::barrier_init(&memory.weight_full, 1);
    ptx::fence_barrier_init();
  }
  for (int c = thread; c < kDim; c += Shape::kThreads) memory.bias[c] = bias_of(args, c);
  __syncthreads();
  // As one lane has it, so that the compiler knows that all have the same.
  const int warpgroup = __shfl_sync(kAll, thread / 128, 0);
  if (warpgroup == Shape::kGroups) {
    ptx::give_registers<kLoadRegisters>();
    OutLoader<Shape>{args, maps, memory, thread % 128}.load_all(total);
  } else {
    ptx::take_registers<kComputeRegisters>();
    OutComputer<Shape>{args, memory}.compute_all(total, warpgroup);
  }
#endif
}

/// Square matrices one after the other, in panels of 64 columns.
Status map_of(const void* data, int64_t dim, int64_t count, CUtensorMap* out) {
  const auto rows = static_cast<uint64_t>(dim);
  TensorMapSpec spec;
  spec.data = data;
  spec.size = {64, rows, rows / 64, static_cast<uint64_t>(count), 1};
  spec.stride = {2 * rows, 128, 2 * rows * rows, 16};
  spec.box = {64, static_cast<uint32_t>(rows), static_cast<uint32_t>(rows / 64), 1, 1};
  return make_tensor_map(spec, out);
}

template <int kDim, int kRows, bool kProjects>
Status launch(const OutMaps& maps, const LinearOutArgs& args, CudaTarget target) {
  using Shape = OutShape<kDim, kRows, kProjects>;
  static_assert(sizeof(OutMemory<Shape>) <= 227 * 1024 && Shape::kSlots >= 2);
  const int64_t total = args.batch * args.heads * args.queries.blocks;
  Grid grid{1, Shape::kThreads, sizeof(OutMemory<Shape>), target.stream};
  const Status status = resident_blocks(target.device, 1, total, &grid.blocks.x);
  if (!status.ok()) return status;
  return launch_kernel(&linear_out_sm90_kernel<kDim, kRows, kProjects>, grid, maps, args,
                       static_cast<unsigned>(total));
}

template <int kDim, int kRows>
Status launch(const OutMaps& maps, const LinearOutArgs& args, CudaTarget target) {
  return args.weight ? launch<kDim, kRows, true>(maps, args, target)
                     : launch<kDim, kRows, false>(maps, args, target);
}

}  // namespace

Status linear_out_sm90(const LinearOutArgs& args, CudaTarget target) {
  const int64_t total = args.batch * args.heads * args.queries.blocks;
  if (total == 0 || args.queries.len == 0) return {};
  if ((args.dim != 64 && args.dim != 128) || args.queries.most_rows > kMostLinearRows ||
      total > std::numeric_limits<int32_t>::max()) {
    return {StatusCode::unsupported, "takes 64 or 128 channels, up to 2^31 blocks of 128 rows"};
  }
  OutMaps maps{};
  Status status = map_of(args.states, args.dim, total, &maps.states);
  if (status.ok() && args.weight) status = map_of(args.weight, args.dim, 1, &maps.weight);
  if (!status.ok()) return status;
  if (args.queries.most_rows <= 64) {
    return args.dim == 64 ? launch<64, 64>(maps, args, target)
                          : launch<128, 64>(maps, args, target);
  }
  return args.dim == 64 ? launch<64, 128>(maps, args, target)
                        : launch<128, 128>(maps, args, target);
}

}  // namespace fovea::kernels
