// Attention kernels of compute capability 9.0 beside cuDNN and FlashAttention of LibTorch.
//
//   sm90_bench [--quick] [--only TEXT] [--sm80] [--lists]
//
// With --sm80 those of compute capability 8.0 and newer, on whatever GPU there is. With --lists
// those of lists, as spans and packed, instead.
//
// TFLOP/s of bf16 with random normal numbers, of gradients those of five products; of lists those
// of the listed pairs. Contestants of a
// case run in turns, once in this and once in the opposite order, each warmed up by itself: the
// kernel before decides the clock. The third column is the mean over the first one's mean, the last
// one the power in the second run. TEXT is a regular expression for the names to measure.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <functional>
#include <random>
#include <regex>
#include <sstream>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

#include "core/timing.h"
#include "kernels/attention/block_sparse_backward_cuda.h"
#include "kernels/attention/eight_bit_cuda.h"
#include "kernels/attention/quantize_bytes.h"
#include "tests/bench/power_meter.h"

namespace {

using namespace fovea::kernels;

// Random blocks: of one size, or as many as there are clusters of random sizes.
struct Sparse {
  int64_t block;
  double density;
  int64_t block_kv = block;                 ///< of keys
  bool packed = false;                      ///< else spans
  int64_t q_clusters = 0, kv_clusters = 0;  ///< instead of blocks

  int64_t rows(const struct Case& c) const;
  int64_t columns(const struct Case& c) const;
  AttentionTile tile() const { return packed ? sm90_packed_tile() : sm90_tile(block, block_kv); }
};

struct Case {
  int64_t batch, heads, len, dim;
  std::vector<Sparse> maps;  // of random blocks, beside dense
};

int64_t Sparse::rows(const Case& c) const {
  return q_clusters > 0 ? q_clusters : (c.len + block - 1) / block;
}
int64_t Sparse::columns(const Case& c) const {
  return kv_clusters > 0 ? kv_clusters : (c.len + block_kv - 1) / block_kv;
}

struct Contestant {
  std::string name;
  double products;  // floating-point operations of a call
  std::function<void()> run;
};

HeadRows view(const at::Tensor& x) {
  return {x.const_data_ptr(), DType::bf16, x.stride(0), x.stride(1), x.stride(2)};
}

// Lists of random blocks, made on the device.
struct Lists {
  at::Tensor classes, q_offsets, kv_offsets, tiles, counts, spans, fault, next_tile;
  AttentionTile tile;
  TileListsArgs args;
  double density;

  Lists(const Case& c, const Sparse& map, at::Device device)
      : Lists(c, map, map.tile(), random_classes(c, map, device)) {}

  // The same map from the side of the keys; of square blocks.
  Lists columns(const Case& c, const Sparse& map) const {
    Lists out(c, map, sm90_column_tile(map.block, map.block), classes);
    out.args.transposed = true;
    out.make();
    return out;
  }

  static at::Tensor random_classes(const Case& c, const Sparse& map, at::Device device) {
    at::manual_seed(1);  // the same for spans and packed steps
    return at::rand({c.heads, map.rows(c), map.columns(c)}, at::device(device))
        .lt(map.density)
        .to(at::kByte);
  }

  // int32 [1 or heads, blocks + 1]
  static at::Tensor offsets(const Case& c, int64_t size, int64_t clusters,
                            const at::TensorOptions& ints) {
    const int64_t blocks = clusters > 0 ? clusters : (c.len + size - 1) / size;
    if (clusters == 0) return at::arange(blocks + 1, ints).mul(size).clamp_max(c.len).unsqueeze(0);
    const at::Tensor cuts =
        std::get<0>(at::randint(c.len + 1, {c.heads, blocks - 1}, ints).sort(1));
    return at::cat({at::zeros({c.heads, 1}, ints), cuts, at::full({c.heads, 1}, c.len, ints)}, 1);
  }

  TileLists view() const {
    TileLists out{args.tiles,        args.counts,   args.spans, args.tiles_per_map,
                  args.num_q_blocks, args.capacity, 0,          1};
    out.packed = args.packed;
    return out;
  }

