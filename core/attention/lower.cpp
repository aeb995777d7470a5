#include "core/attention/lower.h"

#include <algorithm>
#include <array>

#include <ATen/ATen.h>

#include "core/attention/block_pool.h"
#include "core/check.h"

namespace fovea {
namespace {

constexpr int64_t kBlock = 128;  // where a plan has no blocks of its own

// [batch or 1, heads or 1, n] as that of one item and head.
at::Tensor of(const at::Tensor& x, int64_t item, int64_t head, int64_t heads) {
  const int64_t own = x.size(1);
  return x[x.size(0) == 1 ? 0 : item][own == 1 ? 0 : head * own / heads];
}

std::vector<int64_t> numbers(const at::Tensor& x) {
  const at::Tensor flat = x.to(at::kCPU, at::kLong).contiguous();
  return {flat.const_data_ptr<int64_t>(), flat.const_data_ptr<int64_t>() + flat.numel()};
}

// The predicates of a branch for pairs of positions of one item and head.
class PairTest {
 public:
  PairTest(const AttentionPlan& plan, const SoftmaxBranch& branch, const AttentionCall& call,
           int64_t item, int64_t head) {
    const int64_t heads = call.q.size(1);
    q_rows_ = numbers(of(plan.q_order.rows(call.q_layout, at::kCPU), item, head, heads));
    kv_rows_ = numbers(of(plan.kv_order.rows(call.kv_layout, at::kCPU), item, head, heads));
    const auto position = [](const std::vector<int64_t>& rows) {
      at::Tensor out = at::empty({static_cast<int64_t>(rows.size())}, at::kLong);
      for (size_t i = 0; i < rows.size(); ++i) out[rows[i]] = static_cast<int64_t>(i);
      return out.view({1, 1, -1});
    };
    const PredicateSpace space{call.q_layout, call.kv_layout, position(q_rows_),
                               position(kv_rows_)};
    for (const Predicate& predicate : branch.selection.predicates) {
      at::Tensor seen = visible_pairs(predicate, space);
      if (seen.dim() == 4) seen = of(seen, item, head, heads);
      seen = seen.reshape({seen.size(-2), seen.size(-1)});
      visible_ = visible_.defined() ? visible_.logical_and(seen) : seen;
    }
    visible_ = visible_.expand({call.q.size(2), call.k.size(2)}).contiguous();
  }

  // How many of a block's pairs are seen; their bits are added to `bits`.
  int64_t count(std::array<int64_t, 2> q, std::array<int64_t, 2> kv,
                std::vector<uint64_t>& bits) const {
    const bool* visible = visible_.const_data_ptr<bool>();
    const int64_t keys = visible_.size(1), words = (kv[1] - kv[0] + 63) / 64;
    int64_t seen = 0;
    for (int64_t i = q[0]; i < q[1]; ++i) {
      const bool* row = visible + q_rows_[static_cast<size_t>(i)] * keys;
      const size_t first = bits.size();
      bits.resize(first + static_cast<size_t>(words), 0);
      for (int64_t j = kv[0]; j < kv[1]; ++j) {
        const bool is_seen = row[kv_rows_[static_cast<size_t>(j)]];
        const int64_t at = j - kv[0];
        bits[first + static_cast<size_t>(at / 64)] |= uint64_t{is_seen} << (at % 64);
        seen += is_seen;
      }
    }
    return seen;
  }

