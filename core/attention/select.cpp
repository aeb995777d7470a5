#include "core/attention/select.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include <ATen/ATen.h>

#include "core/check.h"

namespace fovea {
namespace {

// The rank of each entry of a row, 0 for the highest; the lower index first.
at::Tensor ranks(const at::Tensor& scores) {
  const at::Tensor order = std::get<1>(at::sort(scores, /*stable=*/true, -1, /*descending=*/true));
  const at::Tensor rank = at::arange(scores.size(-1), order.options()).expand_as(order);
  return at::empty_like(order).scatter_(-1, order, rank);
}

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
  return ranks(scores).lt(count).logical_and(scores.ne(lowest));
}

at::Tensor keep_top_p(const at::Tensor& probabilities, double p, Crossing crossing,
                      int64_t min_count) {
  // A rounded sum may pass 1 before the last block.
  if (p >= 1) return at::ones_like(probabilities, probabilities.options().dtype(at::kBool));
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
    const at::Tensor index = at::tensor(blocks, at::kLong).to(classes.device());
    classes.index_fill_(axis, index, block_class::exact);
  };
  mark(2, other_blocks(selection.q_blocks, call.q_layout));
  mark(3, other_blocks(selection.kv_blocks, call.kv_layout));
  selection.classes = classes.to(call.q.device());
}

}  // namespace fovea