  Lists(const Case& c, const Sparse& map, AttentionTile own, const at::Tensor& chosen)
      : classes(chosen), tile(own) {
    const auto ints = classes.options().dtype(at::kInt);
    q_offsets = offsets(c, map.block, map.q_clusters, ints);
    kv_offsets = offsets(c, map.block_kv, map.kv_clusters, ints);
    args.classes = classes.const_data_ptr<uint8_t>();
    args.q_offsets = q_offsets.const_data_ptr<int32_t>();
    args.kv_offsets = kv_offsets.const_data_ptr<int32_t>();
    args.maps = c.heads, args.q_maps = q_offsets.size(0), args.kv_maps = kv_offsets.size(0);
    args.num_q_blocks = q_offsets.size(1) - 1, args.num_kv_blocks = kv_offsets.size(1) - 1;
    args.q_len = args.kv_len = static_cast<int32_t>(c.len);
    args.tile_queries = tile.queries, args.span_keys = tile.keys;
    args.tiles_per_map = most_tiles(c.len, args.num_q_blocks, tile.queries);
    args.capacity = tile.is_packed ? most_packed(c.len, args.num_kv_blocks, tile.keys)
                                   : most_tiles(c.len, args.num_kv_blocks, tile.keys);
    tiles = at::empty({c.heads, args.tiles_per_map, 4}, ints);
    counts = at::empty({c.heads, args.num_q_blocks}, ints);
    spans = at::empty({c.heads, args.num_q_blocks, args.capacity, 2}, ints);
    fault = at::zeros({1}, ints);
    next_tile = at::zeros({1}, ints);
    args.tiles = static_cast<QueryTile*>(tiles.mutable_data_ptr());
    args.counts = counts.mutable_data_ptr<int32_t>();
    if (tile.is_packed) {
      args.packed = static_cast<PackedSpan*>(spans.mutable_data_ptr());
    } else {
      args.spans = static_cast<KeySpan*>(spans.mutable_data_ptr());
    }
    args.fault = fault.mutable_data_ptr<int32_t>();
    make();
    const auto sizes = [](const at::Tensor& x) {
      return (x.slice(1, 1) - x.slice(1, 0, -1)).to(at::kDouble).unsqueeze(2);
    };
    const at::Tensor keys = classes.to(at::kDouble).matmul(sizes(kv_offsets));
    density = (keys * sizes(q_offsets)).sum().item<double>() /
              static_cast<double>(c.heads * c.len * c.len);
  }

  void make() const {
    const Status status = tile_lists_cuda(args, {});
    if (!status.ok()) std::printf("FAILED: %s\n", status.message);
  }
};

void report(const Status& status) {
  if (!status.ok()) std::printf("FAILED: %s\n", status.message);
}

// Random operands in 8-bit numbers.
struct EightBit {
  at::Tensor q, k, v, q_scale, k_scale, v_scale;
  at::Tensor k_mean, v_largest, sums, lse_more, offsets, fault;
  ByteFormat format;

  EightBit(const Case& c, ByteFormat of, at::Device device) : format(of) {
    const auto floats = at::TensorOptions().device(device).dtype(at::kFloat);
    const int64_t places = byte_places(c.len);
    const auto bytes = [&](std::vector<int64_t> sizes, bool integers) {
      const at::Tensor x = at::randn(sizes, floats.dtype(at::kHalf));
      return integers ? x.mul(32).clamp(-127, 127).to(at::kChar) : x.mul(64).to(at::kFloat8_e4m3fn);
    };
    const bool integers = of == ByteFormat::int8;
    q = bytes({c.batch, c.heads, c.len, c.dim}, integers);
    k = bytes({c.batch, c.heads, c.len, c.dim}, integers);
    v = bytes({c.batch, c.heads, c.dim, places}, false);
    q_scale = at::full({c.batch, c.heads, c.len}, integers ? 1.0 / 32 : 1.0 / 64, floats);
    k_scale = at::full({c.batch, c.heads, places}, integers ? 1.0 / 32 : 1.0 / 64, floats);
    v_scale = at::full({c.batch, c.heads, c.dim}, 1.0 / 64, floats);
    v_largest = at::empty_like(v_scale);
    k_mean = at::empty_like(v_scale), lse_more = at::empty_like(q_scale);
    sums = at::empty({c.batch, c.heads, column_chunks(c.len), c.dim + 1}, floats);
    const auto ints = floats.dtype(at::kInt);
    offsets = at::arange((c.len + 127) / 128 + 1, ints).mul(128).clamp_max(c.len);
    fault = at::zeros({1}, ints);
  }

