// Shapes of the backward kernels of compute capability 9.0 beside each other.
//
//   sm90_backward_shapes
//
// TFLOP/s in bf16 on random numbers: of the whole backward pass, of its joint form and of its two
// kernels, with what comes before and behind them, those of five products of queries and keys, of
// one of the two alone those of the products that it makes, three and four. All of
// a problem run in turns, in this order and in the opposite one, each warmed up by itself.
#include <cstdio>
#include <string>
#include <vector>

#include "kernels/attention/launch_backward_joint_sm90.cuh"
#include "tests/bench/sm90/stopwatch.h"

namespace {

using namespace fovea::kernels;
using namespace fovea::kernels::sm90;

__device__ uint32_t hash(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return static_cast<uint32_t>(x ^ (x >> 31));
}

/// Numbers of variance 1, nearly normal: sums of four bytes.
__global__ void fill_kernel(__nv_bfloat16* data, int64_t size, uint64_t seed) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= size) return;
  const uint32_t x = hash(i + (seed << 40));
  const auto sum = static_cast<float>((x & 255) + (x >> 8 & 255) + (x >> 16 & 255) + (x >> 24));
  data[i] = __float2bfloat16((sum - 510) / 147.8f);
}

__global__ void choose_kernel(uint8_t* classes, int64_t size, float density) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < size) classes[i] = static_cast<float>(hash(i)) < density * 4294967296.0f;
}

__global__ void offsets_kernel(int32_t* offsets, int blocks, int size, int len) {
  for (int i = threadIdx.x; i <= blocks; i += blockDim.x) offsets[i] = min(i * size, len);
}

unsigned blocks_of(int64_t threads) { return static_cast<unsigned>((threads + 255) / 256); }

/// Memory of the device that is given back at the end.
class Pool {
 public:
  ~Pool() {
    for (void* x : all_) cudaFree(x);
  }
  template <typename T>
  T* take(int64_t count) {
    void* out = nullptr;
    if (cudaMalloc(&out, count * sizeof(T)) != cudaSuccess) std::printf("out of memory\n");
    all_.push_back(out);
    return static_cast<T*>(out);
  }

 private:
  std::vector<void*> all_;
};

struct Contestant {
  std::string name;
  int products;  // of queries and keys
  Status (*run)(const CudaAttentionBackwardArgs&, CudaTarget);
  std::vector<double> rates = {};
};

template <typename Shape>
Contestant contestant() {
  char name[64];
  std::snprintf(name, sizeof name, "%s, %d x %d, %d stages%s", Shape::kColumns ? "columns" : "rows",
                Shape::kOwn, Shape::kOthers, Shape::kStages, Shape::kHold ? ", hold" : "");
  return {name, Shape::kColumns ? 4 : 3, launch_backward<Shape, Type::bf16>};
}

template <typename Shape>
Contestant joint_contestant() {
  char name[64];
  std::snprintf(name, sizeof name, "joint, %d x %d, %d stages, %d dQ, %d apart%s", Shape::kOwn,
                Shape::kOthers, Shape::kStages, Shape::kPlaces, Shape::kApart,
                Shape::kAhead ? ", ahead" : "");
  return {name, 5, launch_joint<Shape, Type::bf16>};
}

struct Problem {
  int64_t batch, heads, len, dim;
  float density = 1;  // of random blocks of 128
};

/// Lists of rows, or of columns, of spans of at most so many.
TileLists make_lists(const Problem& p, Pool& pool, const uint8_t* classes, AttentionTile tile,
                     bool transposed) {
  constexpr int kBlock = 128;
  const int64_t maps = p.batch * p.heads, blocks = (p.len + kBlock - 1) / kBlock;
  auto* const offsets = pool.take<int32_t>(blocks + 1);
  offsets_kernel<<<1, 256>>>(offsets, static_cast<int>(blocks), kBlock, static_cast<int>(p.len));
  TileListsArgs args;
  args.classes = classes, args.transposed = transposed;
  args.q_offsets = args.kv_offsets = offsets;
  args.maps = maps;
  args.num_q_blocks = args.num_kv_blocks = blocks;
  args.q_len = args.kv_len = static_cast<int32_t>(p.len);
  args.tile_queries = tile.queries, args.span_keys = tile.keys;
  args.tiles_per_map = most_tiles(p.len, blocks, tile.queries);
  args.capacity = p.len / tile.keys + blocks;
  args.tiles = pool.take<QueryTile>(maps * args.tiles_per_map);
  args.counts = pool.take<int32_t>(maps * blocks);
  args.spans = pool.take<KeySpan>(maps * blocks * args.capacity);
  args.fault = pool.take<int32_t>(1);
  if (const Status status = tile_lists_cuda(args, {}); !status.ok()) {
    std::printf("FAILED lists: %s\n", status.message);
  }
  return {args.tiles, args.counts,   args.spans, args.tiles_per_map,
          blocks,     args.capacity, p.heads,    1};
}

