#include "kernels/attention/kmeans.h"

#include <limits>

#include "kernels/common/fragment.cuh"
#include "kernels/common/launch.cuh"
#include "kernels/common/mma.cuh"

namespace fovea::kernels {
namespace {

using mma::Type;
using ptx::shared_address;

constexpr unsigned kAll = 0xffffffff;

/// Two numbers of 16 bits.
template <Type kType>
__device__ float2 unpacked(uint32_t bits) {
  if constexpr (kType == Type::bf16) {
    return {__uint_as_float(bits << 16), __uint_as_float(bits & 0xffff0000u)};
  } else {
    return {__half2float(__ushort_as_half(static_cast<unsigned short>(bits & 0xffffu))),
            __half2float(__ushort_as_half(static_cast<unsigned short>(bits >> 16)))};
  }
}

// Blocks of all grids: y is a head of item z.

/// Of all items' heads.
__device__ int64_t own_head(const KMeansArgs& args) { return blockIdx.z * args.heads + blockIdx.y; }
/// Tokens that are not padding.
__device__ int64_t own_seen(const KMeansArgs& args) { return args.seen(blockIdx.z); }
/// The tokens, as pairs of channels.
__device__ const uint32_t* own_tokens(const KMeansArgs& args) {
  const int64_t first = blockIdx.z * args.x.batch_stride + blockIdx.y * args.x.head_stride;
  return static_cast<const uint32_t*>(args.x.data) + first / 2;
}

// ---- Centroids ----------------------------------------------------------------------------------

constexpr int kFactorWarps = 4;

/// A warp makes one place. Blocks: places / kFactorWarps a head.
template <Type kType, int kDim>
__global__ void __launch_bounds__(32 * kFactorWarps) factors_kernel(KMeansArgs args) {
  const int64_t head = own_head(args);
  const int cluster = blockIdx.x * kFactorWarps + threadIdx.x / 32, lane = threadIdx.x % 32;
  const bool is_there = cluster < args.clusters;
  const int64_t own = head * args.clusters + cluster, place = head * args.places() + cluster;
  auto* const factors = static_cast<uint32_t*>(args.factors) + place * kDim;
  const int64_t valid = args.has_sums && is_there ? args.valid[own] : 0;
  const int32_t* const first_piece = args.first_piece + own + head;
  float square = 0;
#pragma unroll
  for (int channel = 2 * lane; channel < kDim; channel += 64) {
    float2 x = {0, 0};
    auto* const centroid = reinterpret_cast<float2*>(args.centroid + own * kDim + channel);
    if (valid > 0) {
      const float* const sums = args.sum + head * args.most_pieces() * kDim + channel;
#pragma unroll 4
      for (int i = first_piece[0]; i < first_piece[1]; ++i) {
        const float2 part = *reinterpret_cast<const float2*>(sums + int64_t{i} * kDim);
        x.x += part.x, x.y += part.y;
      }
      x.x /= static_cast<float>(valid), x.y /= static_cast<float>(valid);
      *centroid = x;
    } else if (is_there) {
      x = *centroid;
    }
    square += x.x * x.x + x.y * x.y;
    const uint32_t high = fragment::pack<kType>(x.x, x.y);
    const float2 back = unpacked<kType>(high);
    factors[kmeans_place(channel) / 2] = high;
    factors[(kDim + kmeans_place(channel)) / 2] = fragment::pack<kType>(x.x - back.x, x.y - back.y);
  }
#pragma unroll
  for (int step = 16; step > 0; step /= 2) square += __shfl_xor_sync(kAll, square, step);
  if (lane == 0) {
    args.half[place] = is_there ? square / 2 : std::numeric_limits<float>::infinity();
  }
}

// ---- Labels -------------------------------------------------------------------------------------

constexpr int kLabelThreads = 128;
constexpr int kRowTiles = 4;                                 // of 16 tokens, of a warp
constexpr int kLabelTokens = kLabelThreads / 2 * kRowTiles;  // of a block
constexpr int kPlaces = kKMeansPlaces;

/// Both parts of a centroid are a row in shared memory.
template <int kDim>
using Factors = mma::MixedRows<4 * kDim>;

/// Of two tiles of centroids: the one that is multiplied, and the next.
template <int kDim>
struct alignas(128) LabelMemory {
  char factors[2][kPlaces * 4 * kDim];
  float half[2][kPlaces];
};

template <int kDim>
__device__ void copy_tile(LabelMemory<kDim>& memory, const KMeansArgs& args, int tile) {
  constexpr int kUnits = Factors<kDim>::kUnits;
  const int64_t first = own_head(args) * args.places() + tile * kPlaces;
  const auto* const factors = static_cast<const char*>(args.factors) + first * 4 * kDim;
  const uint32_t to = shared_address(memory.factors[tile % 2]);
  static_assert(kPlaces * kUnits % kLabelThreads == 0);
#pragma unroll 8
  for (int turn = 0; turn < kPlaces * kUnits / kLabelThreads; ++turn) {
    const int i = turn * kLabelThreads + threadIdx.x;
    mma::copy16(to + Factors<kDim>::place(i / kUnits, i % kUnits), factors + 16 * i, true);
  }
  if (threadIdx.x < kPlaces / 4) {
    mma::copy16(shared_address(memory.half[tile % 2]) + 16 * threadIdx.x,
                args.half + first + 4 * threadIdx.x, true);
  }
  mma::commit_copies();
}

/// The operands of a warp's tokens: lane l reads channels 8 (l % 4) to + 7 of each 32 of a token,
/// whose factors lie as `kmeans_place` says.
template <int kDim>
__device__ void load_tokens(const KMeansArgs& args, int64_t first,
                            uint32_t (&a)[kRowTiles][kDim / 16][4]) {
  const int lane = threadIdx.x % 32;
  const int64_t seen = own_seen(args);
  const uint32_t* const x = own_tokens(args) + lane % 4 * 4;
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t row = first + 16 * m + 8 * half + lane / 4;
#pragma unroll
      for (int group = 0; group < kDim / 32; ++group) {
        uint4 bits = {0, 0, 0, 0};
        if (row < seen) {
          bits = *reinterpret_cast<const uint4*>(x + row * args.x.row_stride / 2 + 16 * group);
        }
        a[m][2 * group][half] = bits.x, a[m][2 * group][2 + half] = bits.y;
        a[m][2 * group + 1][half] = bits.z, a[m][2 * group + 1][2 + half] = bits.w;
      }
    }
  }
}

