#include <cstdint>
#include <limits>

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include "kernels/attention/linear_blocks.h"
#include "kernels/common/fragment.cuh"
#include "kernels/common/mma.cuh"

namespace fovea::kernels {
namespace {

using mma::Type;

constexpr int kChannels = 8;  // of a thread: 16 bytes
constexpr unsigned kAll = 0xffffffff;
constexpr float kLog2e = 1.4426950408889634f;

/// A matrix in shared memory whose rows have kDim numbers of bf16.
template <int kDim>
using Matrix = mma::MixedRows<2 * kDim>;

__device__ uint32_t shared_address(const void* at) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(at));
}

/// Sum or maximum over the kLanes neighbours that hold a row.
template <int kLanes, typename F>
__device__ float over_lanes(float x, F f) {
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2) x = f(x, __shfl_xor_sync(kAll, x, step));
  return x;
}

/// phi of eight channels of a row, rounded to bf16; all lanes of a warp take part.
template <int kLanes>
__device__ void make_features(float (&x)[kChannels], LinearFeature feature) {
  if (feature == LinearFeature::softmax) {
    float top = x[0];
#pragma unroll
    for (int c = 1; c < kChannels; ++c) top = fmaxf(top, x[c]);
    top = over_lanes<kLanes>(top, [](float a, float b) { return fmaxf(a, b); });
    float sum = 0;
#pragma unroll
    for (int c = 0; c < kChannels; ++c) sum += x[c] = exp2f((x[c] - top) * kLog2e);
    sum = over_lanes<kLanes>(sum, [](float a, float b) { return a + b; });
#pragma unroll
    for (int c = 0; c < kChannels; ++c) x[c] = __fdividef(x[c], sum);
  } else {
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      const float low = feature == LinearFeature::relu ? x[c] * 0 : exp2f(x[c] * kLog2e);
      const float high = feature == LinearFeature::relu ? x[c] : x[c] + 1;
      x[c] = x[c] > 0 ? high : low;
    }
  }
#pragma unroll
  for (int c = 0; c < kChannels; ++c) x[c] = __bfloat162float(__float2bfloat16_rn(x[c]));
}

__device__ void unpack(uint4 bits, float (&x)[kChannels]) {
  const uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    x[2 * i] = __uint_as_float(words[i] << 16);
    x[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
  }
}

__device__ uint4 packed(const float (&x)[kChannels]) {
  return {fragment::pack<Type::bf16>(x[0], x[1]), fragment::pack<Type::bf16>(x[2], x[3]),
          fragment::pack<Type::bf16>(x[4], x[5]), fragment::pack<Type::bf16>(x[6], x[7])};
}

/// The rows of a block of one head.
struct Block {
  int begin = 0, size = 0;
  int64_t len = 0;
  const int32_t* order = nullptr;

  __device__ Block(const LinearBlocks& blocks, int64_t item, int64_t head, int number)
      : begin(max(blocks.offsets[number], 0)), len(blocks.len), order(blocks.order.rows) {
    const auto last = static_cast<int>(min(static_cast<int64_t>(blocks.offsets[number + 1]), len));
    size = max(min(last - begin, blocks.most_rows), 0);
    if (order) order += item * blocks.order.batch_stride + head * blocks.order.head_stride;
  }
  /// -1 where there is none.
  __device__ int64_t row(int number) const {
    if (number >= size) return -1;
    const int64_t row = order ? order[begin + number] : begin + number;
    return row < len ? row : -1;
  }
};

template <typename Rows>
__device__ int64_t offset_of(const Rows& rows, int64_t item, int64_t head) {
  return item * rows.batch_stride + head * rows.head_stride;
}

/// Which 8 x 8 matrix of four, and which row of it, a lane gives the address of.
struct Lane {
  int matrix, row;
  __device__ Lane() : matrix(threadIdx.x % 32 / 8), row(threadIdx.x % 8) {}
};

/// c[.., 4 t + i] += A · B for 16 rows and the kTiles tiles of 8 columns from column `first` on, of
/// 16 rows of B from `k` on. B lies in shared memory, its rows one after the other.
template <int kDim, int kTiles>
__device__ void multiply_rows(float (&c)[4 * kTiles], const uint32_t (&a)[4], uint32_t b, int k,
                              int first) {
  const Lane lane;
#pragma unroll
  for (int t = 0; t < kTiles; t += 2) {
    const int unit = first / 8 + t + lane.matrix / 2;
    uint32_t part[4];
    mma::load_transposed(b + Matrix<kDim>::place(k + lane.matrix % 2 * 8 + lane.row, unit), part);
    mma::multiply<Type::bf16>(c, 4 * t, a, part[0], part[1]);
    mma::multiply<Type::bf16>(c, 4 * t + 4, a, part[2], part[3]);
  }
}

