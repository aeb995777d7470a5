// Times block-sparse attention on the CPU beside LibTorch's scaled_dot_product_attention, and
// beside the rate of fused multiply-adds that this processor reaches in registers:
//
//   cmake --build build --target attention_bench
//   build/tests/attention_bench [--long] [--backward | --forward] [--threads N] [INSTRUCTION SET]
//
// with baseline, AVX2, AVX-512, AVX-512-VNNI or AVX-512-BF16.
//
// The two are timed in turns, the best of several rounds counts: other programs only take time.
// --backward leaves the forward out. "int8 QK" has q and k of bf16 made 8-bit integers, a factor
// per token, in the time that counts; its SDPA is that of bf16.

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/InferenceMode.h>

#include "kernels/attention/block_sparse_backward.h"
#include "kernels/attention/quantize_rows.h"
#include "tests/bench/peaks.h"

namespace fovea::kernels {
namespace {

constexpr int64_t kBlock = 128, kDim = 128, kHeads = 8;

/// What a problem is computed in.
enum class Kind { fp32, bf16, int8_qk };

const char* kind_name(Kind kind) {
  return kind == Kind::fp32 ? "fp32" : kind == Kind::bf16 ? "bf16" : "int8 QK";
}

/// The most that both products together can reach.
double peak_of(Kind kind, const Peaks& peaks) {
  if (kind == Kind::int8_qk) return 2 / (1 / peaks.int8 + 1 / peaks.bf16);
  return kind == Kind::fp32 ? peaks.fp32 : peaks.bf16;
}

/// Lists for 128-blocks, a share of them at random.
struct Lists {
  std::vector<int32_t> offsets, kv_index;
  std::vector<int64_t> row_ptr;
  int64_t maps, blocks;

  Lists(int64_t len, double density) : maps(kHeads), blocks((len + kBlock - 1) / kBlock) {
    std::mt19937 random(1);
    std::vector<int32_t> all(blocks);
    std::iota(all.begin(), all.end(), 0);
    const auto kept = std::max<int64_t>(1, std::llround(density * static_cast<double>(blocks)));
    for (int64_t map = 0; map < maps; ++map) {
      for (int64_t i = 0; i <= blocks; ++i)
        offsets.push_back(static_cast<int32_t>(std::min(i * kBlock, len)));
      for (int64_t i = 0; i < blocks; ++i) {
        row_ptr.push_back(static_cast<int64_t>(kv_index.size()));
        std::vector<int32_t> row = all;
        std::shuffle(row.begin(), row.end(), random);
        std::sort(row.begin(), row.begin() + kept);
        kv_index.insert(kv_index.end(), row.begin(), row.begin() + kept);
      }
      row_ptr.push_back(static_cast<int64_t>(kv_index.size()));
    }
  }
  double density() const {
    return static_cast<double>(kv_index.size()) / static_cast<double>(maps * blocks * blocks);
  }
  BlockLists view() const {
    BlockLists lists;
    lists.maps = maps, lists.num_q_blocks = lists.num_kv_blocks = blocks, lists.map_head_stride = 1;
    lists.q_offsets = lists.kv_offsets = offsets.data();
    lists.row_ptr = row_ptr.data(), lists.kv_index = kv_index.data();
    lists.num_entries = static_cast<int64_t>(kv_index.size());
    return lists;
  }
};

HeadRows view(const at::Tensor& t, DType dtype) {
  return {t.const_data_ptr(), dtype, t.stride(0), t.stride(1), t.stride(2)};
}

class Bench {
 public:
  Bench(int64_t len, Kind kind, Isa isa)
      : len_(len), kind_(kind), dtype_(kind == Kind::fp32 ? DType::f32 : DType::bf16), isa_(isa) {
    at::manual_seed(1);
    const at::ScalarType type = kind == Kind::fp32 ? at::kFloat : at::kBFloat16;
    q = at::randn({1, kHeads, len, kDim}).to(type);
    k = at::randn({1, kHeads, len, kDim}).to(type);
    v = at::randn({1, kHeads, len, kDim}).to(type);
    out = at::empty_like(q);
  }

