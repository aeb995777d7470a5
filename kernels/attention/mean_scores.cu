#include "kernels/attention/mean_scores.h"

#include <cstdint>
#include <limits>
#include <type_traits>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/attention/chosen_blocks.cuh"
#include "kernels/attention/packs.cuh"
#include "kernels/common/launch.cuh"
#include "kernels/common/ptx.cuh"

namespace fovea::kernels {
namespace {

constexpr int kThreads = 256;

// ---- Means --------------------------------------------------------------------------------------

constexpr int kMostColumns = 64;  // packs of a row that a block of threads reads

/// Which packs of channels of all heads a block of threads has.
struct Columns {
  unsigned of_head, all;  ///< packs of a head, of all heads
  int count;              ///< that a block of threads has: a power of two
  unsigned parts;         ///< ceil(all / count)

  Columns(int64_t heads, int64_t dim)
      : of_head(static_cast<unsigned>(dim / kPackChannels)),
        all(static_cast<unsigned>(heads) * of_head),
        count(1) {
    while (count < kMostColumns && static_cast<unsigned>(count) < all) count *= 2;
    parts = (all + count - 1) / count;
  }
};

struct BothColumns {
  Columns sides[2];
  unsigned first;  ///< blocks of threads of the first side
};

/// A block of threads makes the means of one block of rows, of some packs of channels, over heads
/// that lie next to each other where tokens come before heads: then it reads whole stretches, and
/// what runs at a time is next to them. Grid: parts x blocks x batch of each side.
template <typename T>
__global__ void __launch_bounds__(kThreads, 4)
    block_means_kernel(const __grid_constant__ BlockMeansArgs args,
                       const __grid_constant__ BothColumns both) {
  constexpr int kAtOnce = 128 / static_cast<int>(sizeof(Pack<T>));  // rows
  __shared__ float4 all[kThreads * kPackChannels / 4];
  const int number = blockIdx.x >= both.first ? 1 : 0;
  const BlockMeansArgs::Side& side = args.sides[number];
  const Columns& columns = both.sides[number];
  const unsigned own = blockIdx.x - (number == 0 ? 0 : both.first);
  const unsigned first_column = own % columns.parts * columns.count;
  const unsigned of_item = own / columns.parts;
  const auto block = static_cast<int>(of_item % static_cast<unsigned>(side.blocks));
  const int64_t item = of_item / static_cast<unsigned>(side.blocks);
  const auto thread = static_cast<int>(threadIdx.x);
  const int group = thread / columns.count, groups = kThreads / columns.count;
  // Packs behind the last one are read as it, and go nowhere.
  const unsigned pack = min(first_column + thread % columns.count, columns.all - 1);
  const T* const from = static_cast<const T*>(side.x.data) + item * side.x.batch_stride +
                        pack / columns.of_head * side.x.head_stride +
                        pack % columns.of_head * kPackChannels;
  const auto rows = static_cast<int>(side.rows);
  const int begin = max(side.offsets[block], 0), end = min(side.offsets[block + 1], rows);
  float sum[kPackChannels] = {};
  for (int first = begin + group; first < end; first += kAtOnce * groups) {
    int row[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) row[i] = min(first + i * groups, end - 1);
    if (side.order) {
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) row[i] = min(max(side.order[row[i]], 0), rows - 1);
    }
    Pack<T> packs[kAtOnce];  // without branches between them, so that all are under way
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      packs[i] = *reinterpret_cast<const Pack<T>*>(from + row[i] * side.x.row_stride);
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      float x[kPackChannels];
      packs[i].widen(x);
      const bool counts = first + i * groups < end;
#pragma unroll
      for (int c = 0; c < kPackChannels; ++c) sum[c] += counts ? x[c] : 0;
    }
  }
  all[2 * thread] = {sum[0], sum[1], sum[2], sum[3]};
  all[2 * thread + 1] = {sum[4], sum[5], sum[6], sum[7]};
  __syncthreads();
  const auto* const sums = reinterpret_cast<const float*>(all);
  const auto count = static_cast<float>(max(end - begin, 1));
  const int channels = columns.count * kPackChannels;
  for (int i = thread; i < channels; i += kThreads) {
    const unsigned column = first_column + i / kPackChannels;
    if (column >= columns.all) break;
    float mean = 0;
    for (int g = 0; g < groups; ++g) mean += sums[g * channels + i];
    const int64_t head = item * side.heads + column / columns.of_head;
    const int64_t channel = column % columns.of_head * kPackChannels + i % kPackChannels;
    side.means[(head * side.blocks + block) * args.dim + channel] = mean / count;
  }
}