// ---- States of blocks of keys -------------------------------------------------------------------

constexpr int kStateThreads = 256;

template <int kDim, int kRows>
struct alignas(128) StatesMemory {
  char phi[2 * kRows * kDim];
  char v[2 * kRows * kDim];
};

/// A block makes the state of a block of keys: phi^T v, a warp 16 channels of phi. Grid: (blocks of
/// keys, batch * heads).
template <int kDim, int kRows>
__global__ void __launch_bounds__(kStateThreads, kDim == 128 ? 2 : 4)
    linear_states_kernel(LinearStatesArgs args) {
  extern __shared__ __align__(128) char raw[];
  using Memory = StatesMemory<kDim, kRows>;
  auto& memory = *reinterpret_cast<Memory*>(raw);
  constexpr int kLanes = kDim / kChannels, kGroups = kStateThreads / kLanes;
  constexpr int kMTiles = kDim / 16;
  constexpr int kTiles = kDim / 8 / (kStateThreads / 32 / kMTiles);  // of columns, of a warp
  const int64_t head = blockIdx.y % args.heads, item = blockIdx.y / args.heads;
  const Block block(args.keys, item, head, blockIdx.x);
  const auto* k = static_cast<const __nv_bfloat16*>(args.k.data) + offset_of(args.k, item, head);
  const auto* v = static_cast<const __nv_bfloat16*>(args.v.data) + offset_of(args.v, item, head);
  const int unit = threadIdx.x % kLanes;
  const uint32_t phi_at = shared_address(memory.phi), v_at = shared_address(memory.v);
#pragma unroll 4
  for (int r = threadIdx.x / kLanes; r < kRows; r += kGroups) {
    const int64_t row = block.row(r), from = max(row, int64_t{0});
    mma::copy16(v_at + Matrix<kDim>::place(r, unit), v + from * args.v.row_stride + 8 * unit,
                row >= 0);
    uint4 bits = {};
    if (row >= 0) bits = *reinterpret_cast<const uint4*>(k + row * args.k.row_stride + 8 * unit);
    float x[kChannels];
    unpack(bits, x);
    make_features<kLanes>(x, args.feature);
    if (row < 0) {
#pragma unroll
      for (int c = 0; c < kChannels; ++c) x[c] = 0;
    }
    *reinterpret_cast<uint4*>(memory.phi + Matrix<kDim>::place(r, unit)) = packed(x);
  }
  mma::commit_copies();
  mma::wait_copies<0>();
  __syncthreads();
  const int64_t place = static_cast<int64_t>(blockIdx.y) * args.keys.blocks + blockIdx.x;
  if (threadIdx.x < kDim) {
    const int channel = threadIdx.x;
    float sum = 0;
#pragma unroll 8
    for (int r = 0; r < kRows; ++r) {
      const char* at = memory.phi + Matrix<kDim>::place(r, channel / 8) + channel % 8 * 2;
      sum += __bfloat162float(*reinterpret_cast<const __nv_bfloat16*>(at));
    }
    args.totals[place * kDim + channel] = sum;
  }
  const int warp = threadIdx.x / 32, m = warp % kMTiles * 16;
  const int first = warp / kMTiles * kTiles * 8;
  const Lane lane;
  float c[4 * kTiles] = {};
  for (int row = 0; row < block.size; row += 16) {
    uint32_t a[4];
    mma::load_transposed(
        phi_at + Matrix<kDim>::place(row + lane.matrix / 2 * 8 + lane.row, m / 8 + lane.matrix % 2),
        a);
    multiply_rows<kDim, kTiles>(c, a, v_at, row, first);
  }
  auto* const to = static_cast<__nv_bfloat16*>(args.states) + place * kDim * kDim;
  const int own = threadIdx.x % 32;
#pragma unroll
  for (int t = 0; t < kTiles; ++t) {
    const int at = (m + own / 4) * kDim + first + 8 * t + own % 4 * 2;
    *reinterpret_cast<uint32_t*>(to + at) = fragment::pack<Type::bf16>(c[4 * t], c[4 * t + 1]);
    *reinterpret_cast<uint32_t*>(to + at + 8 * kDim) =
        fragment::pack<Type::bf16>(c[4 * t + 2], c[4 * t + 3]);
  }
}

// ---- What queries make of states ----------------------------------------------------------------

template <int kDim, int kRows>
struct alignas(128) OutMemory {
  char phi[2 * kRows * kDim];
  char state[2 * kDim * kDim];
  char weight[2 * kDim * kDim];  // the last one: not there without one
};

template <int kDim>
__device__ void copy_matrix(uint32_t to, const void* from, int threads) {
  constexpr int kUnits = kDim / 8;
  for (int i = threadIdx.x; i < kDim * kUnits; i += threads) {
    mma::copy16(to + Matrix<kDim>::place(i / kUnits, i % kUnits),
                static_cast<const __nv_bfloat16*>(from) + i * 8, true);
  }
}