/// A block labels kLabelTokens tokens, a warp a quarter of them, which stay in registers while
/// tiles of centroids pass by. Blocks: ceil(tokens / kLabelTokens) a head.
template <Type kType, int kDim>
__global__ void __launch_bounds__(kLabelThreads, 2) labels_kernel(KMeansArgs args) {
  auto& memory = *reinterpret_cast<LabelMemory<kDim>*>(ptx::dynamic_memory());
  constexpr int kSteps = kDim / 16;  // of one part of the centroids
  const int lane = threadIdx.x % 32, tiles = static_cast<int>(args.places() / kPlaces);
  const int64_t first = int64_t{blockIdx.x} * kLabelTokens + threadIdx.x / 32 * 16 * kRowTiles;
  const bool has_tokens = first < args.tokens;
  copy_tile<kDim>(memory, args, 0);
  uint32_t a[kRowTiles][kSteps][4];
  load_tokens<kDim>(args, first, a);
  float most[2 * kRowTiles];
  int label[2 * kRowTiles];
#pragma unroll
  for (int i = 0; i < 2 * kRowTiles; ++i) {
    most[i] = -std::numeric_limits<float>::infinity(), label[i] = 0;
  }
  const int from = Factors<kDim>::place(lane / 16 * 8 + lane % 8, lane / 8 % 2);
  for (int tile = 0; tile < tiles; ++tile) {
    mma::wait_copies<0>();
    __syncthreads();  // this tile is there, and none reads the one before it
    if (tile + 1 < tiles) copy_tile<kDim>(memory, args, tile + 1);
    if (!has_tokens) continue;
    const uint32_t factors = shared_address(memory.factors[tile % 2]) + from;
#pragma unroll 1
    for (int column = 0; column < kPlaces; column += 16) {
      float c[kRowTiles][8] = {};
#pragma unroll
      for (int step = 0; step < 2 * kSteps; ++step) {
        uint32_t b[4];
        mma::load_matrices(Factors<kDim>::behind(factors + column * 4 * kDim, 2 * step), b);
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) {
          mma::multiply<kType>(c[m], 0, a[m][step % kSteps], b[0], b[1]);
          mma::multiply<kType>(c[m], 4, a[m][step % kSteps], b[2], b[3]);
        }
      }
      const int own = column + lane % 4 * 2;
#pragma unroll
      for (int i = 0; i < 4; ++i) {  // columns ascend: of equal ones the first stays
        const int number = own + i / 2 * 8 + i % 2;
        const float half = memory.half[tile % 2][number];
#pragma unroll
        for (int row = 0; row < 2 * kRowTiles; ++row) {
          const float value = c[row / 2][i / 2 * 4 + row % 2 * 2 + i % 2] - half;
          if (value > most[row]) most[row] = value, label[row] = tile * kPlaces + number;
        }
      }
    }
  }
