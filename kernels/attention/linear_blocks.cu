#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "kernels/attention/linear_rows.cuh"
#include "kernels/common/capability.h"
#include "kernels/common/launch.cuh"

// Both kernels are bound by memory. A multiprocessor has two blocks of threads or more, each of
// which goes through many blocks of rows, and copies what it needs next while it computes.

namespace fovea::kernels {
namespace {

using namespace linear;

// ---- States of blocks of keys -------------------------------------------------------------------

constexpr int kStateThreads = 256, kStages = 3;
constexpr int kStep = 64;  // rows that are multiplied at a time

template <int kDim>
struct alignas(128) StatesMemory {
  struct Stage {
    char k[2 * kStep * kDim];  // then phi of it
    char v[2 * kStep * kDim];
  } stages[kStages];
};

/// Goes through the rows of this block of threads kStep at a time, and copies them. 8 lanes copy a
/// row, and make its features later.
template <int kDim>
class StatesCopier {
 public:
  __device__ StatesCopier(const LinearStatesArgs& args, unsigned total)
      : args_(args),
        total_(total),
        work_(blockIdx.x, args.heads, args.keys),
        block_(args.keys, work_) {}

  /// The next rows into a stage; past the last ones nothing.
  __device__ void copy(uint32_t k_at, uint32_t v_at) {
    there_ <<= kRows;
    if (next_ < total_) {
      if (first_ == 0) {
        work_ = Work(next_, args_.heads, args_.keys);
        block_ = Block(args_.keys, work_);
      }
      const auto* const k = rows_of<const __nv_bfloat16>(args_.k, work_);
      const auto* const v = rows_of<const __nv_bfloat16>(args_.v, work_);
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        const int own = threadIdx.x / 8 + i * (kStateThreads / 8);
        const int row = block_.row(first_ + own);
        const int64_t from = max(row, 0);
        there_ |= (row >= 0 ? 1u : 0u) << i;
#pragma unroll
        for (int unit = threadIdx.x % 8; unit < kDim / 8; unit += 8) {
          const int place = Matrix<kDim>::place(own, unit);
          mma::copy16(k_at + place, k + from * args_.k.row_stride + 8 * unit, row >= 0);
          mma::copy16(v_at + place, v + from * args_.v.row_stride + 8 * unit, row >= 0);
        }
      }
      first_ += kStep;
      if (first_ >= args_.keys.most_rows) first_ = 0, next_ += gridDim.x;
    }
    mma::commit_copies();
  }
  /// Whether row i of this thread was there, `before` calls of copy ago.
  __device__ bool was_there(int i, int before) const { return there_ >> (before * kRows + i) & 1; }

  static constexpr int kRows = kStep * 8 / kStateThreads;  // of a thread

 private:
  const LinearStatesArgs& args_;
  unsigned total_, next_ = blockIdx.x;
  int first_ = 0;       // row of the block that comes next
  uint32_t there_ = 0;  // kRows bits a call
  Work work_;
  Block block_;
};

/// What a thread copied of k becomes phi where it lies.
template <int kDim>
__device__ void make_features_of_keys(char* k, LinearFeature feature,
                                      const StatesCopier<kDim>& copier) {
  constexpr int kUnits = kDim / 64;  // of a thread
#pragma unroll 1
  for (int i = 0; i < StatesCopier<kDim>::kRows; ++i) {
    const int row = threadIdx.x / 8 + i * (kStateThreads / 8);
    float x[8 * kUnits];
    uint4 bits[kUnits];
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      bits[u] = *reinterpret_cast<const uint4*>(
          k + Matrix<kDim>::place(row, static_cast<int>(threadIdx.x) % 8 + 8 * u));
      const uint32_t words[4] = {bits[u].x, bits[u].y, bits[u].z, bits[u].w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        x[8 * u + 2 * j] = low_of(words[j]), x[8 * u + 2 * j + 1] = high_of(words[j]);
      }
    }
    make_features<8>(x, feature);
    const bool is_there = copier.was_there(i, kStages - 2);
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      uint32_t words[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const uint32_t own = fragment::pack<Type::bf16>(x[8 * u + 2 * j], x[8 * u + 2 * j + 1]);
        words[j] = is_there ? own : 0;
      }
      *reinterpret_cast<uint4*>(
          k + Matrix<kDim>::place(row, static_cast<int>(threadIdx.x) % 8 + 8 * u)) = {
          words[0], words[1], words[2], words[3]};
    }
  }
}

