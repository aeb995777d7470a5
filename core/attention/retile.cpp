#include "core/attention/retile.h"

#include <algorithm>
#include <optional>

#include <ATen/ATen.h>

#include "core/attention/block_pool.h"
#include "core/attention/class_sets.h"
#include "core/check.h"

namespace fovea {
namespace {

template <typename... Parts>
void need(bool condition, const Parts&... parts) {
  require(condition, ErrorCode::usage, "retile", parts...);
}

// The old block that each new one lies in; nothing where one straddles, or the host does not know.
std::optional<std::vector<int64_t>> parents(const BlockAxis& blocks, const BlockAxis& old) {
  const std::vector<int64_t>&to = blocks.host_offsets(), &from = old.host_offsets();
  if (from.size() < 2) return std::nullopt;
  std::vector<int64_t> out;
  size_t parent = 0;
  for (size_t i = 0; i + 1 < to.size(); ++i) {
    while (parent + 2 < from.size() && from[parent + 1] <= to[i]) ++parent;
    if (to[i + 1] > std::max(from[parent + 1], to[i])) return std::nullopt;
    out.push_back(static_cast<int64_t>(parent));
  }
  return out;
}

// Whether new blocks hold whole means of the blocks that they lie in.
bool keeps_means(const BlockAxis& blocks, const BlockAxis& old, const std::vector<int64_t>& parent,
                 const Summary& summary) {
  for (size_t i = 0; i < parent.size(); ++i) {
    const auto number = static_cast<size_t>(parent[i]);
    const int64_t begin = old.host_offsets()[number], end = old.host_offsets()[number + 1];
    const int64_t first = blocks.host_offsets()[i], last = blocks.host_offsets()[i + 1];
    if (first == last) continue;
    if (summary.pool == 0 ? first != begin || last != end : (first - begin) % summary.pool != 0) {
      return false;
    }
  }
  return true;
}

at::Tensor taken(const at::Tensor& classes, int64_t axis, const std::vector<int64_t>& index) {
  return classes.index_select(axis, at::tensor(index, at::kLong).to(classes.device()));
}

// double [batch or 1, heads or 1, new blocks, old blocks]: positions that two blocks share.
at::Tensor shared_positions(const BlockAxis& blocks, const BlockAxis& old, at::Device device,
                            int64_t heads) {
  const at::Tensor to = blocks.offsets(device), from = per_head(old.offsets(device), heads);
  const auto first = [](const at::Tensor& x) { return x.slice(2, 0, -1); };
  const auto last = [](const at::Tensor& x) { return x.slice(2, 1); };
  const at::Tensor end = at::minimum(last(to).unsqueeze(3), last(from).unsqueeze(2));
  const at::Tensor begin = at::maximum(first(to).unsqueeze(3), first(from).unsqueeze(2));
  return (end - begin).clamp_min(0).to(at::kDouble);
}

class Retiler {
 public:
  Retiler(const AttentionPlan& plan, const AttentionCall& call) : plan_(plan), call_(call) {}

  void retile(SoftmaxBranch& branch, const BlockAxis& q_blocks, const BlockAxis& kv_blocks) const {
    Selection& selection = branch.selection;
    if (!selection.classes.defined()) return;
    const BlockAxis& keys = branch.keys ? selection.kv_blocks : kv_blocks;
    if (same_blocks(q_blocks, selection.q_blocks) && same_blocks(keys, selection.kv_blocks)) return;
    const Precision& precision = branch.precision;
    for (const Quantized* operand : {&precision.q, &precision.k, &precision.v, &precision.p}) {
      need(operand->format == NumberFormat::storage || operand->unit != ScaleUnit::block,
           "scales are per block of ", selection.q_blocks.describe(), " by ",
           selection.kv_blocks.describe());
    }
    if (!split(selection, q_blocks, keys)) cover(branch, q_blocks, keys);
    selection.q_blocks = q_blocks;
    selection.kv_blocks = keys;
  }

