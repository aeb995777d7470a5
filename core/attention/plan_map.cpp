#include "core/attention/plan_map.h"

#include <algorithm>
#include <bit>

#include <ATen/ATen.h>

#include "core/attention/lower.h"

namespace fovea {
namespace {

// The first softmax over the call's own keys, or null.
const SoftmaxBranch* own_softmax(const AttentionPlan& plan) {
  for (const Branch& branch : plan.branches) {
    const auto* softmax = std::get_if<SoftmaxBranch>(&branch.kind);
    if (softmax != nullptr && !softmax->keys) return softmax;
  }
  return nullptr;
}

std::vector<int64_t> offsets_of(const std::vector<int32_t>& all, int64_t map, int64_t blocks) {
  const auto begin = all.begin() + map * (blocks + 1);
  return {begin, begin + blocks + 1};
}

// The exact blocks of one head, and how much of them is seen.
void take_lists(const HostLists& lists, int64_t head, PlanMap& map) {
  const int64_t nq = map.q_blocks(), nk = map.kv_blocks();
  const int64_t* row_ptr = lists.row_ptr.data() + head * (nq + 1);
  for (int64_t i = 0; i < nq; ++i) {
    for (int64_t entry = row_ptr[i]; entry < row_ptr[i + 1]; ++entry) {
      const int64_t j = lists.kv_index[static_cast<size_t>(entry)];
      const auto at = static_cast<size_t>(i * nk + j);
      map.classes[at] = block_class::exact;
      map.seen[at] = 1;
      if (lists.bits_offset.empty() || lists.bits_offset[static_cast<size_t>(entry)] < 0) continue;
      const int64_t rows = map.q_offsets[i + 1] - map.q_offsets[i];
      const int64_t keys = map.kv_offsets[j + 1] - map.kv_offsets[j];
      const uint64_t* words = lists.bits.data() + lists.bits_offset[static_cast<size_t>(entry)];
      int64_t count = 0;
      for (int64_t w = 0; w < rows * ((keys + 63) / 64); ++w) count += std::popcount(words[w]);
      map.seen[at] = static_cast<float>(count) / static_cast<float>(rows * keys);
    }
  }
}

// Blocks of pooled keys: everything above `exact` in the class map.
void take_summaries(const Selection& selection, int64_t item, int64_t head, PlanMap& map) {
  const at::Tensor& classes = selection.classes;
  const at::Tensor own = classes[classes.size(0) == 1 ? 0 : item][classes.size(1) == 1 ? 0 : head]
                             .to(at::kCPU)
                             .contiguous();
  const uint8_t* data = own.const_data_ptr<uint8_t>();
  for (size_t at = 0; at < map.classes.size(); ++at) {
    if (data[at] >= block_class::first_summary) map.classes[at] = data[at];
  }
}

void count(const Selection& selection, PlanMap& map) {
  const int64_t nq = map.q_blocks(), nk = map.kv_blocks();
  const auto rows = static_cast<double>(std::max<int64_t>(map.q_offsets.back(), 1));
  const auto keys = static_cast<double>(std::max<int64_t>(map.kv_offsets.back(), 1));
  for (int64_t i = 0; i < nq; ++i) {
    int64_t taken = 0;
    for (int64_t j = 0; j < nk; ++j) {
      const uint8_t value = map.classes[static_cast<size_t>(i * nk + j)];
      const int64_t size = map.kv_offsets[j + 1] - map.kv_offsets[j];
      if (value == block_class::exact) taken += size;
      if (value < block_class::first_summary) continue;
      const int64_t pool = selection.summaries[value - block_class::first_summary].pool;
      taken += pool == 0 ? (size > 0) : (size + pool - 1) / pool;
    }
    map.row_density.push_back(static_cast<double>(taken) / keys);
    map.density += map.row_density.back() *
                   static_cast<double>(map.q_offsets[i + 1] - map.q_offsets[i]) / rows;
  }
}

}  // namespace

std::vector<PlanMap> plan_maps(const AttentionPlan& plan, const AttentionCall& call, int64_t item) {
  const SoftmaxBranch* branch = own_softmax(plan);
  if (branch == nullptr) return {};
  const HostLists lists = lower_to_lists(plan, *branch, call, item);
  const at::Tensor& classes = branch->selection.classes;
  const bool has_summaries = !branch->selection.summaries.empty();
  const int64_t own = has_summaries ? std::max(lists.maps, classes.size(1)) : lists.maps;
  std::vector<PlanMap> maps;
  for (int64_t head = 0; head < own; ++head) {
    const int64_t list = lists.maps == 1 ? 0 : head;
    PlanMap map;
    map.q_offsets = offsets_of(lists.q_offsets, list, lists.num_q_blocks);
    map.kv_offsets = offsets_of(lists.kv_offsets, list, lists.num_kv_blocks);
    map.classes.assign(static_cast<size_t>(lists.num_q_blocks * lists.num_kv_blocks), 0);
    map.seen.assign(map.classes.size(), 0);
    take_lists(lists, list, map);
    if (has_summaries) take_summaries(branch->selection, item, head, map);
    count(branch->selection, map);
    maps.push_back(std::move(map));
  }
  return maps;
}

std::optional<double> plan_density(const AttentionPlan& plan, const AttentionCall& call) {
  const SoftmaxBranch* branch = own_softmax(plan);
  const auto is_softmax = [](const Branch& it) {
    return std::holds_alternative<SoftmaxBranch>(it.kind);
  };
  const auto softmaxes = std::count_if(plan.branches.begin(), plan.branches.end(), is_softmax);
  if (branch == nullptr || softmaxes != 1) return std::nullopt;
  const Selection& selection = branch->selection;
  if (selection.predicates.empty()) {
    return block_density(selection, call.q.device()).mean().item<double>();
  }
  // Predicates do not depend on the data; a class map beside them may, so all items are looked at.
  const int64_t items = lists_differ(plan, *branch) ? call.q.size(0) : 1;
  double sum = 0, count = 0;
  for (int64_t item = 0; item < items; ++item) {
    for (const PlanMap& map : plan_maps(plan, call, item)) sum += map.density, ++count;
  }
  return sum / count;
}

}  // namespace fovea