 private:
  std::vector<int64_t> q_rows_, kv_rows_;  // by position
  at::Tensor visible_;                     // bool [q_len, kv_len] by row
};

// Sizes of the head axis of all that lists depend on.
int64_t num_maps(const AttentionPlan& plan, const Selection& selection, const AttentionCall& call,
                 const BlockAxis& q_blocks, const BlockAxis& kv_blocks) {
  const auto has_heads = [](const at::Tensor& x) { return x.defined() && x.size(1) > 1; };
  bool per_head = has_heads(selection.classes) || has_heads(q_blocks.offsets(at::kCPU)) ||
                  has_heads(kv_blocks.offsets(at::kCPU));
  if (!selection.predicates.empty()) {
    per_head = per_head || has_heads(plan.q_order.rows(call.q_layout, at::kCPU)) ||
               has_heads(plan.kv_order.rows(call.kv_layout, at::kCPU));
  }
  for (const Predicate& predicate : selection.predicates) {
    const auto* stored = std::get_if<StoredPredicate>(&predicate);
    per_head = per_head || (stored != nullptr && has_heads(stored->visible));
  }
  return per_head ? call.q.size(1) : 1;
}

// The first key, or pooled key, of each block, and the number of keys.
at::Tensor key_offsets(const Selection& selection, const BlockAxis& blocks, uint8_t keys,
                       int64_t item, int64_t head, int64_t heads) {
  if (keys == block_class::exact) return of(blocks.offsets(at::kCPU), item, head, heads);
  const Summary& summary = selection.summaries[keys - block_class::first_summary];
  return at::arange(blocks.num_blocks() + 1, at::kLong) * pieces_per_block(blocks, summary.pool);
}

void append(std::vector<int32_t>& to, const std::vector<int64_t>& from) {
  for (const int64_t value : from) to.push_back(static_cast<int32_t>(value));
}

}  // namespace

BlockAxis default_blocks(const TokenLayout& layout) { return BlockAxis::uniform(layout, kBlock); }

bool lists_differ(const AttentionPlan& plan, const SoftmaxBranch& branch) {
  const Selection& selection = branch.selection;
  const auto has_items = [](const at::Tensor& x) { return x.defined() && x.size(0) > 1; };
  bool differ = has_items(selection.classes);
  if (selection.classes.defined()) {
    differ = differ || has_items(selection.q_blocks.offsets(at::kCPU)) ||
             has_items(selection.kv_blocks.offsets(at::kCPU));
  }
  for (const Predicate& predicate : selection.predicates) {
    const auto* stored = std::get_if<StoredPredicate>(&predicate);
    differ = differ || (stored != nullptr && has_items(stored->visible));
    // An index may differ per item, and cuts the predicates differently then.
    differ = differ || plan.q_order.kind() == TokenOrder::Kind::index ||
             plan.kv_order.kind() == TokenOrder::Kind::index;
  }
  return differ;
}

HostLists lower_to_lists(const AttentionPlan& plan, const SoftmaxBranch& branch,
                         const AttentionCall& call, int64_t item, uint8_t keys) {
  const Selection& selection = branch.selection;
  const bool mapped = selection.classes.defined();
  const TokenLayout kv_layout =
      branch.keys ? TokenLayout::extra(branch.keys->k.size(2)) : call.kv_layout;
  const BlockAxis q_blocks = mapped ? selection.q_blocks : default_blocks(call.q_layout);
  const BlockAxis kv_blocks = mapped ? selection.kv_blocks : default_blocks(kv_layout);
  const int64_t heads = call.q.size(1);
  HostLists out;
  out.maps = num_maps(plan, selection, call, q_blocks, kv_blocks);
  out.num_q_blocks = q_blocks.num_blocks();
  out.num_kv_blocks = kv_blocks.num_blocks();
  std::vector<uint64_t> words;
  bool any_bits = false;
  for (int64_t head = 0; head < out.maps; ++head) {
    const auto q_offsets = numbers(of(q_blocks.offsets(at::kCPU), item, head, heads));
    const auto kv_offsets = numbers(key_offsets(selection, kv_blocks, keys, item, head, heads));
    append(out.q_offsets, q_offsets);
    append(out.kv_offsets, kv_offsets);
    at::Tensor classes;
    if (mapped) classes = of(selection.classes, item, head, heads).to(at::kCPU).contiguous();
    std::optional<PairTest> test;
    if (!selection.predicates.empty() && keys == block_class::exact) {
      test.emplace(plan, branch, call, item, head);
    }
    for (int64_t i = 0; i < out.num_q_blocks; ++i) {
      out.row_ptr.push_back(static_cast<int64_t>(out.kv_index.size()));
      const auto row = static_cast<size_t>(i);
      for (int64_t j = 0; j < out.num_kv_blocks; ++j) {
        if (mapped && classes.const_data_ptr<uint8_t>()[i * out.num_kv_blocks + j] != keys) {
          continue;
        }
        int64_t first_word = -1;
        if (test) {
          const auto column = static_cast<size_t>(j);
          const std::array<int64_t, 2> q = {q_offsets[row], q_offsets[row + 1]};
          const std::array<int64_t, 2> kv = {kv_offsets[column], kv_offsets[column + 1]};
          words.clear();
          const int64_t seen = test->count(q, kv, words);
          if (seen == 0) continue;
          if (seen < (q[1] - q[0]) * (kv[1] - kv[0])) {
            first_word = static_cast<int64_t>(out.bits.size());
            out.bits.insert(out.bits.end(), words.begin(), words.end());
            any_bits = true;
          }
        }
        out.kv_index.push_back(static_cast<int32_t>(j));
        out.bits_offset.push_back(first_word);
      }
    }
    out.row_ptr.push_back(static_cast<int64_t>(out.kv_index.size()));
  }
  if (!any_bits) out.bits_offset.clear();
  return out;
}

}  // namespace fovea