 private:
  // Where each new block lies within an old one.
  bool split(Selection& selection, const BlockAxis& q_blocks, const BlockAxis& kv_blocks) const {
    const auto whole = [](const BlockAxis& axis) {
      std::vector<int64_t> out;
      for (int64_t i = 0; i < axis.num_blocks(); ++i) out.push_back(i);
      return out;
    };
    const bool same_keys = same_blocks(kv_blocks, selection.kv_blocks);
    const auto rows = parents(q_blocks, selection.q_blocks);
    const auto columns = same_keys ? whole(kv_blocks) : parents(kv_blocks, selection.kv_blocks);
    if (!selection.summaries.empty()) {
      need(rows.has_value(), "summaries for ", selection.q_blocks.describe(),
           " of queries cannot be those for ", q_blocks.describe());
      need(columns.has_value(), "summaries of ", selection.kv_blocks.describe(),
           " of keys cannot be merged to ", kv_blocks.describe());
    }
    if (!rows || !columns) return false;
    for (const Summary& summary : selection.summaries) {
      need(same_keys || keeps_means(kv_blocks, selection.kv_blocks, *columns, summary),
           "summaries of ", selection.kv_blocks.describe(), ", means of ", summary.pool,
           " keys (0: all), cannot be cut to ", kv_blocks.describe());
    }
    selection.classes = taken(taken(selection.classes, 2, *rows), 3, *columns);
    return true;
  }

  // Keeps the blocks that cover a kept pair; stored bits say which pairs these are.
  void cover(SoftmaxBranch& branch, const BlockAxis& q_blocks, const BlockAxis& kv_blocks) const {
    Selection& selection = branch.selection;
    const at::Device device = selection.classes.device();
    const int64_t heads = call_.q.size(1);
    const at::Tensor exact = selection.classes.eq(block_class::exact);
    const at::Tensor rows = shared_positions(q_blocks, selection.q_blocks, device, heads);
    const at::Tensor columns = shared_positions(kv_blocks, selection.kv_blocks, device, heads);
    // Counts of pairs: whole numbers, below 2^53.
    const at::Tensor seen =
        at::matmul(at::matmul(rows, exact.to(at::kDouble)), columns.transpose(2, 3));
    const auto sizes = [&](const BlockAxis& axis) { return axis.offsets(device).diff(); };
    const at::Tensor all = sizes(q_blocks).unsqueeze(3) * sizes(kv_blocks).unsqueeze(2);
    if (!device.is_cpu() || seen.gt(0).logical_and(seen.lt(all)).any().item<bool>()) {
      need(!branch.keys, "queries of given keys are in ", selection.q_blocks.describe(),
           ", which differ within ", q_blocks.describe());
      selection.predicates.emplace_back(StoredPredicate{pairs(selection, exact)});
    }
    selection.classes = seen.gt(0).to(at::kByte);
  }

  // bool [batch or 1, heads or 1, q_len, kv_len] by row: the pairs of kept blocks.
  at::Tensor pairs(const Selection& selection, const at::Tensor& kept) const {
    const int64_t heads = call_.q.size(1);
    const at::Device device = kept.device();
    return at_blocks(
        kept, piece_of_row(selection.q_blocks, 0, plan_.q_order, call_.q_layout, device, heads),
        piece_of_row(selection.kv_blocks, 0, plan_.kv_order, call_.kv_layout, device, heads));
  }

  const AttentionPlan& plan_;
  const AttentionCall& call_;
};

}  // namespace

AttentionPlan retile(const AttentionPlan& plan, const AttentionCall& call,
                     const BlockAxis& q_blocks, const BlockAxis& kv_blocks) {
  const auto covers = [](const BlockAxis& axis, int64_t tokens) {
    return !axis.host_offsets().empty() && axis.host_offsets().back() == tokens;
  };
  need(covers(q_blocks, call.q.size(2)) && covers(kv_blocks, call.k.size(2)),
       "expected blocks that cover ", call.q.size(2), " queries and ", call.k.size(2), " keys");
  AttentionPlan out = plan;
  const Retiler retiler(plan, call);
  for (Branch& branch : out.branches) {
    if (auto* softmax = std::get_if<SoftmaxBranch>(&branch.kind)) {
      retiler.retile(*softmax, q_blocks, kv_blocks);
    }
  }
  return out;
}

AttentionPlan retile(const AttentionPlan& plan, const AttentionCall& call, int64_t block_q,
                     int64_t block_kv) {
  return retile(plan, call, BlockAxis::uniform(call.q_layout, block_q),
                BlockAxis::uniform(call.kv_layout, block_kv));
}

}  // namespace fovea