  EightBitOperands operands() const {
    EightBitOperands out;
    out.format = format;
    out.q = q.const_data_ptr(), out.k = k.const_data_ptr(), out.v = v.const_data_ptr();
    out.q_scale = q_scale.const_data_ptr<float>();
    out.k_scale = k_scale.const_data_ptr<float>();
    out.v_scale = v_scale.const_data_ptr<float>();
    return out;
  }
  // The same of bf16 tensors: rows by blocks of 128, keys without their mean, values by channel.
  void quantize(const at::Tensor& q_from, const at::Tensor& k_from,
                const at::Tensor& v_from) const {
    const auto from = [&](const at::Tensor& x) {
      BytesFrom out;
      out.x = view(x);
      out.batch = x.size(0), out.heads = out.in_heads = x.size(1);
      out.len = out.in_rows = x.size(2), out.dim = x.size(3);
      out.fault = fault.mutable_data_ptr<int32_t>();
      return out;
    };
    // What is read twice is read again at once, as far as the cache has it.
    ColumnStatsArgs stats;
    stats.from = from(k_from);
    stats.mean = k_mean.mutable_data_ptr<float>(), stats.sums = sums.mutable_data_ptr<float>();
    report(column_stats_cuda(stats, {}));
    ByteRowsArgs rows;
    rows.format = format;
    rows.offsets = offsets.const_data_ptr<int32_t>(), rows.num_pieces = offsets.size(0) - 1;
    rows.mean = k_mean.const_data_ptr<float>(), rows.mean_heads = k_from.size(1);
    rows.from = from(k_from), rows.out = k.mutable_data_ptr();
    rows.scale = k_scale.mutable_data_ptr<float>(), rows.scale_len = k_scale.size(2);
    report(byte_rows_cuda(rows, {}));
    stats.from = from(v_from), stats.mean = nullptr;
    stats.largest = v_largest.mutable_data_ptr<float>();
    report(column_stats_cuda(stats, {}));
    ByteColumnsArgs columns;
    columns.from = from(v_from), columns.largest = v_largest.const_data_ptr<float>();
    columns.out = v.mutable_data_ptr(), columns.scale = v_scale.mutable_data_ptr<float>();
    report(byte_columns_cuda(columns, {}));
    rows.dot = lse_more.mutable_data_ptr<float>();
    rows.from = from(q_from), rows.out = q.mutable_data_ptr();
    rows.scale = q_scale.mutable_data_ptr<float>(), rows.scale_len = q_scale.size(2);
    report(byte_rows_cuda(rows, {}));
  }

  std::string name() const { return format == ByteFormat::int8 ? "8-bit int8" : "8-bit e4m3"; }
};

struct Measured {
  std::vector<double> rates = {};  // TFLOP/s, of two runs
  double watts = 0;                // in the second one