bool is_in_packs(const BlockMeansArgs& args, const BlockMeansArgs::Side& side) {
  const int64_t size = dtype_bytes(side.x.dtype);
  const auto whole = [&](int64_t stride) { return stride * size % 16 == 0; };
  return args.dim % kPackChannels == 0 && whole(side.x.batch_stride) && whole(side.x.head_stride) &&
         whole(side.x.row_stride) && reinterpret_cast<uintptr_t>(side.x.data) % 16 == 0;
}

// ---- Scores and choice --------------------------------------------------------------------------

constexpr int kRows = 16;        // of queries, of a block of threads
constexpr int kKeys = kThreads;  // that are multiplied at a time
constexpr int kChannels = 32;    // likewise
constexpr int kPitch = kChannels + 4;
constexpr int kOwn = 4;  // queries and keys of a thread
constexpr int64_t kMostChannels = 256;

/// What a block of threads has in shared memory; sizes in floats.
struct ScoresMemory {
  float *keys, *centre, *q, *scores;
  int q_pitch;

  __host__ __device__ static int whole(int dim) {
    return (dim + kChannels - 1) / kChannels * kChannels;
  }
  __host__ __device__ static int64_t bytes(const MeanScoresArgs& args) {
    const int dim = whole(static_cast<int>(args.dim));
    return 4 * (kKeys * kPitch + dim + kRows * (dim + 4) + kRows * args.kv_blocks);
  }
  __device__ ScoresMemory(char* memory, int dim) : q_pitch(whole(dim) + 4) {
    keys = reinterpret_cast<float*>(memory);
    centre = keys + kKeys * kPitch;
    q = centre + whole(dim);
    scores = q + kRows * q_pitch;
  }
};

/// The mean of all keys, of blocks by their sizes; channels behind the last one are 0.
__device__ void make_centre(const MeanScoresArgs& args, const float* k, const ScoresMemory& m) {
  constexpr int kAtOnce = 8;
  const int dim = static_cast<int>(args.dim), blocks = static_cast<int>(args.kv_blocks);
  const int packs = dim / 4, groups = kThreads / packs;
  const int pack = static_cast<int>(threadIdx.x) % packs;
  const int group = static_cast<int>(threadIdx.x) / packs;
  if (group < groups) {
    float4 sum = {};
    for (int first = group; first < blocks; first += kAtOnce * groups) {
      float4 x[kAtOnce];
      int size[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int block = min(first + i * groups, blocks - 1);
        x[i] = reinterpret_cast<const float4*>(k)[block * packs + pack];
        const int rows = args.kv_offsets[block + 1] - args.kv_offsets[block];
        size[i] = first + i * groups < blocks ? rows : 0;
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const auto rows = static_cast<float>(size[i]);
        sum.x += x[i].x * rows, sum.y += x[i].y * rows;
        sum.z += x[i].z * rows, sum.w += x[i].w * rows;
      }
    }
    reinterpret_cast<float4*>(m.keys)[group * packs + pack] = sum;
  }
  const auto all = static_cast<float>(max(args.kv_offsets[blocks] - args.kv_offsets[0], 1));
  __syncthreads();
  for (int c = threadIdx.x; c < ScoresMemory::whole(dim); c += kThreads) {
    float sum = 0;
    for (int g = 0; c < dim && g < groups; ++g) sum += m.keys[g * dim + c];
    m.centre[c] = sum / all;
  }
}

/// Keys of a step on their way to shared memory: each thread has 4 channels of 8 of them.
struct KeysAhead {
  float4 x[kKeys / 32];

  __device__ static int channel() { return threadIdx.x % 8 * 4; }
  __device__ static int key(int i) { return static_cast<int>(threadIdx.x) / 8 + 32 * i; }