/// Adds what is added to results of 16 rows from `first` on, and stores them: columns from `column`
/// on, 8 of each tile.
template <int kTiles>
__device__ void store_rows(const LinearOutArgs& args, const Block& block, int first, int column,
                           const float (&c)[4 * kTiles]) {
  const int64_t head = blockIdx.y % args.heads, item = blockIdx.y / args.heads;
  const int own = threadIdx.x % 32;
  const auto* added = static_cast<const __nv_bfloat16*>(args.added.data);
  if (added) added += offset_of(args.added, item, head);
  auto* out = static_cast<__nv_bfloat16*>(args.out.data) + offset_of(args.out, item, head);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t row = block.row(first + own / 4 + 8 * half);
    if (row < 0) continue;
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      const int at = column + 8 * t + own % 4 * 2;
      float low = c[4 * t + 2 * half], high = c[4 * t + 2 * half + 1];
      if (args.bias) low += args.bias[at], high += args.bias[at + 1];
      if (added) {
        const auto bits =
            *reinterpret_cast<const uint32_t*>(added + row * args.added.row_stride + at);
        low += __uint_as_float(bits << 16), high += __uint_as_float(bits & 0xffff0000u);
      }
      *reinterpret_cast<uint32_t*>(out + row * args.out.row_stride + at) =
          fragment::pack<Type::bf16>(low, high);
    }
  }
}

/// Results of 16 rows from `first` on times weight^T, a few columns after the other: there are
/// registers for that.
template <int kDim>
__device__ void project_rows(const LinearOutArgs& args, const Block& block, int first,
                             uint32_t weight, const float (&c)[kDim / 2]) {
  constexpr int kTiles = 4;  // of a part of the columns
  const Lane lane;
  uint32_t a[kDim / 16][4];
#pragma unroll
  for (int step = 0; step < kDim / 16; ++step) fragment::to_operand<Type::bf16>(c, step, a[step]);
#pragma unroll
  for (int column = 0; column < kDim; column += 8 * kTiles) {
    float out[4 * kTiles] = {};
#pragma unroll
    for (int step = 0; step < kDim / 16; ++step) {
#pragma unroll
      for (int t = 0; t < kTiles; t += 2) {
        const int row = column + 8 * t + lane.matrix / 2 * 8 + lane.row;
        uint32_t b[4];
        mma::load_matrices(weight + Matrix<kDim>::place(row, 2 * step + lane.matrix % 2), b);
        mma::multiply<Type::bf16>(out, 4 * t, a[step], b[0], b[1]);
        mma::multiply<Type::bf16>(out, 4 * t + 4, a[step], b[2], b[3]);
      }
    }
    store_rows<kTiles>(args, block, first, column, out);
  }
}

/// A block computes a block of queries, a warp 16 of its rows. Grid: (blocks of queries, batch *
/// heads).
template <int kDim, int kRows, bool kProjects>
__global__ void __launch_bounds__(2 * kRows, kProjects ? 2 : 256 / kRows)
    linear_out_kernel(LinearOutArgs args) {
  extern __shared__ __align__(128) char raw[];
  auto& memory = *reinterpret_cast<OutMemory<kDim, kRows>*>(raw);
  constexpr int kThreads = 2 * kRows, kLanes = kDim / kChannels, kGroups = kThreads / kLanes;
  constexpr int kTiles = kDim / 8;
  __shared__ float factor[kRows];
  const int64_t head = blockIdx.y % args.heads, item = blockIdx.y / args.heads;
  const Block block(args.queries, item, head, blockIdx.x);
  const int64_t place = static_cast<int64_t>(blockIdx.y) * args.queries.blocks + blockIdx.x;
  const uint32_t phi_at = shared_address(memory.phi), state_at = shared_address(memory.state);
  copy_matrix<kDim>(state_at, static_cast<const __nv_bfloat16*>(args.states) + place * kDim * kDim,
                    kThreads);
  if constexpr (kProjects) {
    copy_matrix<kDim>(shared_address(memory.weight), args.weight, kThreads);
  }
  mma::commit_copies();
  const auto* q = static_cast<const __nv_bfloat16*>(args.q.data) + offset_of(args.q, item, head);
  const int unit = threadIdx.x % kLanes;
  float total[kChannels];
#pragma unroll
  for (int c = 0; c < kChannels; ++c) total[c] = args.totals[place * kDim + 8 * unit + c];
#pragma unroll 4
  for (int r = threadIdx.x / kLanes; r < kRows; r += kGroups) {
    const int64_t row = block.row(r);
    uint4 bits = {};
    if (row >= 0) bits = *reinterpret_cast<const uint4*>(q + row * args.q.row_stride + 8 * unit);
    float x[kChannels], sum = 0;
    unpack(bits, x);
    make_features<kLanes>(x, args.feature);
#pragma unroll
    for (int c = 0; c < kChannels; ++c) sum += x[c] * total[c];
    sum = over_lanes<kLanes>(sum, [](float a, float b) { return a + b; });
    if (unit == 0) factor[r] = sum == 0 ? 0 : __fdividef(1, sum + args.epsilon);
    *reinterpret_cast<uint4*>(memory.phi + Matrix<kDim>::place(r, unit)) = packed(x);
  }
  mma::wait_copies<0>();
  __syncthreads();
  const int first = threadIdx.x / 32 * 16, own = threadIdx.x % 32;  // row of the warp
  if (first >= block.size) return;
  const Lane lane;
  float c[4 * kTiles] = {};
#pragma unroll
  for (int k = 0; k < kDim; k += 16) {
    uint32_t a[4];
    mma::load_matrices(phi_at + Matrix<kDim>::place(first + lane.matrix % 2 * 8 + lane.row,
                                                    k / 8 + lane.matrix / 2),
                       a);
    multiply_rows<kDim, kTiles>(c, a, state_at, k, 0);
  }
  const float factors[2] = {factor[first + own / 4], factor[first + own / 4 + 8]};
#pragma unroll
  for (int i = 0; i < 4 * kTiles; ++i) c[i] *= factors[i / 2 % 2];
  if constexpr (kProjects) {
    project_rows<kDim>(args, block, first, shared_address(memory.weight), c);
  } else {
    store_rows<kTiles>(args, block, first, 0, c);
  }
}