  double mean() const { return (rates[0] + rates[1]) / 2; }
};

// Each in this order and in the opposite one.
std::vector<Measured> rates_of(const std::vector<Contestant>& contestants, const at::Tensor& out,
                               double duration) {
  static const fovea::bench::PowerMeter meter;
  std::vector<Measured> all(contestants.size());
  for (int pass = 0; pass < 2; ++pass) {
    for (size_t i = 0; i < contestants.size(); ++i) {
      const size_t now = pass == 0 ? i : contestants.size() - 1 - i;
      double milliseconds = 0;
      all[now].watts = meter.watts_during([&] {
        milliseconds = fovea::milliseconds_of(out.device(), contestants[now].run, 1e3 * duration);
      });
      all[now].rates.push_back(contestants[now].products / milliseconds * 1e-9);
    }
  }
  return all;
}

void print(const Case& c, const std::vector<Contestant>& contestants,
           const std::vector<Measured>& all) {
  for (size_t i = 0; i < contestants.size(); ++i) {
    const Measured& own = all[i];
    std::printf("%lld x %lld x %lld x %lld | %-44s | %6.1f %6.1f | %.3f | %3.0f W\n",
                static_cast<long long>(c.batch), static_cast<long long>(c.heads),
                static_cast<long long>(c.len), static_cast<long long>(c.dim),
                contestants[i].name.c_str(), own.rates[0], own.rates[1], own.mean() / all[0].mean(),
                own.watts);
  }
  std::fflush(stdout);
}

using Kernel = Status (*)(const CudaAttentionArgs& args, CudaTarget target);

struct Wish {
  double duration = 0.4;
  std::string only = {};
  bool bytes = true;  // 8-bit numbers too
  Kernel kernel = block_sparse_sm90;
  Status (*backward)(const CudaAttentionBackwardArgs& args,
                     CudaTarget target) = block_sparse_backward_sm90;
};

MutableHeadRows written(const at::Tensor& x) {
  return {x.mutable_data_ptr(), DType::bf16, x.stride(0), x.stride(1), x.stride(2)};
}

// Random numbers and a place for results.
struct Tensors {
  at::Tensor q, k, v, out;
  CudaAttentionArgs args;

  explicit Tensors(const Case& c) {
    const auto options = at::TensorOptions().device(at::kCUDA).dtype(at::kBFloat16);
    q = at::randn({c.batch, c.heads, c.len, c.dim}, options);
    k = at::randn_like(q), v = at::randn_like(q), out = at::empty_like(q);
    args.batch = c.batch, args.heads = args.kv_heads = c.heads;
    args.q_len = args.kv_len = c.len, args.dim = c.dim;
    args.q = view(q), args.k = view(k), args.v = view(v), args.out = written(out);
    args.sm_scale = 1 / std::sqrt(static_cast<double>(c.dim));
  }
};

// Floating-point operations of one product of all queries and keys.
double product_of(const Case& c) {
  return 2.0 * static_cast<double>(c.batch * c.heads * c.dim) * static_cast<double>(c.len) *
         static_cast<double>(c.len);
}

std::string name_of(const Sparse& map) {
  std::ostringstream out;
  if (map.q_clusters > 0) {
    out << map.q_clusters << " x " << map.kv_clusters << " clusters";
  } else {
    out << map.block;
    if (map.block_kv != map.block) out << " x " << map.block_kv;
    out << "-blocks";
  }
  out << ", density " << map.density;
  if (map.packed) out << ", packed";
  return out.str();
}

void take_only(const Wish& wish, std::vector<Contestant>& contestants) {
  std::erase_if(contestants, [&, only = std::regex(wish.only)](const Contestant& x) {
    return !std::regex_search(x.name, only);
  });
}

double apart(const at::Tensor& x, const at::Tensor& exact) {
  return (x.to(at::kFloat) - exact.to(at::kFloat)).norm().item<double>() /
         exact.to(at::kFloat).norm().item<double>();
}

// What runs on the operands of a case.
struct Field {
  const Case& c;
  const Tensors& tensors;
  Kernel kernel;
  bool bytes;
  double products = 2 * product_of(c);  // of dense attention
  std::vector<EightBit> eight_bit = {};
  std::vector<Lists> lists = {};
  std::vector<Contestant> contestants = {};

  void add(const std::string& name, const CudaAttentionArgs& a, double density) {
    contestants.push_back(
        {name, products * density, [kernel = kernel, a] { report(kernel(a, {})); }});
  }
  void add_eight_bit(const std::string& what, const CudaAttentionArgs& a, double density) {
    for (const EightBit& own : eight_bit) {
      contestants.push_back({own.name() + what, products * density, [a, operands = own.operands()] {
                               report(eight_bit_attention_sm90(a, operands, {}));
                             }});
      std::string quantized = own.name();
      quantized.append(" quantized").append(what);
      contestants.push_back(
          {quantized, products * density, [this, a, operands = own.operands(), &own] {
             own.quantize(tensors.q, tensors.k, tensors.v);
             report(eight_bit_attention_sm90(a, operands, {}));
           }});
    }
  }