  __device__ void load(const MeanScoresArgs& args, const float* k, int step, int of_keys) {
    const int first = step / of_keys * kKeys, at = step % of_keys * kChannels + channel();
    const int dim = static_cast<int>(args.dim), blocks = static_cast<int>(args.kv_blocks);
#pragma unroll
    for (int i = 0; i < kKeys / 32; ++i) {
      // What is not there is read as something else, and counts nothing.
      const int row = min(first + key(i), blocks - 1);
      x[i] = *reinterpret_cast<const float4*>(k + row * dim + min(at, dim - 4));
    }
  }
  __device__ void store(const ScoresMemory& m, int step, int of_keys) const {
    const float4 centre =
        *reinterpret_cast<const float4*>(m.centre + step % of_keys * kChannels + channel());
#pragma unroll
    for (int i = 0; i < kKeys / 32; ++i) {
      *reinterpret_cast<float4*>(m.keys + key(i) * kPitch + channel()) = {
          x[i].x - centre.x, x[i].y - centre.y, x[i].z - centre.z, x[i].w - centre.w};
    }
  }
};

/// Adds products of kChannels: c[i][j] of row 4 i + lane / 8 and the warp's key 8 j + lane % 8.
__device__ void add_products(float (&c)[kOwn][kOwn], const ScoresMemory& m, int first_channel) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const float* const q = m.q + lane / 8 * m.q_pitch + first_channel;
  const float* const k = m.keys + (warp * 32 + lane % 8) * kPitch;
#pragma unroll
  for (int channel = 0; channel < kChannels; channel += 4) {
    float4 a[kOwn], b[kOwn];
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      a[i] = *reinterpret_cast<const float4*>(q + i * 4 * m.q_pitch + channel);
      b[i] = *reinterpret_cast<const float4*>(k + i * 8 * kPitch + channel);
    }
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
#pragma unroll
      for (int j = 0; j < kOwn; ++j) {
        c[i][j] = fmaf(a[i].x, b[j].x, c[i][j]);
        c[i][j] = fmaf(a[i].y, b[j].y, c[i][j]);
        c[i][j] = fmaf(a[i].z, b[j].z, c[i][j]);
        c[i][j] = fmaf(a[i].w, b[j].w, c[i][j]);
      }
    }
  }
}

/// Scales the products of keys from `first` on, and stores them as scores; c is 0 then.
__device__ void store_scores(float (&c)[kOwn][kOwn], const MeanScoresArgs& args,
                             const ScoresMemory& m, int first) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int blocks = static_cast<int>(args.kv_blocks);
#pragma unroll
  for (int j = 0; j < kOwn; ++j) {
    const int key = first + warp * 32 + 8 * j + lane % 8;
    const bool is_empty = key >= blocks || args.kv_offsets[key + 1] <= args.kv_offsets[key];
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const float score = is_empty ? -INFINITY : c[i][j] * args.scale;
      if (key < blocks) m.scores[(4 * i + lane / 8) * blocks + key] = score;
      c[i][j] = 0;
    }
  }
}

/// A block of threads has kRows rows of one head, whose scores stay in shared memory, and each of
/// its warps chooses of some of them. Grid: ceil(q_blocks / kRows) x heads of all items.
template <int kOfLane>
__global__ void __launch_bounds__(kThreads, 2)
    mean_scores_kernel(const __grid_constant__ MeanScoresArgs args) {
  const int dim = static_cast<int>(args.dim), blocks = static_cast<int>(args.kv_blocks);
  const ScoresMemory m(ptx::dynamic_memory(), dim);
  const auto heads = static_cast<unsigned>(args.heads);
  const unsigned item = blockIdx.y / heads, head = blockIdx.y % heads;
  const unsigned kv_head = head / static_cast<unsigned>(args.heads / args.kv_heads);
  const float* const k = args.k + (item * args.kv_heads + kv_head) * args.kv_blocks * dim;
  const int64_t first_row = blockIdx.y * args.q_blocks + blockIdx.x * kRows;
  const int rows = static_cast<int>(min(args.q_blocks - blockIdx.x * kRows, int64_t{kRows}));
  const int of_keys = ScoresMemory::whole(dim) / kChannels;  // steps
  const int steps = (blocks + kKeys - 1) / kKeys * of_keys;
  KeysAhead ahead;
  ahead.load(args, k, 0, of_keys);
  const int own_row = static_cast<int>(threadIdx.x) / (kThreads / kRows);
  for (int c = static_cast<int>(threadIdx.x) % (kThreads / kRows); c < ScoresMemory::whole(dim);
       c += kThreads / kRows) {
    const bool is_there = own_row < rows && c < dim;
    m.q[own_row * m.q_pitch + c] = is_there ? args.q[(first_row + own_row) * dim + c] : 0;
  }
  make_centre(args, k, m);
  float c[kOwn][kOwn] = {};
  for (int step = 0; step < steps; ++step) {
    __syncthreads();
    ahead.store(m, step, of_keys);
    __syncthreads();
    if (step + 1 < steps) ahead.load(args, k, step + 1, of_keys);
    add_products(c, m, step % of_keys * kChannels);
    if (step % of_keys == of_keys - 1) store_scores(c, args, m, step / of_keys * kKeys);
  }
  __syncthreads();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int row = warp; row < rows; row += kThreads / 32) {
    const float* const own = m.scores + row * blocks;
    const int64_t place = (first_row + row) * blocks;
    for (int i = lane; args.scores && i < blocks; i += 32) args.scores[place + i] = own[i];
    if (!args.chosen) continue;
    SelectBlocksArgs select;
    select.blocks = blocks, select.least = args.least, select.takes_lowest = false;
    choosing::choose_of_row<kOfLane>(select, own, args.chosen + place);
  }
}

