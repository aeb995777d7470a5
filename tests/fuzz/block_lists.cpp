#include "tests/fuzz/block_lists.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "kernels/attention/block_sparse.h"
#include "tests/kernels/attention/memory.h"
#include "tests/kernels/attention/problem.h"

namespace fovea::kernels {
namespace {

constexpr double kNone = -std::numeric_limits<double>::infinity();

/// Decisions from bytes; all 0 once they are used up.
class Bytes {
 public:
  Bytes(const uint8_t* data, size_t size) : data_(data), left_(size) {}
  bool is_empty() const { return left_ == 0; }
  uint8_t take() { return left_ == 0 ? uint8_t{0} : (--left_, *data_++); }
  int64_t below(int64_t bound) { return (take() | take() << 8) % bound; }
  bool flag() { return (take() & 1) != 0; }
  /// A number that a field may have: near to its own, small, or as far off as can be.
  int64_t number(int64_t own) {
    switch (take() % 8) {
      case 0:
        return own + 1;
      case 1:
        return own - 1;
      case 2:
        return std::numeric_limits<int64_t>::max() - take();
      case 3:
        return std::numeric_limits<int64_t>::min() + take();
      case 4:
        return -1;
      case 5:
        return std::numeric_limits<int32_t>::max() - take();
      default:
        return take() % 100;
    }
  }