/// A warp's part of a state: a quarter of the channels of phi, half of those of v.
template <int kDim>
struct StatePart {
  static constexpr int kMTiles = kDim / 64, kTiles = kDim / 16;
  float c[kMTiles][4 * kTiles] = {};
  float total[4] = {};  // of the 16 channels of one tile, in each column

  __device__ static int m(int tile) { return (threadIdx.x / 32 % 4 * kMTiles + tile) * 16; }
  __device__ static int half() { return threadIdx.x / 128; }

  /// += phi^T v of kStep rows.
  __device__ void add(uint32_t phi_at, uint32_t v_at) {
    constexpr uint32_t kOnes = 0x3f803f80;  // in bf16
    const Lane lane;
    uint32_t a_at =
        phi_at + Matrix<kDim>::place(lane.matrix / 2 * 8 + lane.row, m(0) / 8 + lane.matrix % 2);
    uint32_t b_at = v_at + Matrix<kDim>::place(lane.matrix % 2 * 8 + lane.row,
                                               half() * kTiles + lane.matrix / 2);
#pragma unroll
    for (int row = 0; row < kStep; row += 16) {
      ptx::opaque(b_at);
      uint32_t a[kMTiles][4];
#pragma unroll
      for (int i = 0; i < kMTiles; ++i) {
        mma::load_transposed(Matrix<kDim>::behind(a_at, 2 * i) + row * 2 * kDim, a[i]);
        if (i == half()) mma::multiply<Type::bf16>(total, 0, a[i], kOnes, kOnes);
      }
#pragma unroll
      for (int t = 0; t < kTiles; t += 2) {
        uint32_t b[4];
        mma::load_transposed(Matrix<kDim>::behind(b_at, t) + row * 2 * kDim, b);
#pragma unroll
        for (int i = 0; i < kMTiles; ++i) {
          mma::multiply<Type::bf16>(c[i], 4 * t, a[i], b[0], b[1]);
          mma::multiply<Type::bf16>(c[i], 4 * t + 4, a[i], b[2], b[3]);
        }
      }
    }
  }

  /// Stores it, and begins with zeros again.
  __device__ void store(__nv_bfloat16* state, float* totals) {
    const int row = threadIdx.x % 32 / 4, column = half() * (kDim / 2) + threadIdx.x % 4 * 8;
#pragma unroll
    for (int i = 0; i < kMTiles; ++i) {
#pragma unroll
      for (int pair = 0; pair < kTiles / 2; ++pair) {  // four tiles, the upper or the lower rows
        const int first = pair / 2 * 16 + pair % 2 * 2;
        uint32_t words[4];
#pragma unroll
        for (int t = 0; t < 4; ++t) {
          words[t] = fragment::pack<Type::bf16>(c[i][first + 4 * t], c[i][first + 4 * t + 1]);
        }
        gather_columns(words);
        const int at = (m(i) + row + pair % 2 * 8) * kDim + column + pair / 2 * 32;
        *reinterpret_cast<uint4*>(state + at) = {words[0], words[1], words[2], words[3]};
      }
      if (i == half() && threadIdx.x % 4 == 0) {
        totals[m(i) + row] = total[0], totals[m(i) + row + 8] = total[2];
      }
    }
    *this = {};
  }
};

/// Makes states of blocks of keys, phi^T v. Grid: what runs at a time, at most a block of threads
/// for each.
template <int kDim>
__global__ void __launch_bounds__(kStateThreads, kDim == 128 ? 2 : 4)
    linear_states_kernel(LinearStatesArgs args, unsigned total) {
  auto& memory = *reinterpret_cast<StatesMemory<kDim>*>(ptx::dynamic_memory());
  StatesCopier<kDim> copier(args, total);
  int stage = 0;
  for (; stage < kStages - 1; ++stage) {
    copier.copy(shared_address(memory.stages[stage].k), shared_address(memory.stages[stage].v));
  }
  StatePart<kDim> part;
  for (unsigned i = blockIdx.x; i < total; i += gridDim.x) {
    for (int first = 0; first == 0 || first < args.keys.most_rows; first += kStep) {
      const int next = stage;  // the one that was multiplied last
      stage = stage == kStages - 1 ? 0 : stage + 1;
      mma::wait_copies<kStages - 2>();
      make_features_of_keys(memory.stages[stage].k, args.feature, copier);
      __syncthreads();
      copier.copy(shared_address(memory.stages[next].k), shared_address(memory.stages[next].v));
      part.add(shared_address(memory.stages[stage].k), shared_address(memory.stages[stage].v));
    }
    const Work work(i, args.heads, args.keys);
    part.store(static_cast<__nv_bfloat16*>(args.states) + int64_t{work.place} * kDim * kDim,
               args.totals + int64_t{work.place} * kDim);
  }
}

