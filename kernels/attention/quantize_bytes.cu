#include "kernels/attention/quantize_bytes.h"

#include <cstdlib>
#include <limits>

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>

#include "kernels/common/launch.cuh"

namespace fovea::kernels {
namespace {

constexpr int kThreads = 256;
constexpr unsigned kAll = 0xffffffff;

// A thread has 8 channels of a row: a row has dim / 8 lanes.
constexpr int kUnit = 8;
// Rows that a thread loads before it looks at the first of them.
constexpr int kAtOnce = 8;

// Magnitudes are compared as bits: NaN is larger than all.
__device__ uint32_t magnitude(float x) { return __float_as_uint(x) & 0x7fffffff; }

struct Unit {
  float x[kUnit];
};

template <DType kFrom>
__device__ Unit widened(const uint4& bits) {
  const uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
  Unit out;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    float2 both;
    if constexpr (kFrom == DType::bf16) {
      both = {__uint_as_float(words[i] << 16), __uint_as_float(words[i] & 0xffff0000)};
    } else {
      both = __half22float2(*reinterpret_cast<const __half2*>(&words[i]));
    }
    out.x[2 * i] = both.x, out.x[2 * i + 1] = both.y;
  }
  return out;
}

/// Where a head's rows are. Positions and distances have 32 bits: see check_grid().
struct Source {
  const BytesFrom& from;
  const uint16_t* data;
  const int32_t* order;
  int len, stride;
  uint32_t in_rows;

  __device__ Source(const BytesFrom& of, int64_t item, int64_t head)
      : from(of),
        len(static_cast<int>(of.len)),
        stride(static_cast<int>(of.x.row_stride)),
        in_rows(static_cast<uint32_t>(of.in_rows)) {
    data = static_cast<const uint16_t*>(of.x.data) + item * of.x.batch_stride +
           head / (of.heads / of.in_heads) * of.x.head_stride;
    order = of.order.rows == nullptr
                ? nullptr
                : of.order.rows + item * of.order.batch_stride + head * of.order.head_stride;
  }
  static constexpr int kNone = -1, kWrong = -2;

  /// The row of a position, or one of these; see report().
  __device__ int find(int position) const {
    if (position >= len) return kNone;
    const int row = order == nullptr ? position : order[position];
    return static_cast<uint32_t>(row) < in_rows ? row : row == -1 ? kNone : kWrong;
  }
  /// Zeros where there is none.
  __device__ uint4 load(int row, int lane) const {
    if (row < 0) return {0, 0, 0, 0};
    return *reinterpret_cast<const uint4*>(data + static_cast<int64_t>(row) * stride +
                                           lane * kUnit);
  }
  /// What follows a store waits for it, so this comes behind all loads.
  template <int kCount>
  __device__ void report(const int (&rows)[kCount]) const {
    int least = kNone;
#pragma unroll
    for (const int row : rows) least = min(least, row);
    if (least == kWrong) *from.fault = 1;
  }
};

__device__ uint32_t e4m3_of(float x0, float x1, float x2, float x3) {
  const auto low = __nv_cvt_float2_to_fp8x2({x0, x1}, __NV_SATFINITE, __NV_E4M3);
  const auto high = __nv_cvt_float2_to_fp8x2({x2, x3}, __NV_SATFINITE, __NV_E4M3);
  return low | static_cast<uint32_t>(high) << 16;
}

/// Plain numbers are at most 127 by magnitude: beside 1.5 * 2^23 they become whole, and their bits
/// those of the sum. Conversions, an eighth as fast, are for what is left.
__device__ uint32_t int8_of(const float (&x)[4], bool is_plain) {
  uint32_t bits[4];
  if (is_plain) {
#pragma unroll
    for (int i = 0; i < 4; ++i) bits[i] = __float_as_uint(x[i] + 12582912.0f);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      bits[i] = static_cast<uint32_t>(min(max(__float2int_rn(x[i]), -127), 127));
    }
  }
  return (bits[0] & 255) | (bits[1] & 255) << 8 | (bits[2] & 255) << 16 | bits[3] << 24;
}

