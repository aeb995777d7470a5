// Shapes of the forward kernel of compute capability 9.0 beside each other.
//
//   sm90_shapes [TEXT [once]]
//
// Of those whose line has the text, all by default; `once`: a single run of each, for a profiler.
// TFLOP/s of dense attention on random numbers, in bf16 and in 8-bit numbers. All shapes of a
// problem run in turns, in this order and in the opposite one, each warmed up by itself.
#include <cstdio>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "kernels/attention/launch_bytes_sm90.cuh"
#include "kernels/attention/launch_sm90.cuh"
#include "tests/bench/power_meter.h"
#include "tests/bench/sm90/arrays.h"
#include "tests/bench/sm90/stopwatch.h"

namespace {

using namespace fovea::kernels;
using namespace fovea::kernels::sm90;

/// A problem in bf16 and in bytes.
struct Operands {
  CudaAttentionArgs args;
  EightBitOperands bytes;
};

struct Contestant {
  std::string name;
  Status (*run)(const Operands& operands);
  std::vector<double> rates = {};
  double watts = 0;  // in the second pass
};

template <typename Shape>
Contestant contestant_of() {
  char name[64];
  std::snprintf(name, sizeof name, "%d x %d, %d stages%s", Shape::kQueries, Shape::kKeys,
                Shape::kStages, Shape::kHold ? ", hold" : "");
  return {name,
          [](const Operands& operands) { return launch<Shape, Type::bf16>(operands.args, {}); }};
}

template <int kDim, int kGroups, int kKeys, int kStages, bool kHold>
Contestant contestant() {
  return contestant_of<ForwardShape<kDim, kGroups, kKeys, kStages, 0, kHold>>();
}

template <typename Shape>
Contestant contestant_of_bytes() {
  char name[64];
  std::snprintf(name, sizeof name, "%s, %d x %d", Shape::kLogits == Type::s8 ? "int8" : "e4m3",
                Shape::kQueries, Shape::kKeys);
  return {name, [](const Operands& operands) {
            return launch_bytes<Shape>(operands.args, operands.bytes, {});
          }};
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

Operands operands_of(const Problem& p, Arrays& arrays) {
  const int64_t size = p.batch * p.heads * p.len * p.dim;
  const auto tensor = [&] {
    void* const data =
        arrays.take<__nv_bfloat16>(size, [](float x) { return __float2bfloat16(x); });
    return MutableHeadRows{data, DType::bf16, p.heads * p.len * p.dim, p.len * p.dim, p.dim};
  };
  const auto readable = [](const MutableHeadRows& x) {
    return HeadRows{x.data, x.dtype, x.batch_stride, x.head_stride, x.row_stride};
  };
  Operands out;
  CudaAttentionArgs& args = out.args;
  args.batch = p.batch, args.heads = args.kv_heads = p.heads;
  args.q_len = args.kv_len = p.len, args.dim = p.dim;
  args.q = readable(tensor()), args.k = readable(tensor()), args.v = readable(tensor());
  args.out = tensor();
  args.sm_scale = 1 / std::sqrt(static_cast<double>(p.dim));
  // As integers these bytes are random ones of 40 to 75 and their negatives.
  const int64_t rows = p.batch * p.heads * byte_places(p.len);
  const auto bytes = [&] {
    return arrays.take<uint8_t>(rows * p.dim, [](float x) { return to_e4m3(x); });
  };
  const auto ones = [&](int64_t count) {
    return arrays.take<float>(count, [](float) { return 1; });
  };
  out.bytes.q = bytes(), out.bytes.k = bytes(), out.bytes.v = bytes();
  out.bytes.q_scale = ones(rows), out.bytes.k_scale = ones(rows);
  out.bytes.v_scale = ones(p.batch * p.heads * p.dim);
  return out;
}

void measure(const Problem& p, std::vector<Contestant> contestants, const Wish& wish) {
  const std::string problem = name_of(p);
  std::erase_if(contestants, [&](const Contestant& x) {
    return (problem + " | " + x.name).find(wish.text) == std::string::npos;
  });
  if (contestants.empty()) return;
  Arrays arrays;
  const Operands operands = operands_of(p, arrays);
  const double products = 4.0 * static_cast<double>(p.batch * p.heads * p.dim) *
                          static_cast<double>(p.len) * static_cast<double>(p.len);
  const fovea::bench::PowerMeter meter;
  if (wish.once) {
    for (const Contestant& now : contestants) static_cast<void>(now.run(operands));
    cudaDeviceSynchronize();
  }
  for (int pass = 0; pass < (wish.once ? 0 : 2); ++pass) {
    for (size_t i = 0; i < contestants.size(); ++i) {
      Contestant& now = contestants[pass == 0 ? i : contestants.size() - 1 - i];
      double seconds = 0;
      now.watts = meter.watts_during(
          [&] { seconds = seconds_of(now.name.c_str(), [&] { return now.run(operands); }); });
      now.rates.push_back(products / seconds * 1e-12);
    }
  }
  for (const Contestant& now : contestants) {
    if (wish.once) break;
    std::printf("%s | %-26s | %6.1f %6.1f | %3.0f W\n", problem.c_str(), now.name.c_str(),
                now.rates[0], now.rates[1], now.watts);
  }
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  const Wish wish{argc > 1 ? argv[1] : "", argc > 2};
  using E4m3 = BytesShape<128, Type::e4m3, false, false>;
  using Int8 = BytesShape<128, Type::s8, false, false>;
  const std::vector<Contestant> of_128 = {
      contestant<128, 3, 80, 4, false>(), contestant<128, 3, 80, 4, true>(),
      contestant<128, 3, 64, 4, true>(),  contestant<128, 2, 128, 2, false>(),
      contestant<128, 2, 128, 2, true>(), contestant_of_bytes<E4m3>(),
      contestant_of_bytes<Int8>()};
  const std::vector<Contestant> of_64 = {
      contestant<64, 3, 128, 4, false>(), contestant<64, 3, 128, 4, true>(),
      contestant<64, 3, 96, 4, true>(), contestant<64, 2, 128, 4, true>(),
      contestant<64, 2, 160, 3, true>()};
  measure({1, 12, 32760, 128}, of_128, wish);
  measure({1, 24, 4608, 128}, of_128, wish);
  measure({2, 30, 17776, 64}, of_64, wish);
  return 0;
}