#pragma unroll
  for (int i = 0; i < 2 * kRowTiles; ++i) {
#pragma unroll
    for (int step = 1; step < 4; step *= 2) {  // over the lanes that hold a row
      const float other = __shfl_xor_sync(kAll, most[i], step);
      const int number = __shfl_xor_sync(kAll, label[i], step);
      if (other > most[i] || (other == most[i] && number < label[i])) {
        most[i] = other, label[i] = number;
      }
    }
    const int64_t row = first + 8 * i + lane / 4;
    if (lane % 4 == 0 && row < args.tokens)
      args.label[own_head(args) * args.tokens + row] = label[i];
  }
}

// ---- Order --------------------------------------------------------------------------------------

constexpr int kSortWarps = 32;
constexpr int64_t kCounterBytes = 96 * 1024;  // what all GPUs have
static_assert(kMostKMeansClusters * 4 * 4 <= kCounterBytes);

/// Sum of what the threads before this one give, by all threads of the block.
///
/// sums  [warps] of shared memory
__device__ int sum_before(int own, int* sums) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int sum = own;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const int before = __shfl_up_sync(kAll, sum, step);
    if (lane >= step) sum += before;
  }
  if (lane == 31) sums[warp] = sum;
  __syncthreads();
  sum -= own;
  for (int i = 0; i < warp; ++i) sum += sums[i];
  __syncthreads();
  return sum;
}

/// How many of the ascending numbers are below `bound`.
__device__ int count_below(const int32_t* numbers, int count, int64_t bound) {
  int low = 0, high = count;
  while (low < high) {
    const int middle = (low + high) / 2;
    const bool is_below = numbers[middle] < bound;
    low = is_below ? middle + 1 : low;
    high = is_below ? high : middle;
  }
  return low;
}

/// Calls f(token, label) for the tokens of a warp, 32 after the other; labels behind the end are
/// -1.
template <typename F>
__device__ void for_each_label(const int32_t* labels, int64_t begin, int64_t end, F f) {
  constexpr int kAhead = 8;  // loads that a thread has under way
  for (; begin < end; begin += 32 * kAhead) {
    const int64_t first = begin + threadIdx.x % 32;
    int32_t label[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) label[i] = first + 32 * i < end ? labels[first + 32 * i] : -1;
#pragma unroll
    for (int i = 0; i < kAhead; ++i) f(first + 32 * i, label[i]);
  }
}