// ---- What queries make of states ----------------------------------------------------------------

template <int kDim, int kRows>
struct alignas(128) OutMemory {
  char q[2 * kRows * kDim];
  char state[2 * kDim * kDim];
  float total[kDim], bias[kDim];
  char weight[2 * kDim * kDim];  // the last one: not there without one
};

template <int kDim, int kRows>
__device__ void copy_matrix(uint32_t to, const void* from, int thread) {
  constexpr int kUnits = kDim / 8;
#pragma unroll
  for (int i = thread; i < kDim * kUnits; i += 2 * kRows) {
    mma::copy16(to + Matrix<kDim>::place(i / kUnits, i % kUnits),
                static_cast<const __nv_bfloat16*>(from) + i * 8, true);
  }
}

/// Copies the queries of a block, each warp its 16, and the state that they take.
template <int kDim, int kRows>
__device__ void copy_queries(OutMemory<kDim, kRows>& memory, const LinearOutArgs& args,
                             unsigned number) {
  int thread = threadIdx.x;
  ptx::opaque(thread);  // or addresses would be kept in registers, of which there are few
  const Work work(number, args.heads, args.queries);
  const Block block(args.queries, work);
  const int64_t place = work.place;
  copy_matrix<kDim, kRows>(shared_address(memory.state),
                           static_cast<const __nv_bfloat16*>(args.states) + place * kDim * kDim,
                           thread);
  if (thread < kDim / 4) {
    mma::copy16(shared_address(memory.total) + 16 * thread, args.totals + place * kDim + 4 * thread,
                true);
  }
  const auto* const q = rows_of<const __nv_bfloat16>(args.q, work);
#pragma unroll 2
  for (int i = 0; i < 4; ++i) {
    const int own = thread / 32 * 16 + i * 4 + thread % 32 / 8;
    const int row = block.row(own);
    const int64_t from = max(row, 0);
#pragma unroll
    for (int unit = thread % 8; unit < kDim / 8; unit += 8) {
      mma::copy16(shared_address(memory.q) + Matrix<kDim>::place(own, unit),
                  q + from * args.q.row_stride + 8 * unit, row >= 0);
    }
  }
  mma::commit_copies();
}

/// Where results of two rows of a lane go: 8 columns of each 32 are this lane's.
struct OutRows {
  __nv_bfloat16* data;
  int64_t stride;
  int rows[2];

  __device__ OutRows(const LinearOutArgs& args, unsigned number) : stride(args.out.row_stride) {
    const Work work(number, args.heads, args.queries);
    const Block block(args.queries, work);
    const int first = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4;
    data = rows_of<__nv_bfloat16>(args.out, work) + threadIdx.x % 4 * 8;
    rows[0] = block.row(first), rows[1] = block.row(first + 8);
  }
};

/// What is added to them.
template <int kDim>
struct Added {
  uint4 bits[kDim / 32][2];

  __device__ Added(const LinearOutArgs& args, unsigned number, const int (&rows)[2]) {
    const Work work(number, args.heads, args.queries);
    const auto* const from = rows_of<const __nv_bfloat16>(args.added, work) + threadIdx.x % 4 * 8;
#pragma unroll
    for (int i = 0; i < kDim / 32; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        bits[i][half] = {};
        if (args.added.data == nullptr || rows[half] < 0) continue;
        bits[i][half] =
            *reinterpret_cast<const uint4*>(from + rows[half] * args.added.row_stride + 32 * i);
      }
    }
  }
};

/// Stores 32 columns from `column` on, c from `at` on + bias + added.
template <int kCount>
__device__ void store_columns(const OutRows& out, int column, const float* bias,
                              const uint4 (&added)[2], const float (&c)[kCount], int at) {
  const auto* const own = reinterpret_cast<const float2*>(bias + column + threadIdx.x % 4 * 8);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float low[4], high[4];
#pragma unroll
    for (int t = 0; t < 4; ++t) {
      low[t] = c[at + 4 * t + 2 * half], high[t] = c[at + 4 * t + 2 * half + 1];
    }
    gather_columns(low);
    gather_columns(high);
    if (out.rows[half] < 0) continue;
    const uint32_t more[4] = {added[half].x, added[half].y, added[half].z, added[half].w};
    uint32_t words[4];
#pragma unroll
    for (int t = 0; t < 4; ++t) {
      words[t] = fragment::pack<Type::bf16>(low[t] + own[t].x + low_of(more[t]),
                                            high[t] + own[t].y + high_of(more[t]));
    }
    auto* const to = reinterpret_cast<uint4*>(out.data + out.rows[half] * out.stride);
    __stcs(to + column / 8, uint4{words[0], words[1], words[2], words[3]});
  }
}

