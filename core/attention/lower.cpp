#include "core/attention/lower.h"

#include <algorithm>
#include <memory>
#include <optional>

#include <ATen/ATen.h>

#include "core/attention/block_pool.h"
#include "core/attention/pair_rules.h"
#include "core/parallel.h"

namespace fovea {
namespace {

constexpr int64_t kBlock = 128;  // where a plan has no blocks of its own
constexpr int64_t kUnit = 16;    // keys that kernels take at a time

// [batch or 1, heads or 1, n] as that of one item and head.
at::Tensor of(const at::Tensor& x, int64_t item, int64_t head, int64_t heads) {
  const int64_t own = x.size(1);
  return x[x.size(0) == 1 ? 0 : item][own == 1 ? 0 : head * own / heads];
}

std::vector<int64_t> numbers(const at::Tensor& x) {
  const at::Tensor flat = x.to(at::kCPU, at::kLong).contiguous();
  return {flat.const_data_ptr<int64_t>(), flat.const_data_ptr<int64_t>() + flat.numel()};
}

bool has_heads(const at::Tensor& x) { return x.defined() && x.size(1) > 1; }

// One branch of a call, and which of its keys are taken.
struct Task {
  const AttentionPlan& plan;
  const Selection& selection;
  const AttentionCall& call;
  int64_t item;
  uint8_t keys;
  BlockAxis q_blocks, kv_blocks;

  bool is_mapped() const { return selection.classes.defined(); }
  bool is_cut() const { return !selection.predicates.empty() && keys == block_class::exact; }
  // A tensor [batch or 1, heads or 1, ...] of one head.
  at::Tensor own(const at::Tensor& x, int64_t head) const {
    return of(x, item, head, call.q.size(1));
  }
};

// Whether blocks, or what predicates leave of them, differ from head to head.
bool blocks_per_head(const Task& task) {
  const AttentionCall& call = task.call;
  bool out =
      has_heads(task.q_blocks.offsets(at::kCPU)) || has_heads(task.kv_blocks.offsets(at::kCPU));
  if (task.selection.predicates.empty()) return out;
  out = out || has_heads(task.plan.q_order.rows(call.q_layout, at::kCPU)) ||
        has_heads(task.plan.kv_order.rows(call.kv_layout, at::kCPU));
  for (const Predicate& predicate : task.selection.predicates) {
    const auto* stored = std::get_if<StoredPredicate>(&predicate);
    out = out || (stored != nullptr && has_heads(stored->visible));
  }
  return out;
}

// The blocks of one head, and what predicates leave of their pairs.
struct CutBlocks {
  OrderedSide q, kv;
  PairRules rules;

  CutBlocks(const Task& task, int64_t head)
      : q(side(task, head, task.call.q_layout, task.plan.q_order, task.q_blocks)),
        kv(side(task, head, task.call.kv_layout, task.plan.kv_order, task.kv_blocks)),
        rules(task.selection.predicates, q, kv, stored(task, head)) {}