  BlockSparseArgs make_args(const Lists& lists) {
    BlockSparseArgs args;
    args.batch = 1, args.heads = args.kv_heads = kHeads, args.q_len = args.kv_len = len_;
    args.dim = args.value_dim = kDim;
    args.q = view(q, dtype_), args.k = view(k, dtype_), args.v = view(v, dtype_);
    args.out = {out.data_ptr(), dtype_, out.stride(0), out.stride(1), out.stride(2)};
    args.lists = lists.view();
    args.sm_scale = 0.08838834764831845f;
    return args;
  }
  /// One call, its workspace included.
  double ours(const Lists& lists) {
    BlockSparseArgs args = make_args(lists);
    return seconds([&] {
      const Parallel parallel{run_on_threads, nullptr, at::get_num_threads()};
      if (kind_ == Kind::int8_qk) {
        args.q_int8 = integers(args.q, q_int8, q_scale, parallel);
        args.k_int8 = integers(args.k, k_int8, k_scale, parallel);
      }
      const int64_t bytes = attention_workspace_bytes(args, parallel.threads);
      const at::Tensor memory = at::empty({bytes}, at::kByte);
      const Status status = block_sparse_cpu(args, {memory.data_ptr(), bytes}, parallel, isa_);
      TORCH_CHECK(status.ok(), status.message);
    });
  }
  ScaledIntegers integers(const HeadRows& x, at::Tensor& data, at::Tensor& scale,
                          const Parallel& parallel) {
    data = at::empty({kHeads, len_, kDim}, at::kChar);
    scale = at::empty({kHeads, len_}, at::kFloat);
    QuantizeRowsArgs args;
    args.batch = 1, args.heads = kHeads, args.len = len_, args.dim = kDim, args.x = x;
    args.out = data.data_ptr<int8_t>(), args.scale = scale.data_ptr<float>();
    const Status status = quantize_rows_cpu(args, parallel, isa_);
    TORCH_CHECK(status.ok(), status.message);
    return {args.out, 0, len_ * kDim, kDim, args.scale, 0, len_};
  }
  double theirs() {
    return seconds([&] { reference = at::scaled_dot_product_attention(q, k, v); });
  }
  /// What the backward pass starts from.
  void prepare_backward() {
    grad_out = at::randn(q.sizes()).to(q.scalar_type());
    std::tie(reference, reference_lse) =
        at::_scaled_dot_product_flash_attention_for_cpu(q, k, v, 0, false);
    for (at::Tensor* gradient : {&grad_q, &grad_k, &grad_v}) *gradient = at::empty_like(q);
  }
  double ours_backward(const Lists& lists) {
    // The lse belongs to all keys; fewer of them change no time.
    const at::Tensor lse = reference_lse.contiguous();
    BlockSparseBackwardArgs args;
    args.forward = make_args(lists);
    const auto written = [&](at::Tensor& t) -> MutableHeadRows {
      return {t.data_ptr(), dtype_, t.stride(0), t.stride(1), t.stride(2)};
    };
    args.forward.out = written(reference);
    args.forward.lse = lse.data_ptr<float>();
    args.grad_out = view(grad_out, dtype_);
    args.grad_q = written(grad_q), args.grad_k = written(grad_k), args.grad_v = written(grad_v);
    return seconds([&] {
      const Parallel parallel{run_on_threads, nullptr, at::get_num_threads()};
      const int64_t bytes = attention_backward_workspace_bytes(args, parallel.threads);
      const at::Tensor memory = at::empty({bytes}, at::kByte);
      const Status status =
          block_sparse_backward_cpu(args, {memory.data_ptr(), bytes}, parallel, isa_);
      TORCH_CHECK(status.ok(), status.message);
    });
  }
  double theirs_backward() {
    return seconds([&] {
      their_gradients = at::_scaled_dot_product_flash_attention_for_cpu_backward(
          grad_out, q, k, v, reference, reference_lse, 0, false);
    });
  }
  double flops(double density) const {
    return 4.0 * density * static_cast<double>(kHeads * len_ * len_ * kDim);
  }

  at::Tensor q_int8, k_int8, q_scale, k_scale;
  at::Tensor q, k, v, out, reference, reference_lse, grad_out, grad_q, grad_k, grad_v;
  std::tuple<at::Tensor, at::Tensor, at::Tensor> their_gradients;