/// phi of a warp's 16 rows times kTiles tiles of 8 columns of a state in shared memory, from tile
/// `first` on, a multiple of 8.
template <int kDim, int kTiles>
__device__ void multiply_state(float (&c)[4 * kTiles], const Queries<kDim>& queries, uint32_t state,
                               int first) {
  const Lane lane;
  uint32_t at = state + Matrix<kDim>::place(lane.matrix % 2 * 8 + lane.row, lane.matrix / 2);
#pragma unroll
  for (int step = 0; step < kDim / 16; ++step) {
    ptx::opaque(at);
#pragma unroll
    for (int t = 0; t < kTiles; t += 2) {
      uint32_t b[4];
      mma::load_transposed(Matrix<kDim>::behind(at, first + t) + step * 32 * kDim, b);
      mma::multiply<Type::bf16>(c, 4 * t, queries.a[step], b[0], b[1]);
      mma::multiply<Type::bf16>(c, 4 * t + 4, queries.a[step], b[2], b[3]);
    }
  }
#pragma unroll
  for (int j = 0; j < 4 * kTiles; ++j) c[j] *= queries.factor[j / 2 % 2];
}

/// Stores a warp's 16 rows times weight^T, 32 columns after the other.
template <int kDim>
__device__ void store_projected(const OutRows& out, const float* bias, uint32_t weight,
                                const Added<kDim>& added, const uint32_t (&a)[kDim / 16][4]) {
  const Lane lane;
  uint32_t at = weight + Matrix<kDim>::place(lane.matrix / 2 * 8 + lane.row, lane.matrix % 2);
#pragma unroll
  for (int part = 0; part < kDim / 32; ++part) {
    float own[16] = {};
    ptx::opaque(at);
#pragma unroll
    for (int step = 0; step < kDim / 16; ++step) {
#pragma unroll
      for (int t = 0; t < 4; t += 2) {
        uint32_t b[4];
        mma::load_matrices(Matrix<kDim>::behind(at, 2 * step) + (32 * part + 8 * t) * 2 * kDim, b);
        mma::multiply<Type::bf16>(own, 4 * t, a[step], b[0], b[1]);
        mma::multiply<Type::bf16>(own, 4 * t + 4, a[step], b[2], b[3]);
      }
    }
    store_columns(out, 32 * part, bias, added.bits[part], own, 0);
  }
}

/// How many blocks of threads a multiprocessor has at a time: what memory and registers allow.
constexpr int out_blocks(int dim, int rows, bool projects) {
  if (dim == 64) return rows == 128 ? 2 : 5;
  return projects || rows == 128 ? 2 : 4;
}

/// Computes blocks of queries, a warp 16 rows of each. What comes next is copied as soon as the
/// product with the state is done. Grid: what runs at a time, at most a block of threads for each.
template <int kDim, int kRows, bool kProjects>
__global__ void __launch_bounds__(2 * kRows, out_blocks(kDim, kRows, kProjects))
    linear_out_kernel(LinearOutArgs args, unsigned total) {
  auto& memory = *reinterpret_cast<OutMemory<kDim, kRows>*>(ptx::dynamic_memory());
  if constexpr (kProjects) {
    copy_matrix<kDim, kRows>(shared_address(memory.weight), args.weight, threadIdx.x);
  }
  copy_queries<kDim, kRows>(memory, args, blockIdx.x);
  for (int c = threadIdx.x; c < kDim; c += 2 * kRows) {
    memory.bias[c] = bias_of(args, c);
  }
  for (unsigned i = blockIdx.x; i < total; i += gridDim.x) {
    mma::wait_copies<0>();
    __syncthreads();
    const unsigned next = i + gridDim.x;
    if constexpr (kProjects) {
      constexpr int kTiles = 8;  // that are multiplied at a time: there are registers for that
      uint32_t a[kDim / 16][4];
      {
        const Queries<kDim> queries(shared_address(memory.q), threadIdx.x / 32 * 16, memory.total,
                                    args);
#pragma unroll
        for (int first = 0; first < kDim / 8; first += kTiles) {
          float c[4 * kTiles] = {};
          multiply_state<kDim, kTiles>(c, queries, shared_address(memory.state), first);
#pragma unroll
          for (int step = 0; step < kTiles / 2; ++step) {
            fragment::to_operand<Type::bf16>(c, step, a[first / 2 + step]);
          }
        }
      }
      const OutRows out(args, i);
      const Added<kDim> added(args, i, out.rows);
      __syncthreads();
      if (next < total) copy_queries<kDim, kRows>(memory, args, next);
      store_projected<kDim>(out, memory.bias, shared_address(memory.weight), added, a);
    } else {  // more registers are taken, so what is added is read later
      float c[kDim / 2] = {};
      {
        const Queries<kDim> queries(shared_address(memory.q), threadIdx.x / 32 * 16, memory.total,
                                    args);
        multiply_state<kDim, kDim / 8>(c, queries, shared_address(memory.state), 0);
      }
      __syncthreads();
      if (next < total) copy_queries<kDim, kRows>(memory, args, next);
      const OutRows out(args, i);
      const Added<kDim> added(args, i, out.rows);
#pragma unroll
      for (int part = 0; part < kDim / 32; ++part) {
        store_columns(out, 32 * part, memory.bias, added.bits[part], c, 16 * part);
      }
    }
  }
}