  void add_dense(at::Device device) {
    if (bytes && c.dim == 128 && kernel == block_sparse_sm90) {
      eight_bit.reserve(2);
      for (const ByteFormat format : {ByteFormat::e4m3, ByteFormat::int8}) {
        eight_bit.emplace_back(c, format, device);
      }
    }
    add("dense", tensors.args, 1);
    add_eight_bit(", dense", tensors.args, 1);
  }

  void add_lists(at::Device device) {
    lists.reserve(c.maps.size());
    for (const Sparse& map : c.maps) {
      const Lists& own = lists.emplace_back(c, map, device);
      CudaAttentionArgs listed = tensors.args;
      listed.tile = own.tile;
      listed.next_tile = own.next_tile.mutable_data_ptr<int32_t>();
      listed.lists = own.view();
      add(name_of(map), listed, own.density);
      if (own.tile == kEightBitTile) add_eight_bit(", " + name_of(map), listed, own.density);
    }
    if (lists.empty()) return;  // with thousands of pairs of blocks in the place of products
    const Lists& own = lists.back();
    contestants.push_back({"lists, 1e9 pairs / s", 1e3 * static_cast<double>(own.classes.numel()),
                           [&own] { own.make(); }});
  }
};

void measure(const Case& c, const Wish& wish) {
  const Tensors tensors(c);
  const auto& [q, k, v, out, args] = tensors;
  Field field{c, tensors, wish.kernel, wish.bytes};
  std::vector<Contestant>& contestants = field.contestants;
  const double products = field.products;
  contestants.push_back(
      {"cuDNN", products, [&] { at::_scaled_dot_product_cudnn_attention(q, k, v, {}, false); }});
  contestants.push_back(
      {"flash", products, [&] { at::_scaled_dot_product_flash_attention(q, k, v); }});
  field.add_dense(q.device());
  field.add_lists(q.device());
  take_only(wish, contestants);
  if (contestants.empty()) return;
  const std::vector<Measured> rates = rates_of(contestants, out, wish.duration);
  report(wish.kernel(args, {}));
  const auto exact = std::get<0>(at::_scaled_dot_product_cudnn_attention(q, k, v, {}, false));
  print(c, contestants, rates);
  std::printf("dense - cuDNN, relative: %.1e\n", apart(out, exact));
  std::fflush(stdout);
}

// What a backward kernel writes to.
struct Gradients {
  at::Tensor q, k, v, lse;
  std::vector<at::Tensor> workspaces;

  explicit Gradients(const Tensors& like)
      : q(at::empty_like(like.q)),
        k(at::empty_like(like.k)),
        v(at::empty_like(like.v)),
        lse(at::empty(like.q.sizes().slice(0, 3), like.q.options().dtype(at::kFloat))) {}

  CudaAttentionBackwardArgs args(const CudaAttentionArgs& forward, const at::Tensor& grad_out) {
    CudaAttentionBackwardArgs out;
    out.forward = forward;
    out.forward.lse = lse.mutable_data_ptr<float>();
    out.grad_out = view(grad_out);
    out.grad_q = written(q), out.grad_k = written(k), out.grad_v = written(v);
    give_workspace(out);
    return out;
  }