 private:
  int64_t len_;
  Kind kind_;
  DType dtype_;
  Isa isa_;
};

double distance(const at::Tensor& x, const at::Tensor& r) {
  return ((x - r).to(at::kDouble).norm() / r.to(at::kDouble).norm()).item<double>();
}

void run(int64_t len, Kind kind, Isa isa, double machine) {
  Bench bench(len, kind, isa);
  const int rounds = len > 8192 ? 3 : 7;
  const Lists dense(len, 1);
  double ours = 1e30, theirs = 1e30;
  for (int i = 0; i < rounds; ++i) {
    theirs = std::min(theirs, bench.theirs());
    ours = std::min(ours, bench.ours(dense));
  }
  std::printf(
      "%s, %ld tokens, %ld heads of %ld: SDPA %.1f GF/s, ours %.1f (%.2f x; %.3f of peak), "
      "relative distance %.1e\n",
      kind_name(kind), len, kHeads, kDim, 1e-9 * bench.flops(1) / theirs,
      1e-9 * bench.flops(1) / ours, theirs / ours, 1e-9 * bench.flops(1) / ours / machine,
      distance(bench.out, bench.reference));
  for (const double density : {0.5, 0.25, 0.1}) {
    const Lists lists(len, density);
    double time = 1e30, again = ours;
    for (int i = 0; i < rounds + 2; ++i) {
      time = std::min(time, bench.ours(lists));
      if (i % 3 == 0) again = std::min(again, bench.ours(dense));
    }
    std::printf("  density %.3f: %.1f ms, %.3f of density x dense, %.2f x SDPA\n", lists.density(),
                1e3 * time, time / (lists.density() * again), theirs / time);
  }
}

/// Five products of the forward's size each.
void run_backward(int64_t len, Kind kind, Isa isa, double machine) {
  Bench bench(len, kind, isa);
  bench.prepare_backward();
  const int rounds = len > 8192 ? 2 : 5;
  const Lists dense(len, 1);
  double ours = 1e30, theirs = 1e30;
  for (int i = 0; i < rounds; ++i) {
    ours = std::min(ours, bench.ours_backward(dense));
    if (i < 2) theirs = std::min(theirs, bench.theirs_backward());
  }
  const double flops = 2.5e-9 * bench.flops(1);
  std::printf(
      "backward %s, %ld tokens: SDPA %.1f GF/s, ours %.1f (%.2f x; %.3f of peak), relative "
      "distance of the gradients of q, k, v %.1e %.1e %.1e\n",
      kind_name(kind), len, flops / theirs, flops / ours, theirs / ours, flops / ours / machine,
      distance(bench.grad_q, std::get<0>(bench.their_gradients)),
      distance(bench.grad_k, std::get<1>(bench.their_gradients)),
      distance(bench.grad_v, std::get<2>(bench.their_gradients)));
  for (const double density : {0.5, 0.25, 0.1}) {
    const Lists lists(len, density);
    double time = 1e30;
    for (int i = 0; i < rounds; ++i) time = std::min(time, bench.ours_backward(lists));
    std::printf("  density %.3f: %.1f ms, %.3f of density x dense, %.2f x SDPA\n", lists.density(),
                1e3 * time, time / (lists.density() * ours), theirs / time);
  }
}

}  // namespace
}  // namespace fovea::kernels

int main(int argc, char** argv) {
  using namespace fovea::kernels;
  const c10::InferenceMode guard;
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  Isa isa = best_isa();
  bool long_too = false, backward = true, forward = true;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (word == "--long") long_too = true;
    if (word == "--backward") forward = false;
    if (word == "--forward") backward = false;
    if (word == "--threads" && i + 1 < argc) at::set_num_threads(std::stoi(argv[i + 1]));
    for (const Isa other :
         {Isa::baseline, Isa::avx2, Isa::avx512, Isa::avx512_vnni, Isa::avx512_bf16}) {
      if (word == isa_name(other) && isa_available(other)) isa = other;
    }
  }
  at::set_num_threads(at::get_num_threads());
  const Peaks peaks = measure_peaks(isa, at::get_num_threads());
  std::printf("LibTorch %s, ours %s, %d threads; in registers %.1f GF/s of fp32",
              at::get_cpu_capability().c_str(), isa_name(isa), at::get_num_threads(), peaks.fp32);
  std::printf(", %.1f of bf16, %.1f of int8\n", peaks.bf16, peaks.int8);
  const std::vector<int64_t> lengths =
      long_too ? std::vector<int64_t>{4096, 13312} : std::vector<int64_t>{4096};
  for (const int64_t len : lengths) {
    for (const Kind kind : {Kind::fp32, Kind::bf16, Kind::int8_qk}) {
      if (forward) run(len, kind, isa, peak_of(kind, peaks));
      const bool has_backward = kind == Kind::fp32 || (kind == Kind::bf16 && len == 4096);
      if (backward && has_backward) run_backward(len, kind, isa, peaks.fp32);
    }
  }
  return 0;
}