CudaAttentionBackwardArgs make_args(const Problem& p, Pool& pool) {
  const int64_t size = p.batch * p.heads * p.len * p.dim;
  uint64_t seed = 0;
  const auto tensor = [&] {
    auto* const data = pool.take<__nv_bfloat16>(size);
    fill_kernel<<<blocks_of(size), 256>>>(data, size, ++seed);
    return MutableHeadRows{data, DType::bf16, p.heads * p.len * p.dim, p.len * p.dim, p.dim};
  };
  CudaAttentionBackwardArgs args;
  CudaAttentionArgs& f = args.forward;
  f.batch = p.batch, f.heads = f.kv_heads = p.heads;
  f.q_len = f.kv_len = p.len, f.dim = p.dim;
  f.sm_scale = 1 / std::sqrt(static_cast<double>(p.dim));
  f.q = readable(tensor()), f.k = readable(tensor()), f.v = readable(tensor());
  f.out = tensor(), args.grad_out = readable(tensor());
  args.grad_q = tensor(), args.grad_k = tensor(), args.grad_v = tensor();
  f.lse = pool.take<float>(size / p.dim);
  if (p.density < 1) {
    const int64_t blocks = (p.len + 127) / 128, pairs = p.batch * p.heads * blocks * blocks;
    auto* const classes = pool.take<uint8_t>(pairs);
    choose_kernel<<<blocks_of(pairs), 256>>>(classes, pairs, p.density);
    f.tile = sm90_tile(128, 128), args.column_tile = sm90_column_tile(128, 128);
    f.lists = make_lists(p, pool, classes, f.tile, false);
    args.columns = make_lists(p, pool, classes, args.column_tile, true);
    args.columns_on_grid = true;
  }
  int64_t bytes = sm90_backward_workspace_bytes(args);
  for (const int step : {64, 80}) bytes = std::max(bytes, JointLayout(args, step).bytes);
  args.workspace = pool.take<float>(bytes / sizeof(float) + 1);
  const Status status = block_sparse_sm90(f, {});
  if (!status.ok()) std::printf("FAILED: %s\n", status.message);
  return args;
}

/// All gradients from the two kernels, which have the same numbers of queries made twice.
Status two_kernels(const CudaAttentionBackwardArgs& args, CudaTarget target) {
  CudaAttentionBackwardArgs rows = args, columns = args;
  columns.grad_q.data = rows.grad_k.data = rows.grad_v.data = nullptr;
  const Status status = block_sparse_backward_sm90(rows, target);
  return status.ok() ? block_sparse_backward_sm90(columns, target) : status;
}

void measure(const Problem& p, std::vector<Contestant> contestants) {
  Pool pool;
  const CudaAttentionBackwardArgs args = make_args(p, pool);
  contestants.insert(contestants.begin(),
                     {{"whole", 5, block_sparse_backward_sm90}, {"two kernels", 5, two_kernels}});
  const double product = 2.0 * p.density * static_cast<double>(p.batch * p.heads * p.dim) *
                         static_cast<double>(p.len) * static_cast<double>(p.len);
  for (int pass = 0; pass < 2; ++pass) {
    for (size_t i = 0; i < contestants.size(); ++i) {
      Contestant& now = contestants[pass == 0 ? i : contestants.size() - 1 - i];
      // One of the two kernels finds the numbers of queries in the workspace.
      if (now.products < 5 && !two_kernels(args, {}).ok()) std::printf("FAILED\n");
      now.rates.push_back(now.products * product /
                          seconds_of(now.name.c_str(), [&] { return now.run(args, {}); }) * 1e-12);
    }
  }
  for (const Contestant& now : contestants) {
    std::printf("%lld x %lld x %lld x %lld, density %.2f | %-38s | %6.1f %6.1f\n",
                static_cast<long long>(p.batch), static_cast<long long>(p.heads),
                static_cast<long long>(p.len), static_cast<long long>(p.dim), p.density,
                now.name.c_str(), now.rates[0], now.rates[1]);
  }
  std::fflush(stdout);
}