  static OrderedSide side(const Task& task, int64_t head, const TokenLayout& layout,
                          const TokenOrder& order, const BlockAxis& blocks) {
    return {layout, numbers(task.own(order.rows(layout, at::kCPU), head)),
            numbers(task.own(blocks.offsets(at::kCPU), head))};
  }
  static std::vector<at::Tensor> stored(const Task& task, int64_t head) {
    std::vector<at::Tensor> out;
    for (const Predicate& predicate : task.selection.predicates) {
      const auto* rule = std::get_if<StoredPredicate>(&predicate);
      if (rule == nullptr) continue;
      out.push_back(
          task.own(rule->visible, head).expand({task.call.q.size(2), task.call.k.size(2)}));
    }
    return out;
  }
};

// What one block of queries takes.
struct Entries {
  std::vector<int32_t> kv_index;
  std::vector<int64_t> first_word;  // of `bits`, or -1
  std::vector<uint64_t> bits;
};

// The first key, or pooled key, of each block, and the number of keys.
at::Tensor key_offsets(const Task& task, int64_t head) {
  const BlockAxis& blocks = task.kv_blocks;
  if (task.keys == block_class::exact) return task.own(blocks.offsets(at::kCPU), head);
  const Summary& summary = task.selection.summaries[task.keys - block_class::first_summary];
  return at::arange(blocks.num_blocks() + 1, at::kLong) * pieces_per_block(blocks, summary.pool);
}

void append(std::vector<int32_t>& to, const std::vector<int64_t>& from) {
  for (const int64_t value : from) to.push_back(static_cast<int32_t>(value));
}

// classes  of the pairs of this block, or null: all are taken
Entries entries_of(const uint8_t* classes, uint8_t keys, int64_t num_kv_blocks,
                   PairRules::Row* row) {
  Entries out;
  for (int64_t j = 0; j < num_kv_blocks; ++j) {
    if (classes != nullptr && classes[j] != keys) continue;
    const auto first = static_cast<int64_t>(out.bits.size());
    const auto seen = row == nullptr ? PairRules::Seen::all : row->take(j, out.bits);
    if (seen == PairRules::Seen::none) continue;
    out.kv_index.push_back(static_cast<int32_t>(j));
    out.first_word.push_back(seen == PairRules::Seen::some ? first : -1);
  }
  return out;
}

void append(HostLists& to, const Entries& from) {
  to.row_ptr.push_back(static_cast<int64_t>(to.kv_index.size()));
  to.kv_index.insert(to.kv_index.end(), from.kv_index.begin(), from.kv_index.end());
  const auto first = static_cast<int64_t>(to.bits.size());
  for (const int64_t word : from.first_word) to.bits_offset.push_back(word < 0 ? -1 : first + word);
  to.bits.insert(to.bits.end(), from.bits.begin(), from.bits.end());
}

}  // namespace

namespace {

// Whether lists are of the blocks that the branch names.
bool takes_own_blocks(const SoftmaxBranch& branch) {
  const Quantized& weights = branch.precision.p;
  return branch.selection.classes.defined() ||
         (weights.format != NumberFormat::storage && weights.unit == ScaleUnit::block);
}

}  // namespace

BlockAxis default_blocks(const TokenLayout& layout) { return BlockAxis::uniform(layout, kBlock); }

bool lists_differ(const AttentionPlan& plan, const SoftmaxBranch& branch) {
  const Selection& selection = branch.selection;
  const auto has_items = [](const at::Tensor& x) { return x.defined() && x.size(0) > 1; };
  bool differ = has_items(selection.classes);
  if (takes_own_blocks(branch)) {
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
  const TokenLayout kv_layout =
      branch.keys ? TokenLayout::extra(branch.keys->k.size(2)) : call.kv_layout;
  Task task{plan, selection, call, item, keys, selection.q_blocks, selection.kv_blocks};
  if (!takes_own_blocks(branch)) {
    task.q_blocks = default_blocks(call.q_layout);
    task.kv_blocks = default_blocks(kv_layout);
  }
  const bool per_head = blocks_per_head(task);
  HostLists out;
  out.maps = per_head || has_heads(selection.classes) ? call.q.size(1) : 1;
  out.num_q_blocks = task.q_blocks.num_blocks();
  out.num_kv_blocks = task.kv_blocks.num_blocks();
  std::unique_ptr<const CutBlocks> cut;
  for (int64_t head = 0; head < out.maps; ++head) {
    append(out.q_offsets, numbers(task.own(task.q_blocks.offsets(at::kCPU), head)));
    append(out.kv_offsets, numbers(key_offsets(task, head)));
    at::Tensor classes;
    if (task.is_mapped()) classes = task.own(selection.classes, head).to(at::kCPU).contiguous();
    if (task.is_cut() && (!cut || per_head)) cut = std::make_unique<CutBlocks>(task, head);
    std::vector<Entries> rows(static_cast<size_t>(out.num_q_blocks));
    const auto make = [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        std::optional<PairRules::Row> row;
        if (cut) row.emplace(cut->rules, i);
        const uint8_t* own = classes.defined() ? classes.const_data_ptr<uint8_t>() : nullptr;
        if (own != nullptr) own += i * out.num_kv_blocks;
        rows[static_cast<size_t>(i)] =
            entries_of(own, keys, out.num_kv_blocks, row ? &*row : nullptr);
      }
    };
    // Classes alone are read faster than threads wake up.
    cut ? parallel_for(out.num_q_blocks, 1, make) : make(0, out.num_q_blocks);
    for (const Entries& entries : rows) append(out, entries);
    out.row_ptr.push_back(static_cast<int64_t>(out.kv_index.size()));
  }
  if (out.bits.empty()) out.bits_offset.clear();
  return out;
}

std::vector<int64_t> summary_places(const Selection& selection, int64_t keys) {
  std::vector<int64_t> out;
  int64_t end = keys;
  for (const Summary& summary : selection.summaries) {
    const int64_t first = out.empty() ? end : end + 1;
    out.push_back((first + kUnit - 1) / kUnit * kUnit);
    end = out.back() +
          selection.kv_blocks.num_blocks() * pieces_per_block(selection.kv_blocks, summary.pool);
  }
  out.push_back(end);
  return out;
}

HostLists lower_with_summaries(const AttentionPlan& plan, const SoftmaxBranch& branch,
                               const AttentionCall& call, int64_t item) {
  const std::vector<Summary>& summaries = branch.selection.summaries;
  if (summaries.empty()) return lower_to_lists(plan, branch, call, item);
  std::vector<HostLists> parts;
  for (size_t i = 0; i <= summaries.size(); ++i) {
    parts.push_back(
        lower_to_lists(plan, branch, call, item, static_cast<uint8_t>(block_class::exact + i)));
  }
  std::vector<int64_t> places = summary_places(branch.selection, call.k.size(2));
  places.insert(places.begin(), 0);
  HostLists out = parts[0];
  out.num_kv_blocks = -1;
  // A block that nothing takes fills the gap behind each part.
  for (const HostLists& part : parts) out.num_kv_blocks += part.num_kv_blocks + 1;
  for (auto* list : {&out.kv_offsets, &out.kv_index}) list->clear();
  out.row_ptr.clear();
  out.bits_offset.clear();
  for (int64_t map = 0; map < out.maps; ++map) {
    for (size_t p = 0; p < parts.size(); ++p) {
      const int64_t count = parts[p].num_kv_blocks + 1;
      for (int64_t j = map * count; j < (map + 1) * count; ++j) {
        out.kv_offsets.push_back(static_cast<int32_t>(places[p]) + parts[p].kv_offsets[j]);
      }
    }
    for (int64_t i = 0; i <= out.num_q_blocks; ++i) {
      out.row_ptr.push_back(static_cast<int64_t>(out.kv_index.size()));
      int64_t first_block = 0;
      for (size_t p = 0; p < parts.size() && i < out.num_q_blocks; ++p) {
        const HostLists& part = parts[p];
        const int64_t row = map * (out.num_q_blocks + 1) + i;
        for (int64_t entry = part.row_ptr[row]; entry < part.row_ptr[row + 1]; ++entry) {
          out.kv_index.push_back(static_cast<int32_t>(first_block + part.kv_index[entry]));
          if (!out.bits.empty()) out.bits_offset.push_back(p == 0 ? part.bits_offset[entry] : -1);
        }
        first_block += part.num_kv_blocks + 1;
      }
    }
  }
  return out;
}

}  // namespace fovea