/// A block sorts the tokens of a head by counting, a warp a run of them. Shared memory: numbers of
/// all clusters for each warp, and one number a warp. Blocks: one a head.
__global__ void __launch_bounds__(32 * kSortWarps, 1) sort_kernel(KMeansArgs args) {
  auto* const counts = reinterpret_cast<int32_t*>(ptx::dynamic_memory());
  const int warps = blockDim.x / 32, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int clusters = static_cast<int>(args.clusters), tokens = static_cast<int>(args.tokens);
  int32_t* const own = counts + warp * clusters;
  int32_t* const sums = counts + warps * clusters;
  const int64_t head = own_head(args);
  const int32_t* const label = args.label + head * tokens;
  int32_t* const order = args.order + head * tokens;
  const int run = (tokens + 32 * warps - 1) / (32 * warps) * 32;
  const int64_t run_begin = int64_t{warp} * run;
  const int64_t run_end = min(run_begin + run, int64_t{tokens});
  for (int c = lane; c < clusters; c += 32) own[c] = 0;
  __syncwarp();
  for_each_label(label, run_begin, run_end, [&](int64_t, int cluster) {
    if (cluster >= 0) atomicAdd(&own[cluster], 1);
  });
  __syncthreads();

  // Each thread lays out a few clusters: counts become positions.
  const int each = (clusters + blockDim.x - 1) / blockDim.x;
  const int first = min(static_cast<int>(threadIdx.x) * each, clusters);
  const int last = min(first + each, clusters);
  int of_all = 0, number = 0;
  for (int c = first; c < last; ++c) {
    int count = 0;
    for (int w = 0; w < warps; ++w) count += counts[w * clusters + c];
    of_all += count;
    number += (count + kKMeansPiece - 1) / kKMeansPiece;
  }
  int position = sum_before(of_all, sums);
  number = sum_before(number, sums);
  ClusterPiece* const pieces = args.pieces + head * args.most_pieces();
  int32_t* const first_piece = args.first_piece + head * (clusters + 1);
  for (int c = first; c < last; ++c) {
    const int begin = position;
    for (int w = 0; w < warps; ++w) {
      const int count = counts[w * clusters + c];
      counts[w * clusters + c] = position;
      position += count;
    }
    args.count[head * clusters + c] = position - begin;
    first_piece[c] = number;
    for (int at = begin; at < position; at += kKMeansPiece) {
      pieces[number++] = {at, min(at + static_cast<int>(kKMeansPiece), position)};
    }
  }
  if (first < last && last == clusters) first_piece[clusters] = number;
  __syncthreads();

  for_each_label(label, run_begin, run_end, [&](int64_t at, int cluster) {
    const unsigned same = __match_any_sync(kAll, cluster);
    const int before = __popc(same & ((1u << lane) - 1));
    if (cluster >= 0) order[own[cluster] + before] = static_cast<int32_t>(at);
    __syncwarp();
    if (cluster >= 0 && before == 0) own[cluster] += __popc(same);
    __syncwarp();
  });
  __syncthreads();  // the order is there, and a cluster ends where the last warp's tokens do

  const int32_t* const ends = counts + (warps - 1) * clusters;
  for (int c = threadIdx.x; c < clusters; c += blockDim.x) {
    const int begin = c == 0 ? 0 : ends[c - 1], count = ends[c] - begin;
    int valid = count;
    if (args.valid_len) valid = count_below(order + begin, count, own_seen(args));
    args.valid[head * clusters + c] = valid;
  }
}

// ---- Sums ---------------------------------------------------------------------------------------

constexpr int kSumThreads = 128;
constexpr int kAtOnce = 4;    // tokens whose loads a thread has under way
constexpr int kChannels = 8;  // of a thread: 16 bytes

/// A block adds up a piece; kDim / kChannels threads read a token. Blocks: most_pieces() a
/// head.
template <Type kType, int kDim>
__global__ void __launch_bounds__(kSumThreads, 8) sums_kernel(KMeansArgs args) {
  constexpr int kLanes = kDim / kChannels, kGroups = kSumThreads / kLanes;
  __shared__ float all[kGroups * kDim];
  const int64_t head = own_head(args), place = head * args.most_pieces() + blockIdx.x;
  const int pieces = args.first_piece[head * (args.clusters + 1) + args.clusters];
  if (blockIdx.x >= pieces) return;
  const ClusterPiece piece = args.pieces[place];
  const int64_t seen = own_seen(args);
  const int32_t* const order = args.order + head * args.tokens;
  const int unit = threadIdx.x % kLanes, group = threadIdx.x / kLanes;
  const uint32_t* const x = own_tokens(args) + unit * kChannels / 2;
  float sum[kChannels] = {};
  for (int first = piece.begin + group; first < piece.end; first += kAtOnce * kGroups) {
    int64_t tokens[kAtOnce];
    uint4 bits[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int at = first + i * kGroups;
      tokens[i] = at < piece.end ? order[at] : seen;
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int64_t token = tokens[i];
      bits[i] = {0, 0, 0, 0};
      if (token < seen)
        bits[i] = *reinterpret_cast<const uint4*>(x + token * args.x.row_stride / 2);
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const uint32_t words[4] = {bits[i].x, bits[i].y, bits[i].z, bits[i].w};
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        const float2 pair = unpacked<kType>(words[w]);
        sum[2 * w] += pair.x, sum[2 * w + 1] += pair.y;
      }
    }
  }
#pragma unroll
  for (int c = 0; c < kChannels; ++c) all[group * kDim + unit * kChannels + c] = sum[c];
  __syncthreads();
  if (threadIdx.x >= kDim) return;
  float whole = 0;