/// x / scale as a division rounds it: with the number nearest to the reciprocal one correction is
/// enough (Markstein, IBM Journal of Research and Development 34, 1990). |x| is at most 448 scales.
class Divider {
 public:
  __device__ explicit Divider(float scale) {
    scale_ = scale;
    // So that reciprocals and rests are normal numbers.
    factor_ = scale < 0x1p-60f ? 0x1p60f : scale > 0x1p60f ? 0x1p-60f : 1;
    scaled_ = scale * factor_;
    inverse_ = __frcp_rn(scaled_), correction_ = inverse_;
    if (isinf(scale)) scaled_ = correction_ = 0;  // x times 0 then, which is NaN if x is infinite
  }
  __device__ float scale() const { return scale_; }
  /// Quotients of what has such a scale are as large as they should be.
  __device__ bool is_plain() const { return scale_ > 0x1p-100f && scale_ < 0x1p126f; }
  __device__ float operator()(float x) const {
    const float scaled = x * factor_, q = scaled * inverse_;
    return fmaf(fmaf(-q, scaled_, scaled), correction_, q);
  }

 private:
  float scale_, factor_, scaled_, inverse_, correction_;
};

template <ByteFormat kFormat>
__device__ uint2 bytes_of(const Unit& unit, const Divider& divide) {
  float n[kUnit];
#pragma unroll
  for (int i = 0; i < kUnit; ++i) n[i] = divide(unit.x[i]);
  if constexpr (kFormat == ByteFormat::e4m3) {
    return {e4m3_of(n[0], n[1], n[2], n[3]), e4m3_of(n[4], n[5], n[6], n[7])};
  } else {
    const bool is_plain = divide.is_plain();
    return {int8_of({n[0], n[1], n[2], n[3]}, is_plain),
            int8_of({n[4], n[5], n[6], n[7]}, is_plain)};
  }
}

/// Blocks of a tensor's second reading, from the last to the first: the end of the first reading is
/// in the cache still.
__device__ uint3 from_the_last() {
  return {gridDim.x - 1 - blockIdx.x, gridDim.y - 1 - blockIdx.y, gridDim.z - 1 - blockIdx.z};
}

/// The largest of a block, for all of its threads.
__device__ uint32_t largest_of_block(uint32_t own) {
  __shared__ uint32_t of_warps[kThreads / 32];
  own = __reduce_max_sync(kAll, own);
  if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = own;
  __syncthreads();
  uint32_t out = 0;
#pragma unroll
  for (const uint32_t x : of_warps) out = max(out, x);
  return out;
}

// ---- Columns: largest magnitudes and means ------------------------------------------------------

/// Grid: chunks, heads, batch. `largest` is 0.
template <int kLanes, DType kFrom>
__global__ void __launch_bounds__(kThreads) column_stats_kernel(ColumnStatsArgs args) {
  constexpr int kRows = kThreads / kLanes;
  constexpr int kDim = kLanes * kUnit;
  __shared__ float sums[kRows][kDim + 1];
  __shared__ uint32_t tops[kRows][kDim + 1];
  __shared__ int count;
  const int64_t head = blockIdx.y, item = blockIdx.z;
  const int lane = threadIdx.x % kLanes, row = threadIdx.x / kLanes;
  const Source source(args.from, item, head);
  if (threadIdx.x == 0) count = 0;
  __syncthreads();
  float sum[kUnit] = {};
  uint32_t top[kUnit] = {};
  int own = 0;
  const int first = static_cast<int>(blockIdx.x * kChunkRows) + row;
#pragma unroll 1
  for (int i = 0; i < kChunkRows; i += kRows * kAtOnce) {
    int at[kAtOnce];
    uint4 bits[kAtOnce];
#pragma unroll
    for (int turn = 0; turn < kAtOnce; ++turn) at[turn] = source.find(first + i + turn * kRows);
#pragma unroll
    for (int turn = 0; turn < kAtOnce; ++turn) bits[turn] = source.load(at[turn], lane);
#pragma unroll
    for (int turn = 0; turn < kAtOnce; ++turn) {
      own += at[turn] >= 0;
      const Unit unit = widened<kFrom>(bits[turn]);
#pragma unroll
      for (int c = 0; c < kUnit; ++c) {
        sum[c] += unit.x[c];
        top[c] = max(top[c], magnitude(unit.x[c]));
      }
    }
    source.report(at);
  }
#pragma unroll
  for (int c = 0; c < kUnit; ++c) {
    sums[row][lane * kUnit + c] = sum[c], tops[row][lane * kUnit + c] = top[c];
  }
  if (lane == 0) atomicAdd(&count, own);
  __syncthreads();
  if (threadIdx.x >= kDim) return;
  float all = 0;
  uint32_t most = 0;
  for (int i = 0; i < kRows; ++i) {
    all += sums[i][threadIdx.x];
    most = max(most, tops[i][threadIdx.x]);
  }
  const int64_t of_head = item * args.from.heads + head;
  if (args.largest != nullptr) {
    atomicMax(reinterpret_cast<uint32_t*>(args.largest) + of_head * kDim + threadIdx.x, most);
  }
  if (args.mean == nullptr) return;
  float* const out = args.sums + (of_head * gridDim.x + blockIdx.x) * (kDim + 1);
  out[threadIdx.x] = all;
  if (threadIdx.x == 0) out[kDim] = static_cast<float>(count);
}

