// Attention kernels of compute capability 9.0 beside cuDNN and FlashAttention of LibTorch.
//
//   sm90_bench [--quick]
//
// TFLOP/s of bf16 with random normal numbers; of lists those of the listed pairs. Contestants of a
// case run in turns, once in this and once in the opposite order, each warmed up by itself: the
// kernel before decides the clock. The last column is the mean over cuDNN's mean.
#include <chrono>
#include <cstdio>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

#include "kernels/attention/block_sparse_sm90.h"

namespace {

using namespace fovea::kernels;

struct Case {
  int64_t batch, heads, len, dim;
  std::vector<double> densities;  // of random blocks, beside dense
};

struct Contestant {
  std::string name;
  double products;  // floating-point operations of a call
  std::function<void()> run;
};

// Waits for the device: a copy to the host does, without CUDA's headers.
void synchronize(const at::Tensor& x) { x.flatten().slice(0, 0, 1).cpu(); }

double seconds_of(const Contestant& contestant, const at::Tensor& x, double duration) {
  using Clock = std::chrono::steady_clock;
  const auto since = [](Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
  };
  contestant.run();
  synchronize(x);
  auto start = Clock::now();
  contestant.run();
  synchronize(x);
  const int runs = std::max(1, static_cast<int>(duration / since(start)));
  double best = 0;
  for (int pass = 0; pass < 2; ++pass) {  // the first warms up
    start = Clock::now();
    for (int i = 0; i < runs; ++i) contestant.run();
    synchronize(x);
    best = since(start) / runs;
  }
  return best;
}

HeadRows view(const at::Tensor& x) {
  return {x.const_data_ptr(), DType::bf16, x.stride(0), x.stride(1), x.stride(2)};
}

// Lists of whole blocks at random, the same number in each row of tiles.
struct Lists {
  at::Tensor ptr, spans;
  double density;

  Lists(const Case& c, double density, at::Device device) {
    const AttentionTile tile = sm90_tile(c.dim, false);
    const int64_t rows = (c.len + tile.queries - 1) / tile.queries;
    const int64_t blocks = (c.len + tile.keys - 1) / tile.keys;
    const auto kept = std::max<int64_t>(1, std::llround(density * blocks));
    std::vector<int32_t> begins, entries;
    std::vector<int32_t> order(blocks);
    std::mt19937 random(1);
    int64_t keys = 0;
    for (int64_t row = 0; row < c.heads * rows; ++row) {
      if (row % rows == 0 && row > 0) begins.push_back(static_cast<int32_t>(entries.size() / 2));
      begins.push_back(static_cast<int32_t>(entries.size() / 2));
      for (int64_t i = 0; i < blocks; ++i) order[i] = static_cast<int32_t>(i);
      std::shuffle(order.begin(), order.end(), random);
      std::sort(order.begin(), order.begin() + kept);
      for (int64_t i = 0; i < kept; ++i) {
        const int64_t begin = order[i] * static_cast<int64_t>(tile.keys);
        entries.push_back(static_cast<int32_t>(begin));
        entries.push_back(static_cast<int32_t>(std::min<int64_t>(tile.keys, c.len - begin)));
        keys += entries.back();
      }
    }
    begins.push_back(static_cast<int32_t>(entries.size() / 2));
    ptr = at::tensor(begins, at::kInt).to(device);
    spans = at::tensor(entries, at::kInt).to(device);
    this->density = static_cast<double>(keys) / static_cast<double>(c.heads * rows * c.len);
  }
};

void measure(const Case& c, double duration) {
  const auto options = at::TensorOptions().device(at::kCUDA).dtype(at::kBFloat16);
  const at::Tensor q = at::randn({c.batch, c.heads, c.len, c.dim}, options);
  const at::Tensor k = at::randn_like(q), v = at::randn_like(q), out = at::empty_like(q);
  Sm90Args args;
  args.batch = c.batch, args.heads = args.kv_heads = c.heads;
  args.q_len = args.kv_len = c.len, args.dim = c.dim;
  args.q = view(q), args.k = view(k), args.v = view(v);
  args.out = {out.mutable_data_ptr(), DType::bf16, out.stride(0), out.stride(1), out.stride(2)};
  args.sm_scale = 1 / std::sqrt(static_cast<double>(c.dim));
  const auto run = [](const Sm90Args& a) {
    const Status status = block_sparse_sm90(a, {});
    if (!status.ok()) std::printf("FAILED: %s\n", status.message);
  };
  const double products = 4.0 * static_cast<double>(c.batch * c.heads * c.dim) *
                          static_cast<double>(c.len) * static_cast<double>(c.len);
  std::vector<Contestant> contestants;
  contestants.push_back(
      {"cuDNN", products, [&] { at::_scaled_dot_product_cudnn_attention(q, k, v, {}, false); }});
  contestants.push_back(
      {"flash", products, [&] { at::_scaled_dot_product_flash_attention(q, k, v); }});
  contestants.push_back({"dense", products, [&] { run(args); }});
  std::vector<Lists> lists;
  lists.reserve(c.densities.size());
  for (const double density : c.densities) {
    const Lists& own = lists.emplace_back(c, density, q.device());
    Sm90Args listed = args;
    listed.lists = {own.ptr.const_data_ptr<int32_t>(),
                    static_cast<const KeySpan*>(own.spans.const_data_ptr()), c.heads, 1};
    char name[64];
    std::snprintf(name, sizeof name, "blocks, density %.3f", own.density);
    contestants.push_back({name, products * own.density, [run, listed] { run(listed); }});
  }
  std::vector<std::vector<double>> rates(contestants.size());
  for (int pass = 0; pass < 2; ++pass) {
    for (size_t i = 0; i < contestants.size(); ++i) {
      const size_t now = pass == 0 ? i : contestants.size() - 1 - i;
      const double seconds = seconds_of(contestants[now], out, duration);
      rates[now].push_back(contestants[now].products / seconds * 1e-12);
    }
  }
  run(args);
  const auto exact = std::get<0>(at::_scaled_dot_product_cudnn_attention(q, k, v, {}, false));
  const double apart = (out.to(at::kFloat) - exact.to(at::kFloat)).norm().item<double>() /
                       exact.to(at::kFloat).norm().item<double>();
  const double baseline = (rates[0][0] + rates[0][1]) / 2;
  for (size_t i = 0; i < contestants.size(); ++i) {
    std::printf("%lld x %lld x %lld x %lld | %-22s | %6.1f %6.1f | %.3f\n",
                static_cast<long long>(c.batch), static_cast<long long>(c.heads),
                static_cast<long long>(c.len), static_cast<long long>(c.dim),
                contestants[i].name.c_str(), rates[i][0], rates[i][1],
                (rates[i][0] + rates[i][1]) / 2 / baseline);
  }
  std::printf("dense - cuDNN, relative: %.1e\n", apart);
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  if (!at::hasCUDA()) {
    std::printf("no GPU\n");
    return 0;
  }
  const bool quick = argc > 1 && std::strcmp(argv[1], "--quick") == 0;
  const c10::InferenceMode no_grad;
  const double duration = quick ? 0.1 : 0.4;
  measure({1, 12, 32760, 128, {1, 0.5, 0.25, 0.1, 0.05}}, duration);
  measure({1, 24, 4608, 128, {0.25}}, duration);
  measure({2, 30, 17776, 64, {0.25, 0.1}}, duration);
  if (!quick) measure({1, 40, 75600, 128, {0.1}}, duration);
  return 0;
}
