#include "core/attention/select.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include <ATen/ATen.h>

#include "core/attention/device_constants.h"
#include "core/ops/device_kernel.h"
#include "core/parallel.h"
#include "kernels/attention/select_blocks.h"

namespace fovea {
namespace {

// The rank of each entry of a row, 0 for the highest; the lower index first.
at::Tensor ranks(const at::Tensor& scores) {
  const at::Tensor order = std::get<1>(at::sort(scores, /*stable=*/true, -1, /*descending=*/true));
  const at::Tensor rank = at::arange(scores.size(-1), order.options()).expand_as(order);
  return at::empty_like(order).scatter_(-1, order, rank);
}

// Whether a kernel chooses where the scores are.
bool has_kernel(const at::Tensor& scores) {
  return ops::kHasCudaKernels && scores.is_cuda() && scores.scalar_type() == at::kFloat &&
         scores.size(-1) <= std::numeric_limits<int32_t>::max();
}

at::Tensor choose(const at::Tensor& scores, kernels::SelectBlocksArgs args) {
  const at::Tensor whole = scores.contiguous();
  const at::Tensor out = at::empty(scores.sizes(), scores.options().dtype(at::kBool));
  args.scores = whole.const_data_ptr<float>();
  args.blocks = static_cast<int32_t>(scores.size(-1));
  args.rows = args.blocks == 0 ? 0 : scores.numel() / args.blocks;
  args.chosen = out.mutable_data_ptr<bool>();
  ops::run_on("select_blocks", scores.device(), args, &kernels::select_blocks_cpu,
              FOVEA_CUDA_LAUNCHER(select_blocks_cuda));
  return out;
}

// As many as there are at most.
int32_t count_of(int64_t count, const at::Tensor& scores) {
  return static_cast<int32_t>(std::clamp<int64_t>(count, 0, scores.size(-1)));
}

// Calls f(values, kept) for each row of scores on the CPU, where sorting whole rows of tensors
// costs more than all the rest: `kept` is to be set. NaN counts as the highest, as LibTorch sorts.
template <typename F>
at::Tensor keep_in_rows(const at::Tensor& scores, const F& f) {
  const at::Tensor values = scores.to(at::kDouble).contiguous();
  at::Tensor kept = at::zeros(scores.sizes(), scores.options().dtype(at::kBool));
  const int64_t blocks = scores.size(-1), rows = blocks == 0 ? 0 : scores.numel() / blocks;
  const double* from = values.const_data_ptr<double>();
  bool* to = kept.mutable_data_ptr<bool>();
  parallel_for(rows, 16, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) f(from + row * blocks, to + row * blocks);
  });
  return kept;
}

// Numbers of entries, taken from the highest on; of equal ones the lower number first.
class Descending {
 public:
  Descending(const double* values, int64_t count)
      : after_{values}, heap_(static_cast<size_t>(count)) {
    std::iota(heap_.begin(), heap_.end(), int64_t{0});
    std::make_heap(heap_.begin(), heap_.end(), after_);
  }
  bool is_empty() const { return heap_.empty(); }
  int64_t take() {
    std::pop_heap(heap_.begin(), heap_.end(), after_);
    const int64_t out = heap_.back();
    heap_.pop_back();
    return out;
  }

 private:
  struct After {
    const double* values;
    bool operator()(int64_t a, int64_t b) const {
      const double x = values[a], y = values[b];
      if (std::isnan(x) != std::isnan(y)) return std::isnan(y);
      return x == y || std::isnan(x) ? a > b : x < y;
    }
  };
  After after_;
  std::vector<int64_t> heap_;
};

// Numbers of the blocks that lie outside of grids.
std::vector<int64_t> other_blocks(const BlockAxis& blocks, const TokenLayout& layout) {
  const std::vector<int64_t>& offsets = blocks.host_offsets();
  std::vector<int64_t> out;
  size_t block = 0;
  int64_t end = 0;
  for (const Segment& segment : layout.segments()) {
    end += segment.capacity;
    for (; block + 1 < offsets.size() && offsets[block] < end; ++block) {
      if (segment.kind != Segment::Kind::grid) out.push_back(static_cast<int64_t>(block));
    }
  }
  return out;
}

}  // namespace

int64_t kept_blocks(double density, int64_t blocks) {
  const auto kept = static_cast<int64_t>(std::floor(density * static_cast<double>(blocks) + 0.5));
  return std::clamp<int64_t>(kept, 1, std::max<int64_t>(blocks, 1));
}

at::Tensor keep_top_k(const at::Tensor& scores, int64_t count) {
  const double lowest = -std::numeric_limits<double>::infinity();
  if (scores.is_cpu()) {
    return keep_in_rows(scores, [&](const double* values, bool* kept) {
      Descending highest(values, scores.size(-1));
      for (int64_t i = 0; i < count && !highest.is_empty(); ++i) {
        const int64_t at = highest.take();
        kept[at] = values[at] != lowest;
      }
    });
  }
  if (has_kernel(scores)) {
    return choose(scores, {.least = count_of(count, scores), .takes_lowest = false});
  }
  return ranks(scores).lt(count).logical_and(scores.ne(lowest));
}

at::Tensor keep_top_p(const at::Tensor& probabilities, double p, Crossing crossing,
                      int64_t min_count) {
  // A rounded sum may pass 1 before the last block.
  if (p >= 1) return at::ones_like(probabilities, probabilities.options().dtype(at::kBool));
  if (probabilities.is_cpu()) {
    return keep_in_rows(probabilities, [&](const double* values, bool* kept) {
      Descending highest(values, probabilities.size(-1));
      double before = 0;
      for (int64_t i = 0; !highest.is_empty(); ++i) {
        const int64_t at = highest.take();
        const bool is_in = crossing == Crossing::kept ? before < p : before + values[at] <= p;
        if (!is_in && i >= min_count) break;
        kept[at] = true;
        before += values[at];
      }
    });
  }
  if (has_kernel(probabilities)) {
    return choose(probabilities, {.least = count_of(min_count, probabilities),
                                  .sums = true,
                                  .mass = p,
                                  .takes_crossing = crossing == Crossing::kept});
  }
  const at::Tensor rank = ranks(probabilities);
  const auto [sorted, order] = at::sort(probabilities, /*stable=*/true, -1, /*descending=*/true);
  const at::Tensor sum = sorted.cumsum(-1);
  // Before the crossing block the sum is below p; with it, it is at p or above.
  const at::Tensor kept = crossing == Crossing::kept ? (sum - sorted).lt(p) : sum.le(p);
  return kept.gather(-1, rank).logical_or(rank.lt(min_count));
}

void set_classes(Selection& selection, at::Tensor classes, const AttentionCall& call) {
  const auto mark = [&](int64_t axis, const std::vector<int64_t>& blocks) {
    if (blocks.empty()) return;
    classes.index_fill_(axis, device_numbers(blocks, classes.device()), block_class::exact);
  };
  mark(2, other_blocks(selection.q_blocks, call.q_layout));
  mark(3, other_blocks(selection.kv_blocks, call.kv_layout));
  selection.classes = classes.to(call.q.device());
}

}  // namespace fovea