template <int kDim, int kGroups, int kOthers, int kStages, int kPieces = 0>
std::vector<Contestant> rows() {
  return {contestant<BackwardShape<false, kDim, kGroups, kOthers, kStages, kPieces, false>>(),
          contestant<BackwardShape<false, kDim, kGroups, kOthers, kStages, kPieces, true>>()};
}
template <int kDim, int kGroups, int kOthers, int kStages, int kPieces = 0>
std::vector<Contestant> columns() {
  return {contestant<BackwardShape<true, kDim, kGroups, kOthers, kStages, kPieces>>()};
}

template <int kOthers, int kStages, bool kAhead, int kApart, int kPieces = 0, int kPlaces = 1>
std::vector<Contestant> joint() {
  return {joint_contestant<JointShape<128, kOthers, kStages, kAhead, kApart, kPieces, kPlaces>>()};
}

/// What comes before the joint kernel of lists: as many TFLOP/s as if it were all.
Status schedule_alone(const CudaAttentionBackwardArgs& args, CudaTarget target) {
  using Shape = JointShape<128, 64, 2, true, 4, 1, 2>;
  JointGrid<Shape> grid(args);
  if (const Status status = grid.find_blocks(target.device); !status.ok()) return status;
  BackwardSchedule schedule = schedule_for<Shape>(args, grid);
  JointLayout(args, Shape::kOthers).place(args, schedule);
  return schedule_backward(schedule, target);
}

std::vector<Contestant> all(const std::vector<std::vector<Contestant>>& parts) {
  std::vector<Contestant> out;
  for (const auto& part : parts) out.insert(out.end(), part.begin(), part.end());
  return out;
}

}  // namespace

int main() {
  const std::vector<Contestant> dense_128 =
      all({rows<128, 2, 128, 2>(), rows<128, 3, 64, 3>(), rows<128, 2, 96, 3>(),
           columns<128, 2, 64, 4>(), columns<128, 2, 64, 3>(), joint<64, 3, true, 1>(),
           joint<64, 3, true, 2>(), joint<64, 3, true, 4>(), joint<64, 2, true, 2>(),
           joint<64, 2, true, 2, 0, 2>(), joint<64, 3, false, 2>(), joint<80, 2, false, 2>()});
  const std::vector<Contestant> dense_64 = all({rows<64, 2, 128, 4>(), rows<64, 3, 96, 4>(),
                                                columns<64, 2, 64, 6>(), columns<64, 2, 96, 4>()});
  measure({1, 12, 32760, 128}, dense_128);
  measure({1, 24, 4608, 128}, dense_128);
  measure({2, 30, 17776, 64}, dense_64);
  const std::vector<Contestant> lists_128 = all({rows<128, 2, 128, 2, 1>(),
                                                 columns<128, 2, 64, 4, 1>(),
                                                 joint<64, 3, true, 1, 1>(),
                                                 joint<64, 3, true, 2, 1>(),
                                                 joint<64, 3, true, 4, 1>(),
                                                 joint<64, 3, true, 8, 1>(),
                                                 joint<64, 2, true, 4, 1>(),
                                                 joint<64, 2, true, 4, 1, 2>(),
                                                 joint<64, 2, true, 8, 1, 2>(),
                                                 joint<64, 3, false, 4, 1>(),
                                                 {{"schedule of lists alone", 5, schedule_alone}}});
  measure({1, 12, 32760, 128, 0.25f}, lists_128);
  measure({1, 12, 32760, 128, 0.1f}, lists_128);
  measure({1, 24, 4608, 128, 0.25f}, lists_128);
  measure({1, 40, 75648, 128, 0.1f}, lists_128);
  return 0;
}