constexpr int kSlices = 8;  // of chunks, side by side

/// Sums of chunks, always in the same order. Grid: heads, batch; kSlices threads a channel.
__global__ void __launch_bounds__(kSlices * 128) mean_kernel(ColumnStatsArgs args, int64_t chunks) {
  __shared__ float sums[kSlices][128], counts[kSlices];
  const int64_t of_head = blockIdx.y * args.from.heads + blockIdx.x;
  const int dim = static_cast<int>(args.from.dim);
  const int slice = static_cast<int>(threadIdx.x) / dim;
  const int channel = static_cast<int>(threadIdx.x) % dim;
  const float* const own = args.sums + of_head * chunks * (dim + 1);
  float sum = 0, count = 0;
#pragma unroll 8
  for (int64_t chunk = slice; chunk < chunks; chunk += kSlices) {
    sum += own[chunk * (dim + 1) + channel];
    count += own[chunk * (dim + 1) + dim];
  }
  sums[slice][channel] = sum;
  if (channel == 0) counts[slice] = count;
  __syncthreads();
  if (slice > 0) return;
#pragma unroll
  for (int i = 1; i < kSlices; ++i) sum += sums[i][channel], count += counts[i];
  args.mean[of_head * dim + channel] = sum / fmaxf(count, 1);
}

// ---- Rows ---------------------------------------------------------------------------------------

/// A thread's units of some rows as they are stored, and which rows there are.
template <int kCount>
struct Kept {
  uint4 bits[kCount];
  uint32_t rows;
};

/// What is quantized of a head. Types are the compiler's, as these kernels have more instructions
/// to run than bytes to wait for.
template <int kLanes, DType kFrom, ByteFormat kFormat>
struct RowWriter {
  const ByteRowsArgs& args;
  Source source;
  int64_t of_head;
  int lane;
  Unit mean;

  __device__ RowWriter(const ByteRowsArgs& of, int64_t item, int64_t head)
      : args(of),
        source(of.from, item, head),
        of_head(item * of.from.heads + head),
        lane(threadIdx.x % kLanes) {
#pragma unroll
    for (float& x : mean.x) x = 0;
    if (of.mean == nullptr) return;
    const int64_t own = item * of.mean_heads + head / (of.from.heads / of.mean_heads);
#pragma unroll
    for (int c = 0; c < kUnit; ++c) mean.x[c] = of.mean[own * of.from.dim + lane * kUnit + c];
  }

  /// Of positions `step` apart up to `end`.
  template <int kCount>
  __device__ void load(int first, int step, int end, Kept<kCount>& kept) const {
    int row[kCount];
    kept.rows = 0;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int position = first + i * step;
      row[i] = position < end ? source.find(position) : Source::kNone;
      kept.rows |= static_cast<uint32_t>(row[i] >= 0) << i;
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i) kept.bits[i] = source.load(row[i], lane);
    source.report(row);
  }
  /// What is quantized; zeros where there is no row.
  template <int kCount>
  __device__ Unit unit_of(const Kept<kCount>& kept, int i) const {
    Unit unit = widened<kFrom>(kept.bits[i]);
    if (args.dot == nullptr && (kept.rows >> i & 1) != 0) {
#pragma unroll
      for (int c = 0; c < kUnit; ++c) unit.x[c] -= mean.x[c];
    }
    return unit;
  }
  template <int kCount>
  __device__ uint32_t largest(const Kept<kCount>& kept) const {
    uint32_t top = 0;
#pragma unroll
    for (int i = 0; i < kCount; ++i) top = max(top, largest(unit_of(kept, i)));
    return top;
  }
  __device__ static uint32_t largest(const Unit& unit) {
    uint32_t top = 0;
#pragma unroll
    for (const float x : unit.x) top = max(top, magnitude(x));
    return top;
  }
  /// All lanes of a row come here.
  __device__ void store(int position, const Unit& unit, const Divider& divide) const {
    float dot = 0;
    if (args.dot != nullptr) {
#pragma unroll
      for (int c = 0; c < kUnit; ++c) dot = fmaf(unit.x[c], mean.x[c], dot);
#pragma unroll
      for (int lanes = kLanes / 2; lanes > 0; lanes /= 2) dot += __shfl_xor_sync(kAll, dot, lanes);
    }
    if (position >= source.len) return;
    const int64_t at = of_head * args.from.len + position;
    auto* const out = static_cast<uint8_t*>(args.out) + at * (kLanes * kUnit) + lane * kUnit;
    *reinterpret_cast<uint2*>(out) = bytes_of<kFormat>(unit, divide);
    if (lane != 0) return;
    args.scale[of_head * args.scale_len + position] = divide.scale();
    if (args.dot != nullptr) args.dot[at] = dot * args.dot_factor;
  }
};