template <typename T>
Status launch(const BlockMeansArgs& args, const BothColumns& both, const Grid& grid) {
  return launch_kernel(block_means_kernel<T>, grid, args, both);
}

}  // namespace

Status block_means_cuda(const BlockMeansArgs& args, CudaTarget target) {
  const BlockMeansArgs::Side* const sides = args.sides;
  BothColumns both{{{sides[0].heads, args.dim}, {sides[1].heads, args.dim}}, 0};
  int64_t threads[2] = {};
  for (int i = 0; i < args.num_sides; ++i) {
    if (!is_in_packs(args, sides[i]) || sides[i].x.dtype != sides[0].x.dtype) {
      return {StatusCode::unsupported, "rows are not 16-byte packs of one type"};
    }
    if (sides[i].rows > std::numeric_limits<int32_t>::max()) {
      return {StatusCode::unsupported, "more than 2^31 rows"};
    }
    threads[i] = args.batch * sides[i].blocks * both.sides[i].parts;
  }
  if (threads[0] + threads[1] == 0 || args.dim == 0) return {};
  if (threads[0] + threads[1] > std::numeric_limits<int32_t>::max()) {
    return {StatusCode::unsupported, "more than 2^31 blocks of all heads"};
  }
  both.first = static_cast<unsigned>(threads[0]);
  const Grid grid{static_cast<unsigned>(threads[0] + threads[1]), kThreads, 0, target.stream};
  switch (sides[0].x.dtype) {
    case DType::f32:
      return launch<float>(args, both, grid);
    case DType::f16:
      return launch<__half>(args, both, grid);
    case DType::bf16:
      return launch<__nv_bfloat16>(args, both, grid);
  }
  return {};
}

Status mean_scores_cuda(const MeanScoresArgs& args, CudaTarget target) {
  const int64_t heads = args.batch * args.heads;
  if (heads == 0 || args.q_blocks == 0 || args.kv_blocks == 0) return {};
  if (args.dim == 0 || args.dim % 8 != 0 || args.dim > kMostChannels) {
    return {StatusCode::unsupported, "takes up to 256 channels, a multiple of 8"};
  }
  int most = 0;
  const Status status = status_of(
      cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, target.device));
  if (!status.ok()) return status;
  const int64_t bytes = ScoresMemory::bytes(args);
  if (bytes > most || heads > 65535) {
    return {StatusCode::unsupported, "more blocks of keys than shared memory holds, or heads"};
  }
  const auto kernel = args.kv_blocks <= 256   ? mean_scores_kernel<8>
                      : args.kv_blocks <= 640 ? mean_scores_kernel<20>
                                              : mean_scores_kernel<0>;
  const Grid grid{dim3(static_cast<unsigned>((args.q_blocks + kRows - 1) / kRows),
                       static_cast<unsigned>(heads)),
                  kThreads, static_cast<size_t>(bytes), target.stream};
  return launch_kernel(kernel, grid, args);
}

}  // namespace fovea::kernels