  // One for all, that is large enough; those who have a smaller one keep it.
  void give_workspace(CudaAttentionBackwardArgs& args) {
    const int64_t bytes = sm90_backward_workspace_bytes(args);
    if (workspaces.empty() || workspaces.back().numel() < bytes) {
      workspaces.push_back(at::empty({bytes}, q.options().dtype(at::kByte)));
    }
    args.workspace = static_cast<float*>(workspaces.back().mutable_data_ptr());
  }
};

void measure_backward(const Case& c, const Wish& wish) {
  const Tensors tensors(c);
  const auto& [q, k, v, out, forward] = tensors;
  const at::Tensor grad_out = at::randn_like(q);
  const auto saved = at::_scaled_dot_product_cudnn_attention(q, k, v, {}, true);
  const auto cudnn = [&] {
    return at::_scaled_dot_product_cudnn_attention_backward(
        grad_out, q, k, v, std::get<0>(saved), std::get<1>(saved), std::get<6>(saved),
        std::get<7>(saved), at::Tensor(), std::get<2>(saved), std::get<3>(saved), c.len, c.len, 0,
        false);
  };
  Gradients gradients(tensors);
  const CudaAttentionBackwardArgs args = gradients.args(forward, grad_out);
  const double products = 5 * product_of(c);
  std::vector<Contestant> contestants = {
      {"cuDNN backward", products, [&] { cudnn(); }},
      {"dense backward", products, [&] { report(wish.backward(args, {})); }}};
  std::vector<Lists> rows, columns;
  rows.reserve(c.maps.size()), columns.reserve(c.maps.size());
  for (const Sparse& map : c.maps) {
    const Lists& own = rows.emplace_back(c, map, q.device());
    const Lists& turned = columns.emplace_back(own.columns(c, map));
    CudaAttentionBackwardArgs listed = args;
    listed.forward.tile = own.tile, listed.forward.lists = own.view();
    listed.column_tile = turned.tile, listed.columns = turned.view();
    listed.columns_on_grid = map.block % turned.tile.keys == 0;
    gradients.give_workspace(listed);
    // Of other keys' weights, but as many products.
    contestants.push_back({name_of(map) + ", backward", products * own.density,
                           [&wish, listed] { report(wish.backward(listed, {})); }});
  }
  take_only(wish, contestants);
  if (contestants.empty()) return;
  report(wish.kernel(args.forward, {}));
  print(c, contestants, rates_of(contestants, out, wish.duration));
  report(wish.backward(args, {}));
  const auto exact = cudnn();
  std::printf("dense - cuDNN backward, relative: q %.1e, k %.1e, v %.1e\n",
              apart(gradients.q, std::get<0>(exact)), apart(gradients.k, std::get<1>(exact)),
              apart(gradients.v, std::get<2>(exact)));
  std::fflush(stdout);
}

// Lists as spans and packed.
std::vector<Sparse> all_lists() {
  const std::vector<Sparse> maps = {
      {.block = 128, .density = 0.5},
      {.block = 128, .density = 0.1},
      {.block = 128, .density = 0.05},
      {.block = 128, .density = 0.1, .block_kv = 64},
      {.block = 64, .density = 0.1, .block_kv = 64, .q_clusters = 300, .kv_clusters = 1000}};
  std::vector<Sparse> out;
  for (const Sparse& map : maps) {
    for (const bool packed : {false, true}) out.push_back(map), out.back().packed = packed;
  }
  return out;
}

}  // namespace

int main(int argc, char** argv) {
  if (!at::hasCUDA()) {
    std::printf("no GPU\n");
    return 0;
  }
  Wish wish;
  bool quick = false, lists = false;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--quick") == 0) quick = true;
    if (std::strcmp(argv[i], "--lists") == 0) lists = true;
    if (std::strcmp(argv[i], "--sm80") == 0) {
      wish.kernel = block_sparse_sm80, wish.backward = block_sparse_backward_sm80;
    }
    if (std::strcmp(argv[i], "--only") == 0 && i + 1 < argc) wish.only = argv[++i];
  }
  if (quick) wish.duration = 0.1;
  const c10::InferenceMode no_grad;
  if (lists) {
    wish.bytes = false;
    measure({1, 12, 32760, 128, all_lists()}, wish);
    return 0;
  }
  measure({1,
           12,
           32760,
           128,
           {{128, 1}, {128, 0.5}, {128, 0.25}, {128, 0.1}, {128, 0.05}, {64, 0.1}, {384, 0.1}}},
          wish);
  measure({1, 24, 4608, 128, {{128, 0.25}}}, wish);
  measure({2, 30, 17776, 64, {{128, 0.25}, {64, 0.1}}}, wish);
  if (!quick) measure({1, 40, 75600, 128, {{128, 0.1}}}, wish);
  measure_backward({1, 12, 32760, 128, {{128, 0.25}, {128, 0.1}, {64, 0.1}}}, wish);
  measure_backward({1, 24, 4608, 128, {}}, wish);
  measure_backward({2, 30, 17776, 64, {{128, 0.25}}}, wish);
  return 0;
}
