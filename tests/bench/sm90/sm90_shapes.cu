// Shapes of the forward kernel of compute capability 9.0 beside each other.
//
//   sm90_shapes [TEXT [once]]
//
// Of those whose line has the text, all by default; `once`: a single run of each, for a profiler.
// TFLOP/s of dense attention in bf16 on random numbers. All shapes of a problem run in turns, in
// this order and in the opposite one, each warmed up by itself.
#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include "kernels/attention/launch_sm90.cuh"
#include "tests/bench/sm90/stopwatch.h"

namespace {

using namespace fovea::kernels;
using namespace fovea::kernels::sm90;

struct Contestant {
  std::string name;
  Status (*run)(const CudaAttentionArgs&, CudaTarget);
  std::vector<double> rates = {};
};

template <int kDim, int kGroups, int kKeys, int kStages, bool kHold>
Contestant contestant() {
  char name[64];
  std::snprintf(name, sizeof name, "%d x %d, %d stages%s", 64 * kGroups, kKeys, kStages,
                kHold ? ", hold" : "");
  return {name, launch<ForwardShape<kDim, kGroups, kKeys, kStages, 0, kHold>, Type::bf16>};
}

struct Problem {
  int64_t batch, heads, len, dim;
};

std::string name_of(const Problem& p) {
  char name[64];
  std::snprintf(name, sizeof name, "%d x %d x %d x %d", static_cast<int>(p.batch),
                static_cast<int>(p.heads), static_cast<int>(p.len), static_cast<int>(p.dim));
  return name;
}

struct Wish {
  std::string text;
  bool once = false;
};

void measure(const Problem& p, std::vector<Contestant> contestants, const Wish& wish) {
  const std::string problem = name_of(p);
  std::erase_if(contestants, [&](const Contestant& x) {
    return (problem + " | " + x.name).find(wish.text) == std::string::npos;
  });
  if (contestants.empty()) return;
  const int64_t size = p.batch * p.heads * p.len * p.dim;
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<__nv_bfloat16> drawn(1'000'003);  // each of them used some times
  for (auto& value : drawn) value = __float2bfloat16(normal(random));
  std::vector<__nv_bfloat16> values(size);
  void* data[4];
  for (void*& x : data) {
    const size_t shift = random() % drawn.size();
    for (int64_t i = 0; i < size; ++i) values[i] = drawn[(i + shift) % drawn.size()];
    cudaMalloc(&x, size * 2);
    cudaMemcpy(x, values.data(), size * 2, cudaMemcpyHostToDevice);
  }
  CudaAttentionArgs args{.batch = p.batch, .heads = p.heads, .kv_heads = p.heads};
  args.q_len = args.kv_len = p.len, args.dim = p.dim;
  const auto view = [&](const void* x) {
    return HeadRows{x, DType::bf16, p.heads * p.len * p.dim, p.len * p.dim, p.dim};
  };
  args.q = view(data[0]), args.k = view(data[1]), args.v = view(data[2]);
  args.out = {data[3], DType::bf16, args.q.batch_stride, args.q.head_stride, args.q.row_stride};
  args.sm_scale = 1 / std::sqrt(static_cast<double>(p.dim));
  const double products = 4.0 * static_cast<double>(size) * static_cast<double>(p.len);
  if (wish.once) {
    for (const Contestant& now : contestants) static_cast<void>(now.run(args, {}));
    cudaDeviceSynchronize();
  }
  for (int pass = 0; pass < (wish.once ? 0 : 2); ++pass) {
    for (size_t i = 0; i < contestants.size(); ++i) {
      Contestant& now = contestants[pass == 0 ? i : contestants.size() - 1 - i];
      now.rates.push_back(products /
                          seconds_of(now.name.c_str(), [&] { return now.run(args, {}); }) * 1e-12);
    }
  }
  for (const Contestant& now : contestants) {
    if (wish.once) break;
    std::printf("%s | %-26s | %6.1f %6.1f\n", problem.c_str(), now.name.c_str(), now.rates[0],
                now.rates[1]);
  }
  std::fflush(stdout);
  for (void* x : data) cudaFree(x);
}

}  // namespace

int main(int argc, char** argv) {
  const Wish wish{argc > 1 ? argv[1] : "", argc > 2};
  const std::vector<Contestant> of_128 = {
      contestant<128, 3, 80, 4, false>(),  contestant<128, 3, 80, 4, true>(),
      contestant<128, 3, 80, 3, false>(),  contestant<128, 3, 64, 4, true>(),
      contestant<128, 2, 128, 2, false>(), contestant<128, 2, 128, 2, true>(),
      contestant<128, 2, 160, 2, true>()};
  const std::vector<Contestant> of_64 = {
      contestant<64, 3, 128, 4, false>(), contestant<64, 3, 128, 4, true>(),
      contestant<64, 3, 96, 4, true>(), contestant<64, 2, 128, 4, true>(),
      contestant<64, 2, 160, 3, true>()};
  measure({1, 12, 32760, 128}, of_128, wish);
  measure({1, 24, 4608, 128}, of_128, wish);
  measure({2, 30, 17776, 64}, of_64, wish);
  return 0;
}
