// Times the products of kernels/attention/product.h beside LibTorch's at::matmul, and beside the
// rate of fused multiply-adds that this processor reaches in registers:
//
//   cmake --build build --target product_bench
//   OMP_NUM_THREADS=1 build/tests/product_bench [--threads N]
//
// The two are timed in turns, the best of several rounds counts: other programs only take time.

#include <cstdio>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

#include "kernels/attention/product.h"
#include "tests/bench/peaks.h"

namespace fovea::kernels {
namespace {

struct Case {
  const char* name;
  int64_t batch, rows, inner, columns;
  bool turned_a, turned_b;  ///< whether it lies in memory as the transposed matrix
};

void run(const Case& c, double peak) {
  const auto draw = [&](int64_t rows, int64_t columns, bool turned) {
    if (turned) return at::randn({c.batch, columns, rows}).transpose(1, 2);
    return at::randn({c.batch, rows, columns});
  };
  const at::Tensor a = draw(c.rows, c.inner, c.turned_a), b = draw(c.inner, c.columns, c.turned_b);
  at::Tensor ours = at::empty({c.batch, c.rows, c.columns}), theirs = at::empty_like(ours);
  std::vector<ProductItem> items;
  for (int64_t i = 0; i < c.batch; ++i) {
    items.push_back({a[i].const_data_ptr<float>(), b[i].const_data_ptr<float>(),
                     ours[i].mutable_data_ptr<float>(), c.rows, c.inner});
  }
  ProductArgs args;
  args.items = items.data(), args.num_items = c.batch, args.columns = c.columns;
  args.a_row_stride = a.stride(1), args.a_column_stride = a.stride(2);
  args.b_row_stride = b.stride(1), args.b_column_stride = b.stride(2);
  args.c_row_stride = c.columns;
  const Parallel parallel{run_on_threads, nullptr, at::get_num_threads()};
  const int64_t bytes = product_workspace_bytes(args, parallel.threads);
  const at::Tensor memory = at::empty({bytes + 64}, at::kByte);
  auto* data = memory.mutable_data_ptr<uint8_t>();
  data += (64 - reinterpret_cast<uintptr_t>(data) % 64) % 64;
  double own = 1e30, other = 1e30;
  for (int i = 0; i < 12; ++i) {
    own = std::min(own, seconds([&] {
                     const Status status = product_cpu(args, {data, bytes}, parallel, best_isa());
                     TORCH_CHECK(status.ok(), status.message);
                   }));
    other = std::min(other, seconds([&] { at::matmul_out(theirs, a, b); }));
  }
  const double flops = 2e-9 * static_cast<double>(c.batch * c.rows * c.inner * c.columns);
  const double distance = ((ours - theirs).norm() / theirs.norm()).item<double>();
  std::printf("| %-34s | %4ld x [%ld x %ld] [%ld x %ld] | %6.1f | %6.1f | %.2f | %.2f | %.0e |\n",
              c.name, c.batch, c.rows, c.inner, c.inner, c.columns, flops / other, flops / own,
              other / own, flops / own / peak, distance);
}

}  // namespace
}  // namespace fovea::kernels

int main(int argc, char** argv) {
  using namespace fovea::kernels;
  const c10::InferenceMode guard;
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  for (int i = 1; i + 1 < argc; ++i) {
    if (std::string(argv[i]) == "--threads") at::set_num_threads(std::stoi(argv[i + 1]));
  }
  at::set_num_threads(at::get_num_threads());
  const double peak = measure_peaks(best_isa(), at::get_num_threads()).fp32;
  std::printf("%s, %d threads, multiply-adds in registers: %.1f GF/s\n\n", isa_name(best_isa()),
              at::get_num_threads(), peak);
  std::printf("| product | sizes | matmul GF/s | ours GF/s | ours / matmul | of peak | apart |\n");
  std::printf("| --- | --- | --- | --- | --- | --- | --- |\n");
  for (const Case& c :
       std::vector<Case>{{"state of all keys", 1, 128, 13312, 129, true, false},
                         {"state of all keys, 8 heads", 8, 128, 13312, 129, true, false},
                         {"queries with it", 1, 13312, 128, 129, false, false},
                         {"projection", 1, 13312, 128, 128, false, true},
                         {"states of blocks", 104, 128, 128, 129, true, false},
                         {"queries of blocks", 104, 128, 128, 129, false, false},
                         {"gradient of keys", 104, 128, 129, 128, false, true},
                         {"skipped blocks times states", 1, 104, 104, 128 * 129, false, false},
                         {"pooled values", 8, 104, 104, 128, false, false}}) {
    run(c, peak);
  }
  return 0;
}