// ---- Launchers ----------------------------------------------------------------------------------

/// per_processor  blocks of threads that a multiprocessor has at a time
template <typename Args>
Status launch(void (*kernel)(Args, unsigned), const Args& args, const LinearBlocks& blocks,
              Grid grid, int per_processor, int device) {
  const int64_t total = args.batch * args.heads * blocks.blocks;
  const Status status = resident_blocks(device, per_processor, total, &grid.blocks.x);
  if (!status.ok()) return status;
  return launch_kernel(kernel, grid, args, static_cast<unsigned>(total));
}

template <int kDim>
Status launch_states(const LinearStatesArgs& args, CudaTarget target) {
  const Grid grid{1, kStateThreads, sizeof(StatesMemory<kDim>), target.stream};
  return launch(&linear_states_kernel<kDim>, args, args.keys, grid, kDim == 128 ? 2 : 4,
                target.device);
}

template <int kDim, int kRows>
Status launch_out(const LinearOutArgs& args, CudaTarget target) {
  using Memory = OutMemory<kDim, kRows>;
  if (args.weight) {
    const Grid grid{1, 2 * kRows, sizeof(Memory), target.stream};
    return launch(&linear_out_kernel<kDim, kRows, true>, args, args.queries, grid,
                  out_blocks(kDim, kRows, true), target.device);
  }
  const Grid grid{1, 2 * kRows, offsetof(Memory, weight), target.stream};
  return launch(&linear_out_kernel<kDim, kRows, false>, args, args.queries, grid,
                out_blocks(kDim, kRows, false), target.device);
}

Status check(int64_t dim, int64_t heads, const LinearBlocks& blocks) {
  if (dim != 64 && dim != 128) return {StatusCode::unsupported, "takes 64 or 128 channels"};
  if (blocks.most_rows > kMostLinearRows) {
    return {StatusCode::unsupported, "takes blocks of up to 128 rows"};
  }
  if (heads * blocks.blocks > std::numeric_limits<int32_t>::max()) {
    return {StatusCode::unsupported, "more than 2^31 blocks of all heads"};
  }
  return {};
}

}  // namespace

Status linear_states_cuda(const LinearStatesArgs& args, CudaTarget target) {
  const int64_t heads = args.batch * args.heads;
  if (heads == 0 || args.keys.blocks == 0) return {};
  if (const Status status = check(args.dim, heads, args.keys); !status.ok()) return status;
  return args.dim == 64 ? launch_states<64>(args, target) : launch_states<128>(args, target);
}

Status linear_out_sm80(const LinearOutArgs& args, CudaTarget target) {
  const int64_t heads = args.batch * args.heads;
  if (heads == 0 || args.queries.blocks == 0) return {};
  if (const Status status = check(args.dim, heads, args.queries); !status.ok()) return status;
  if (args.queries.most_rows <= 64) {
    return args.dim == 64 ? launch_out<64, 64>(args, target) : launch_out<128, 64>(args, target);
  }
  return args.dim == 64 ? launch_out<64, 128>(args, target) : launch_out<128, 128>(args, target);
}

Status linear_out_cuda(const LinearOutArgs& args, CudaTarget target) {
  if (compute_capability(target.device) == 90) {
    const Status status = linear_out_sm90(args, target);
    if (status.code != StatusCode::unsupported) return status;
  }
  return linear_out_sm80(args, target);
}

}  // namespace fovea::kernels