/// A block of threads a piece. Grid: pieces, heads, batch.
template <int kLanes, DType kFrom, ByteFormat kFormat>
__global__ void __launch_bounds__(kThreads, 3) byte_pieces_kernel(ByteRowsArgs args) {
  constexpr int kRows = kThreads / kLanes;
  constexpr int kTurns = 128 / kRows;  // whose rows stay in registers
  const uint3 block = from_the_last();
  const int64_t head = block.y, item = block.z;
  const RowWriter<kLanes, kFrom, kFormat> rows(args, item, head);
  const int64_t map = item * args.map_batch_stride + head * args.map_head_stride;
  const int32_t* const offsets = args.offsets + map * (args.num_pieces + 1) + block.x;
  const int begin = offsets[0], end = offsets[1];
  if (begin < 0 || end < begin || end > rows.source.len) {
    *args.from.fault = 1;
    return;
  }
  const int first = begin + static_cast<int>(threadIdx.x) / kLanes;
  const int turns = (end - begin + kRows - 1) / kRows;
  Kept<kTurns> kept;
  uint32_t top = 0;
  // From the last rows to the first, which are kept for what follows.
#pragma unroll 1
  for (int turn = (turns - 1) / kTurns * kTurns; turn >= 0; turn -= kTurns) {
    rows.load(first + turn * kRows, kRows, end, kept);
    top = max(top, rows.largest(kept));
  }
  const Divider divide(byte_scale(__uint_as_float(largest_of_block(top)), args.format));
  // Whole warps go on, as rows are summed up by their lanes.
  const int behind = std::numeric_limits<int32_t>::max();
#pragma unroll 1
  for (int turn = 0; turn < turns; turn += kTurns) {
    if (turn > 0) rows.load(first + turn * kRows, kRows, end, kept);
#pragma unroll
    for (int i = 0; i < kTurns; ++i) {
      const int position = first + (turn + i) * kRows;
      rows.store(position < end ? position : behind, rows.unit_of(kept, i), divide);
    }
  }
}

constexpr int kRowTurns = kAtOnce;

/// The largest magnitude of each head. Grid: chunks of rows, heads, batch. `largest` is 0.
template <int kLanes, DType kFrom, ByteFormat kFormat>
__global__ void __launch_bounds__(kThreads) largest_of_heads_kernel(ByteRowsArgs args) {
  constexpr int kRows = kThreads / kLanes;
  const RowWriter<kLanes, kFrom, kFormat> rows(args, blockIdx.z, blockIdx.y);
  const int first = static_cast<int>(blockIdx.x * (kRows * kRowTurns) + threadIdx.x / kLanes);
  Kept<kRowTurns> kept;
  rows.load(first, kRows, rows.source.len, kept);
  const uint32_t top = largest_of_block(rows.largest(kept));
  if (threadIdx.x == 0) {
    atomicMax(reinterpret_cast<uint32_t*>(args.largest) + rows.of_head, top);
  }
}