// ---- Launchers ----------------------------------------------------------------------------------

Status launched(cudaError_t code) {
  if (code == cudaSuccess) code = cudaGetLastError();
  if (code != cudaSuccess) return {StatusCode::device, cudaGetErrorString(code)};
  return {};
}

template <typename Args>
Status launch(void (*kernel)(Args), const Args& args, int64_t blocks, int threads, int bytes,
              CudaTarget target) {
  const cudaError_t code =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (code != cudaSuccess) return launched(code);
  const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(args.batch * args.heads));
  kernel<<<grid, threads, bytes, static_cast<cudaStream_t>(target.stream)>>>(args);
  return launched(cudaSuccess);
}

template <int kDim, int kRows>
Status launch_states(const LinearStatesArgs& args, CudaTarget target) {
  return launch(&linear_states_kernel<kDim, kRows>, args, args.keys.blocks, kStateThreads,
                sizeof(StatesMemory<kDim, kRows>), target);
}

template <int kDim, int kRows>
Status launch_out(const LinearOutArgs& args, CudaTarget target) {
  using Memory = OutMemory<kDim, kRows>;
  if (args.weight) {
    return launch(&linear_out_kernel<kDim, kRows, true>, args, args.queries.blocks, 2 * kRows,
                  sizeof(Memory), target);
  }
  return launch(&linear_out_kernel<kDim, kRows, false>, args, args.queries.blocks, 2 * kRows,
                offsetof(Memory, weight), target);
}

Status check(int64_t dim, int64_t heads, const LinearBlocks& blocks) {
  if (dim != 64 && dim != 128) return {StatusCode::unsupported, "takes 64 or 128 channels"};
  if (blocks.most_rows > kMostLinearRows) {
    return {StatusCode::unsupported, "takes blocks of up to 128 rows"};
  }
  if (heads > 65535 || blocks.blocks > std::numeric_limits<int32_t>::max()) {
    return {StatusCode::unsupported, "more than 65535 heads or 2^31 blocks"};
  }
  return {};
}

}  // namespace

Status linear_states_cuda(const LinearStatesArgs& args, CudaTarget target) {
  const int64_t heads = args.batch * args.heads;
  if (heads == 0 || args.keys.blocks == 0) return {};
  if (const Status status = check(args.dim, heads, args.keys); !status.ok()) return status;
  if (args.keys.most_rows <= 64) {
    return args.dim == 64 ? launch_states<64, 64>(args, target)
                          : launch_states<128, 64>(args, target);
  }
  return args.dim == 64 ? launch_states<64, 128>(args, target)
                        : launch_states<128, 128>(args, target);
}

Status linear_out_cuda(const LinearOutArgs& args, CudaTarget target) {
  const int64_t heads = args.batch * args.heads;
  if (heads == 0 || args.queries.blocks == 0) return {};
  if (const Status status = check(args.dim, heads, args.queries); !status.ok()) return status;
  if (args.queries.most_rows <= 64) {
    return args.dim == 64 ? launch_out<64, 64>(args, target) : launch_out<128, 64>(args, target);
  }
  return args.dim == 64 ? launch_out<64, 128>(args, target) : launch_out<128, 128>(args, target);
}

}  // namespace fovea::kernels