#pragma unroll
  for (int g = 0; g < kGroups; ++g) whole += all[g * kDim + threadIdx.x];
  args.sum[place * kDim + threadIdx.x] = whole;
}

// ---- Launches -----------------------------------------------------------------------------------

Status check(const KMeansArgs& args) {
  const auto whole = [](int64_t stride) { return stride % kChannels == 0; };
  const bool is_in_packs = whole(args.x.batch_stride) && whole(args.x.head_stride) &&
                           whole(args.x.row_stride) &&
                           reinterpret_cast<uintptr_t>(args.x.data) % 16 == 0;
  if ((args.dim != 64 && args.dim != 128) || args.x.dtype == DType::f32 || !is_in_packs) {
    return {StatusCode::unsupported, "rows are not 16-byte packs of 64 or 128 16-bit channels"};
  }
  if (args.clusters < 1 || args.clusters > kMostKMeansClusters) {
    return {StatusCode::unsupported, "more than 6144 clusters, or none"};
  }
  if (args.batch * args.heads > 65535 || args.tokens > std::numeric_limits<int32_t>::max() / 2) {
    return {StatusCode::unsupported, "more than 65535 heads or 2^30 tokens"};
  }
  return {};
}

using Kernel = void (*)(KMeansArgs);

/// Of [64 or 128 channels][bf16 or fp16].
Kernel chosen(const KMeansArgs& args, const Kernel (&kernels)[2][2]) {
  return kernels[args.dim == 128][args.x.dtype == DType::f16];
}

/// So many blocks for each head of each item.
dim3 blocks_of(const KMeansArgs& args, int64_t of_head) {
  return {static_cast<unsigned>(of_head), static_cast<unsigned>(args.heads),
          static_cast<unsigned>(args.batch)};
}

}  // namespace

Status kmeans_factors_cuda(const KMeansArgs& args, CudaTarget target) {
  const Status status = check(args);
  if (!status.ok() || args.batch * args.heads == 0) return status;
  const Kernel kernel =
      chosen(args, {{factors_kernel<Type::bf16, 64>, factors_kernel<Type::f16, 64>},
                    {factors_kernel<Type::bf16, 128>, factors_kernel<Type::f16, 128>}});
  const dim3 blocks = blocks_of(args, args.places() / kFactorWarps);
  return launch_kernel(kernel, {blocks, 32 * kFactorWarps, 0, target.stream}, args);
}

Status kmeans_labels_cuda(const KMeansArgs& args, CudaTarget target) {
  const Status status = check(args);
  if (!status.ok() || args.batch * args.heads * args.tokens == 0) return status;
  const Kernel kernel =
      chosen(args, {{labels_kernel<Type::bf16, 64>, labels_kernel<Type::f16, 64>},
                    {labels_kernel<Type::bf16, 128>, labels_kernel<Type::f16, 128>}});
  const size_t bytes = args.dim == 128 ? sizeof(LabelMemory<128>) : sizeof(LabelMemory<64>);
  const dim3 blocks = blocks_of(args, (args.tokens + kLabelTokens - 1) / kLabelTokens);
  return launch_kernel(kernel, {blocks, kLabelThreads, bytes, target.stream}, args);
}

Status kmeans_sort_cuda(const KMeansArgs& args, CudaTarget target) {
  const Status status = check(args);
  if (!status.ok() || args.batch * args.heads == 0) return status;
  const int64_t warps = std::min<int64_t>(kSortWarps, kCounterBytes / (4 * args.clusters));
  const auto bytes = static_cast<size_t>(4 * warps * (args.clusters + 1));
  const auto threads = static_cast<unsigned>(32 * warps);
  return launch_kernel(sort_kernel, {blocks_of(args, 1), threads, bytes, target.stream}, args);
}

Status kmeans_sums_cuda(const KMeansArgs& args, CudaTarget target) {
  const Status status = check(args);
  if (!status.ok() || args.batch * args.heads * args.tokens == 0) return status;
  const Kernel kernel = chosen(args, {{sums_kernel<Type::bf16, 64>, sums_kernel<Type::f16, 64>},
                                      {sums_kernel<Type::bf16, 128>, sums_kernel<Type::f16, 128>}});
  const dim3 blocks = blocks_of(args, args.most_pieces());
  return launch_kernel(kernel, {blocks, kSumThreads, 0, target.stream}, args);
}

}  // namespace fovea::kernels