/// Rows whose scale is that of their head, or their own. Grid: chunks of rows, heads, batch.
template <int kLanes, DType kFrom, ByteFormat kFormat>
__global__ void __launch_bounds__(kThreads, 3) byte_rows_kernel(ByteRowsArgs args) {
  constexpr int kRows = kThreads / kLanes;
  const uint3 block = from_the_last();
  const RowWriter<kLanes, kFrom, kFormat> rows(args, block.z, block.y);
  const int first = static_cast<int>(block.x * (kRows * kRowTurns) + threadIdx.x / kLanes);
  Kept<kRowTurns> kept;
  rows.load(first, kRows, rows.source.len, kept);
#pragma unroll
  for (int turn = 0; turn < kRowTurns; ++turn) {
    const Unit unit = rows.unit_of(kept, turn);
    uint32_t top = rows.largest(unit);
    if (args.largest != nullptr) {
      top = reinterpret_cast<const uint32_t*>(args.largest)[rows.of_head];
    } else {
#pragma unroll
      for (int lanes = kLanes / 2; lanes > 0; lanes /= 2) {
        top = max(top, __shfl_xor_sync(kAll, top, lanes));
      }
    }
    const Divider divide(byte_scale(__uint_as_float(top), args.format));
    rows.store(first + turn * kRows, unit, divide);
  }
}

// ---- Values -------------------------------------------------------------------------------------

constexpr int kTileKeys = 128;

/// 128 keys of a head: rows in, columns out. A thread takes four keys whose places are neighbours,
/// 8 channels of each, and so writes words. Grid: tiles of keys, heads, batch.
template <int kLanes, DType kFrom>
__global__ void __launch_bounds__(kThreads) byte_columns_kernel(ByteColumnsArgs args) {
  constexpr int kDim = kLanes * kUnit;
  constexpr int kWords = kTileKeys / 4;
  __shared__ uint32_t tile[kDim][kWords + 1];
  __shared__ float scale[kDim];
  const uint3 block = from_the_last();
  const int64_t head = block.y, item = block.z;
  const BytesFrom& from = args.from;
  const Source source(from, item, head);
  const int64_t in_head = item * from.in_heads + head / (from.heads / from.in_heads);
  const int64_t of_head = item * from.heads + head;
  const int thread = threadIdx.x;
  uint32_t top = 0;
  if (thread < kDim) top = __float_as_uint(args.largest[in_head * kDim + thread]);
  if (args.by_head) top = largest_of_block(top);
  if (thread < kDim) {
    scale[thread] = byte_scale(__uint_as_float(top), ByteFormat::e4m3);
    if (block.x == 0) args.scale[of_head * kDim + thread] = scale[thread];
  }
  __syncthreads();
  const int first = static_cast<int>(block.x * kTileKeys);
  // 8 lanes with neighbouring words, 4 with neighbouring channels: no two in one bank.
#pragma unroll
  for (int turn = 0; turn < kWords * kLanes / kThreads; ++turn) {
    const int index = turn * kThreads + thread;
    const int word = index % 8 + index / 32 % (kWords / 8) * 8;
    const int lane = index / 8 % 4 + index / (32 * (kWords / 8)) * 4;
    const int key = word / 4 * 16 + word % 4 * 2;  // that of the word's first place
    int row[4];
    uint4 bits[4];
    Unit x[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) row[i] = source.find(first + key + i % 2 + i / 2 * 8);
#pragma unroll
    for (int i = 0; i < 4; ++i) bits[i] = source.load(row[i], lane);
    source.report(row);
#pragma unroll
    for (int i = 0; i < 4; ++i) x[i] = widened<kFrom>(bits[i]);
#pragma unroll
    for (int c = 0; c < kUnit; ++c) {
      const int channel = lane * kUnit + c;
      const Divider divide(scale[channel]);
      tile[channel][word] =
          e4m3_of(divide(x[0].x[c]), divide(x[1].x[c]), divide(x[2].x[c]), divide(x[3].x[c]));
    }
  }
  __syncthreads();
  const int64_t places = byte_places(from.len);
#pragma unroll
  for (int turn = 0; turn < kDim * 8 / kThreads; ++turn) {
    const int index = turn * kThreads + thread;
    const int channel = index / 8, part = index % 8;
    const int64_t place = first + part * 16;
    if (place >= places) continue;
    const uint32_t* const words = &tile[channel][part * 4];
    auto* const out = static_cast<uint8_t*>(args.out) + (of_head * kDim + channel) * places + place;
    *reinterpret_cast<uint4*>(out) = {words[0], words[1], words[2], words[3]};
  }
}

dim3 grid_of(const BytesFrom& from, int64_t blocks) {
  return {static_cast<unsigned>(blocks), static_cast<unsigned>(from.heads),
          static_cast<unsigned>(from.batch)};
}

bool is_nothing(const BytesFrom& from) { return from.batch * from.heads * from.len == 0; }

