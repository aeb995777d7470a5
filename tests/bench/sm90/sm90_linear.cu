// What queries make of linear states: the kernel of compute capability 9.0a beside that of 8.0.
//
//   sm90_linear [TEXT [once]]
//
// Of those whose line has the text, all by default; `once`: a single run of each, for a profiler.
// Milliseconds, and GB/s of what is read and written at least; then the same in the opposite
// order, as the kernel before decides the clock. Tokens lie before heads.
#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include <cuda_bf16.h>

#include "kernels/attention/linear_blocks.h"
#include "tests/bench/sm90/arrays.h"
#include "tests/bench/sm90/stopwatch.h"

namespace {

using namespace fovea::kernels;

struct Problem {
  int64_t heads, len, dim, block;
};

struct Line {
  std::string name;
  double bytes;
  LinearOutArgs args;
  Status (*run)(const LinearOutArgs& args, CudaTarget target);
  std::vector<double> seconds = {};
};

LinearOutArgs args_of(const Problem& p, Arrays& arrays) {
  const int64_t rows = p.heads * p.len * p.dim, blocks = (p.len + p.block - 1) / p.block;
  const auto numbers = [&](int64_t count) {
    return arrays.take<__nv_bfloat16>(count, [](float x) { return __float2bfloat16(x); });
  };
  const auto rows_at = [&](auto view) {
    view.data = numbers(rows), view.dtype = DType::bf16;
    view.batch_stride = rows, view.head_stride = p.dim, view.row_stride = p.heads * p.dim;
    return view;
  };
  int32_t next = 0;
  LinearOutArgs args;
  args.batch = 1, args.heads = p.heads, args.dim = p.dim;
  args.q = rows_at(HeadRows{}), args.added = rows_at(HeadRows{});
  args.out = rows_at(MutableHeadRows{});
  args.queries.offsets = arrays.make<int32_t>(blocks + 1, [&] {
    const auto end = static_cast<int32_t>(p.len);
    return std::min(end, next++ * static_cast<int32_t>(p.block));
  });
  args.queries.blocks = blocks, args.queries.len = p.len;
  args.queries.most_rows = static_cast<int32_t>(p.block);
  args.states = numbers(p.heads * blocks * p.dim * p.dim);
  args.totals = arrays.take<float>(p.heads * blocks * p.dim, [](float x) { return 1 + x * x; });
  args.epsilon = 1e-5f;
  args.weight = numbers(p.dim * p.dim), args.bias = numbers(p.dim);
  args.bias_type = DType::bf16;
  return args;
}

void measure(const Problem& p, const std::string& text, bool once) {
  Arrays arrays;
  const LinearOutArgs projected = args_of(p, arrays);
  LinearOutArgs plain = projected;
  plain.weight = plain.bias = nullptr;
  const int64_t matrices = p.heads * projected.queries.blocks;
  const auto bytes =
      static_cast<double>(6 * p.heads * p.len * p.dim + matrices * (2 * p.dim * p.dim + 4 * p.dim));
  const std::string problem = std::to_string(p.heads) + " x " + std::to_string(p.len) + " x " +
                              std::to_string(p.dim) + ", " + std::to_string(p.block) + "-blocks";
  std::vector<Line> lines = {{problem + " | projected, sm80", bytes, projected, &linear_out_sm80},
                             {problem + " | projected, sm90", bytes, projected, &linear_out_sm90},
                             {problem + " | plain, sm80", bytes, plain, &linear_out_sm80},
                             {problem + " | plain, sm90", bytes, plain, &linear_out_sm90}};
  std::erase_if(lines, [&](const Line& x) { return x.name.find(text) == std::string::npos; });
  for (int pass = 0; pass < 2; ++pass) {
    for (size_t i = 0; i < lines.size(); ++i) {
      Line& now = lines[pass == 0 ? i : lines.size() - 1 - i];
      if (once) {
        if (pass == 0) static_cast<void>(now.run(now.args, {}));
        continue;
      }
      now.seconds.push_back(seconds_of(now.name.c_str(), [&] { return now.run(now.args, {}); }));
    }
  }
  cudaDeviceSynchronize();
  for (const Line& now : lines) {
    if (once) break;
    std::printf("%-46s | %.4f %.4f ms | %5.0f %5.0f GB/s\n", now.name.c_str(), now.seconds[0] * 1e3,
                now.seconds[1] * 1e3, now.bytes / now.seconds[0] * 1e-9,
                now.bytes / now.seconds[1] * 1e-9);
  }
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  const std::string text = argc > 1 ? argv[1] : "";
  for (const int64_t block : {128, 64}) {
    measure({12, 32760, 128, block}, text, argc > 2);
    measure({30, 17776, 64, block}, text, argc > 2);
  }
  return 0;
}