 private:
  const uint8_t* data_;
  size_t left_;
};

Shape shape_of(Bytes& bytes) {
  Shape shape;
  shape.q_len = 1 + bytes.below(24);
  shape.kv_len = 1 + bytes.below(90);
  shape.dim = 1 + bytes.below(6);
  shape.value_dim = 1 + bytes.below(6);
  shape.batch = 1 + bytes.below(2);
  shape.kv_heads = 1 + bytes.below(2);
  shape.group = 1 + bytes.below(2);
  const uint8_t flags = bytes.take();
  shape.orders = (flags & 1) != 0;
  shape.blocks = (flags & 6) != 0;
  shape.map_per_head = (flags & 8) != 0;
  shape.block_len = (flags & 16) != 0;
  shape.bits = (flags & 32) != 0;
  shape.key_bias = (flags & 64) != 0;
  shape.strided = (flags & 128) != 0;
  return shape;
}

template <typename T>
void write(Bytes& bytes, std::vector<T>& values) {
  if (values.empty()) return;
  T& value = values[static_cast<size_t>(bytes.below(static_cast<int64_t>(values.size())))];
  if (bytes.take() % 4 == 0) {  // one of its neighbours
    value = values[static_cast<size_t>(bytes.below(static_cast<int64_t>(values.size())))];
  } else {
    value = static_cast<T>(bytes.number(static_cast<int64_t>(value)));
  }
}

void change(Bytes& bytes, Problem& problem) {
  switch (bytes.take() % 9) {
    case 0:
      return write(bytes, problem.q_offsets);
    case 1:
      return write(bytes, problem.kv_offsets);
    case 2:
      return write(bytes, problem.row_ptr);
    case 3:
      return write(bytes, problem.kv_index);
    case 4:
      return write(bytes, problem.kv_block_len);
    case 5:
      return write(bytes, problem.bits_offset);
    case 6:
      return write(bytes, problem.q_order);
    case 7:
      return write(bytes, problem.kv_order);
    default:
      return write(bytes, problem.bits);
  }
}

/// Smaller than it is, or a size that cannot be.
void shrink(Bytes& bytes, int64_t& size, bool may_be_huge = true) {
  const int64_t number = bytes.number(size);
  const int64_t huge = std::numeric_limits<int64_t>::max();
  size = number <= size ? number : may_be_huge ? huge - bytes.take() : -huge + bytes.take();
}

void change_sizes(Bytes& bytes, BlockSparseArgs& args) {
  BlockLists& lists = args.lists;
  switch (bytes.take() % 10) {
    case 0:
      return shrink(bytes, lists.num_entries, /*may_be_huge=*/false);
    case 1:
      return shrink(bytes, lists.num_bit_words, /*may_be_huge=*/false);
    case 2:
      return shrink(bytes, args.kv_len);
    case 3:
      return shrink(bytes, args.q_len);
    case 4:
      return shrink(bytes, args.heads);
    case 5:
      return shrink(bytes, args.batch);
    case 6:
      lists.map_head_stride = bytes.number(lists.map_head_stride);
      return;
    case 7:
      lists.map_batch_stride = bytes.number(lists.map_batch_stride);
      return;
    case 8:  // fewer maps with as many blocks
      return shrink(bytes, lists.maps);
    default:
      lists.kv_block_len = nullptr;
  }
}

/// How often each row of q meets each row of k for one head: [q_len, kv_len].
std::vector<int> mask_of(const BlockSparseArgs& args, int64_t b, int64_t h) {
  const BlockLists& lists = args.lists;
  const int64_t kv_head = h / (args.heads / args.kv_heads);
  const auto row = [](const RowOrder& order, int64_t item, int64_t head, int64_t position) {
    if (order.rows == nullptr) return position;
    return int64_t{order.rows[item * order.batch_stride + head * order.head_stride + position]};
  };
  std::vector<int> mask(static_cast<size_t>(args.q_len * args.kv_len), 0);
  const int64_t map = b * lists.map_batch_stride + h * lists.map_head_stride;
  const int32_t* q_at = lists.q_offsets + map * (lists.num_q_blocks + 1);
  const int32_t* kv_at = lists.kv_offsets + map * (lists.num_kv_blocks + 1);
  const int64_t* entries = lists.row_ptr + map * (lists.num_q_blocks + 1);
  for (int64_t i = 0; i < lists.num_q_blocks; ++i) {
    for (int64_t e = entries[i]; e < entries[i + 1]; ++e) {
      const int64_t j = lists.kv_index[e], keys = kv_at[j + 1] - kv_at[j];
      const int64_t valid =
          lists.kv_block_len ? lists.kv_block_len[map * lists.num_kv_blocks + j] : keys;
      const int64_t first = lists.bits_offset ? lists.bits_offset[e] : -1;
      for (int64_t r = 0; r < q_at[i + 1] - q_at[i]; ++r) {
        for (int64_t c = 0; c < valid; ++c) {
          if (first >= 0) {
            const uint64_t word = lists.bits[first + r * ((keys + 63) / 64) + c / 64];
            if ((word >> (c % 64) & 1) == 0) continue;
          }
          ++mask[static_cast<size_t>(row(args.q_order, b, h, q_at[i] + r) * args.kv_len +
                                     row(args.kv_order, b, kv_head, kv_at[j] + c))];
        }
      }
    }
  }
  return mask;
}

/// Of one row: out [value_dim], and the log-sum-exp.
double answer_of_row(const Problem& problem, const BlockSparseArgs& args, const int* mask,
                     std::array<int64_t, 3> at, std::vector<double>& out) {
  const auto [b, h, row] = at;
  const int64_t kv_head = h / (args.heads / args.kv_heads);
  double top = kNone, sum = 0;
  std::vector<double> logits(static_cast<size_t>(args.kv_len), kNone);
  for (int64_t key = 0; key < args.kv_len; ++key) {
    if (mask[key] == 0) continue;
    double logit = 0;
    for (int64_t c = 0; c < args.dim; ++c)
      logit += double{problem.q.get(b, h, row, c)} * problem.k.get(b, kv_head, key, c);
    logit *= args.sm_scale;
    if (args.key_bias.data)
      logit += args.key_bias.data[b * args.key_bias.batch_stride + key * args.key_bias.key_stride];
    logits[static_cast<size_t>(key)] = logit;
    top = std::max(top, logit);
  }
  out.assign(static_cast<size_t>(args.value_dim), 0.0);
  if (top == kNone) return kNone;
  for (int64_t key = 0; key < args.kv_len; ++key) {
    const double p = mask[key] * std::exp(logits[static_cast<size_t>(key)] - top);
    if (p == 0) continue;
    sum += p;
    for (int64_t c = 0; c < args.value_dim; ++c)
      out[static_cast<size_t>(c)] += p * problem.v.get(b, kv_head, key, c);
  }
  for (double& value : out) value /= sum;
  return top + std::log(sum);
}

/// What is wrong with a result, or "".
std::string compare(const Problem& problem, const BlockSparseArgs& args, const Tensor& out,
                    const std::vector<float>& lse) {
  std::vector<double> expected;
  size_t index = 0;
  for (int64_t b = 0; b < args.batch; ++b) {
    for (int64_t h = 0; h < args.heads; ++h) {
      const std::vector<int> mask = mask_of(args, b, h);
      for (int64_t row = 0; row < args.q_len; ++row, ++index) {
        const double exact =
            answer_of_row(problem, args, mask.data() + row * args.kv_len, {b, h, row}, expected);
        const bool same = exact == kNone
                              ? lse[index] == -std::numeric_limits<float>::infinity()
                              : std::abs(lse[index] - exact) <= 1e-5 + 2e-6 * std::abs(exact);
        if (!same) return "log-sum-exp of row " + std::to_string(row);
        double error = 0, size = 0;
        for (int64_t c = 0; c < args.value_dim; ++c) {
          const double x = out.get(b, h, row, c), r = expected[static_cast<size_t>(c)];
          error += (x - r) * (x - r);
          size += r * r;
        }
        // Small sums of large values may cancel.
        if (!(std::sqrt(error) <= 5e-6 * std::sqrt(size) + (exact == kNone ? 0 : 1e-6)))
          return "row " + std::to_string(row);
      }
    }
  }
  return "";
}

}  // namespace

FuzzVerdict fuzz_block_lists(const uint8_t* data, size_t size) {
  Bytes bytes(data, size);
  const Shape shape = shape_of(bytes);
  const auto seed = static_cast<uint32_t>(bytes.below(65536));
  const bool sizes_too = bytes.take() % 4 == 0;
  Problem problem(shape, seed);
  for (int64_t i = bytes.below(4); i > 0; --i) change(bytes, problem);
  BlockSparseArgs args = problem.args();
  if (sizes_too) change_sizes(bytes, args);
  Tensor out(shape, problem.heads(), shape.q_len, shape.value_dim);
  std::vector<float> lse(static_cast<size_t>(shape.batch * problem.heads() * shape.q_len),
                         std::numeric_limits<float>::quiet_NaN());
  args.out = {out.bytes.data() + out.offset * dtype_bytes(shape.dtype), shape.dtype,
              out.batch_stride, out.head_stride, out.row_stride};
  args.lse = lse.data();
  const Status status = check(args);
  if (!status.ok()) return {FuzzVerdict::Outcome::refused, status.message};
  const int threads = 1 + bytes.take() % 2;
  const Isa isa = bytes.flag() ? Isa::baseline : best_isa();
  CheckedWorkspace memory(attention_workspace_bytes(args, threads));
  const Parallel parallel{run_on_threads, nullptr, threads};
  const Status ran = block_sparse_cpu(args, memory.get(), parallel, isa);
  if (!ran.ok()) return {FuzzVerdict::Outcome::wrong, ran.message};
  const std::string wrong = compare(problem, args, out, lse);
  return {wrong.empty() ? FuzzVerdict::Outcome::right : FuzzVerdict::Outcome::wrong, wrong};
}

}  // namespace fovea::kernels