Status check_grid(const BytesFrom& from) {
  if (const Status status = check(from); !status.ok()) return status;
  if (from.heads > 65535 || from.batch > 65535) {
    return {StatusCode::unsupported, "takes up to 65535 heads and items"};
  }
  // A block's positions behind the end are counted too.
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max() - kChunkRows;
  if (from.len > kMost || from.in_rows > kMost || std::abs(from.x.row_stride) > kMost) {
    return {StatusCode::unsupported, "takes up to 2^31 rows, and as many numbers between two"};
  }
  return {};
}

Status fill_zeros(float* data, int64_t count, CudaTarget target) {
  const auto stream = static_cast<cudaStream_t>(target.stream);
  return status_of(cudaMemsetAsync(data, 0, static_cast<size_t>(count) * sizeof(float), stream));
}

template <int kLanes, DType kFrom>
Status run(const ColumnStatsArgs& args, CudaTarget target) {
  const BytesFrom& from = args.from;
  const int64_t chunks = column_chunks(from.len);
  const int64_t numbers = from.batch * from.heads * from.dim;
  Status status;
  if (args.largest != nullptr) status = fill_zeros(args.largest, numbers, target);
  if (!status.ok()) return status;
  status = launch_kernel(column_stats_kernel<kLanes, kFrom>,
                         {grid_of(from, chunks), kThreads, 0, target.stream}, args);
  if (!status.ok() || args.mean == nullptr) return status;
  const dim3 heads(static_cast<unsigned>(from.heads), static_cast<unsigned>(from.batch));
  return launch_kernel(mean_kernel,
                       {heads, kSlices * static_cast<unsigned>(from.dim), 0, target.stream}, args,
                       chunks);
}

template <int kLanes, DType kFrom, ByteFormat kFormat>
Status run_format(const ByteRowsArgs& args, CudaTarget target) {
  const BytesFrom& from = args.from;
  if (args.offsets != nullptr) {
    if (args.num_pieces == 0) return {};
    return launch_kernel(byte_pieces_kernel<kLanes, kFrom, kFormat>,
                         {grid_of(from, args.num_pieces), kThreads, 0, target.stream}, args);
  }
  constexpr int64_t kRows = kThreads / kLanes * kRowTurns;
  const Grid grid = {grid_of(from, (from.len + kRows - 1) / kRows), kThreads, 0, target.stream};
  if (args.largest != nullptr) {
    Status status = fill_zeros(args.largest, from.batch * from.heads, target);
    if (status.ok())
      status = launch_kernel(largest_of_heads_kernel<kLanes, kFrom, kFormat>, grid, args);
    if (!status.ok()) return status;
  }
  return launch_kernel(byte_rows_kernel<kLanes, kFrom, kFormat>, grid, args);
}

template <int kLanes, DType kFrom>
Status run(const ByteRowsArgs& args, CudaTarget target) {
  return args.format == ByteFormat::e4m3
             ? run_format<kLanes, kFrom, ByteFormat::e4m3>(args, target)
             : run_format<kLanes, kFrom, ByteFormat::int8>(args, target);
}

template <int kLanes, DType kFrom>
Status run(const ByteColumnsArgs& args, CudaTarget target) {
  const int64_t tiles = (byte_places(args.from.len) + kTileKeys - 1) / kTileKeys;
  return launch_kernel(byte_columns_kernel<kLanes, kFrom>,
                       {grid_of(args.from, tiles), kThreads, 0, target.stream}, args);
}

template <DType kFrom, typename Args>
Status run_type(const Args& args, CudaTarget target) {
  return args.from.dim == 128 ? run<16, kFrom>(args, target) : run<8, kFrom>(args, target);
}

template <typename Args>
Status dispatch(const Args& args, CudaTarget target) {
  if (const Status status = check_grid(args.from); !status.ok()) return status;
  if (is_nothing(args.from)) return {};
  return args.from.x.dtype == DType::bf16 ? run_type<DType::bf16>(args, target)
                                          : run_type<DType::f16>(args, target);
}

}  // namespace

Status column_stats_cuda(const ColumnStatsArgs& args, CudaTarget target) {
  return dispatch(args, target);
}

Status byte_rows_cuda(const ByteRowsArgs& args, CudaTarget target) {
  return dispatch(args, target);
}

Status byte_columns_cuda(const ByteColumnsArgs& args, CudaTarget target) {
  return dispatch(args, target);
}

}  // namespace fovea::kernels
