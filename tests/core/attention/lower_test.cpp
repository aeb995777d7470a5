// Lists of blocks beside the plainest way to make them: every pair of tokens by itself.

#include "core/attention/lower.h"

#include <bit>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "core/attention/block_pool.h"
#include "tests/core/attention/executor_case.h"
#include "tests/support/attention_cases.h"

namespace fovea {
namespace {

using test::selection_of;

// A tensor [batch or 1, heads or 1, ...] of one item and head of four.
at::Tensor of(const at::Tensor& x, int64_t item, int64_t head) {
  return x[x.size(0) == 1 ? 0 : item][head * x.size(1) / 4];
}

// bool [q_len, kv_len] by position of the orders.
at::Tensor visible(const AttentionPlan& plan, const AttentionCall& call, int64_t item,
                   int64_t head) {
  const at::Tensor q = plan.q_order.rows(call.q_layout, at::kCPU);
  const at::Tensor kv = plan.kv_order.rows(call.kv_layout, at::kCPU);
  const PredicateSpace space{call.q_layout, call.kv_layout,
                             positions_of_rows(of(q, item, head).view({1, 1, -1})),
                             positions_of_rows(of(kv, item, head).view({1, 1, -1}))};
  at::Tensor out = at::ones({call.q.size(2), call.k.size(2)}, at::kBool);
  const auto& branch = std::get<SoftmaxBranch>(plan.branches[0].kind);
  for (const Predicate& predicate : branch.selection.predicates) {
    at::Tensor seen = visible_pairs(predicate, space);
    if (seen.dim() == 4) seen = of(seen, item, head);
    out = out.logical_and(seen.reshape({seen.size(-2), seen.size(-1)}));
  }
  return out.index_select(0, of(q, item, head)).index_select(1, of(kv, item, head)).contiguous();
}

// Bits of one pair of blocks.
std::vector<uint64_t> bits_of(const at::Tensor& block) {
  std::vector<uint64_t> out;
  const auto seen = block.accessor<bool, 2>();
  for (int64_t i = 0; i < block.size(0); ++i) {
    const size_t first = out.size();
    out.resize(first + static_cast<size_t>((block.size(1) + 63) / 64), 0);
    for (int64_t j = 0; j < block.size(1); ++j) {
      out[first + static_cast<size_t>(j / 64)] |= uint64_t{seen[i][j]} << (j % 64);
    }
  }
  return out;
}

void expect_lists(const AttentionPlan& plan, const AttentionCall& call) {
  validate(plan, call);
  const auto& branch = std::get<SoftmaxBranch>(plan.branches[0].kind);
  const Selection& selection = branch.selection;
  for (int64_t item = 0; item < call.q.size(0); ++item) {
    const HostLists lists = lower_to_lists(plan, branch, call, item);
    size_t entry = 0, words = 0;
    for (int64_t map = 0; map < lists.maps; ++map) {
      const at::Tensor seen = visible(plan, call, item, map);
      const int32_t* q = lists.q_offsets.data() + map * (lists.num_q_blocks + 1);
      const int32_t* kv = lists.kv_offsets.data() + map * (lists.num_kv_blocks + 1);
      for (int64_t i = 0; i < lists.num_q_blocks; ++i) {
        const auto row = static_cast<size_t>(map * (lists.num_q_blocks + 1) + i);
        ASSERT_EQ(lists.row_ptr[row], static_cast<int64_t>(entry)) << plan.describe();
        for (int64_t j = 0; j < lists.num_kv_blocks; ++j) {
          if (selection.classes.defined() &&
              of(selection.classes, item, map)[i][j].item<uint8_t>() != block_class::exact) {
            continue;
          }
          const at::Tensor block =
              seen.slice(0, q[i], q[i + 1]).slice(1, kv[j], kv[j + 1]).contiguous();
          const int64_t count = block.sum().item<int64_t>();
          if (count == 0) continue;
          ASSERT_LT(entry, lists.kv_index.size()) << plan.describe();
          ASSERT_EQ(lists.kv_index[entry], j) << plan.describe() << " row " << i;
          const int64_t first = lists.bits_offset.empty() ? -1 : lists.bits_offset[entry];
          ++entry;
          ASSERT_EQ(first < 0, count == block.numel()) << plan.describe();
          if (first < 0) continue;
          const std::vector<uint64_t> expected = bits_of(block);
          ASSERT_EQ(first, static_cast<int64_t>(words));
          words += expected.size();
          ASSERT_LE(words, lists.bits.size());
          ASSERT_TRUE(std::equal(expected.begin(), expected.end(), lists.bits.begin() + first))
              << plan.describe() << " blocks " << i << " " << j;
        }
      }
      ASSERT_EQ(lists.row_ptr[static_cast<size_t>((map + 1) * (lists.num_q_blocks + 1) - 1)],
                static_cast<int64_t>(entry));
    }
    EXPECT_EQ(entry, lists.kv_index.size()) << plan.describe();
    EXPECT_EQ(words, lists.bits.size()) << plan.describe();
  }
}

AttentionCall call_of(const TokenLayout& layout) {
  return test::make_call({.layout = layout, .dim = 2});
}

std::vector<Predicate> grid_predicates(const TokenLayout& layout) {
  const Segment* grid = nullptr;
  for (const Segment& segment : layout.segments()) {
    if (segment.kind == Segment::Kind::grid) grid = &segment;
  }
  WindowPredicate window, dilated;
  for (size_t axis = 0; axis < 3; ++axis) {
    const int64_t length = grid->grid[axis];
    window.axes[axis] = {.size = std::min<int64_t>(3, length),
                         .stride = axis == 1 ? std::min<int64_t>(2, length) : 1};
    if (length >= 4) dilated.axes[axis] = {.size = 2, .dilation = 2};
  }
  dilated.axes[0] = {.size = 1, .causal = true};
  return {window,
          dilated,
          DiscPredicate{2.5},
          DiscPredicate{0},
          BandPredicate{5},
          BandPredicate{9, true},
          CausalPredicate{},
          CausalPredicate{true}};
}

void cut(AttentionPlan& plan, const AttentionCall& call, size_t number) {
  Selection& selection = selection_of(plan);
  const int64_t length = call.q_layout.seq_len();
  if (number == 0) return;  // blocks of 128
  if (number == 1) {
    selection.q_blocks = BlockAxis::uniform(call.q_layout, 8);
    selection.kv_blocks = BlockAxis::uniform(call.kv_layout, 70);
  } else if (number == 2) {
    selection.q_blocks = selection.kv_blocks = BlockAxis::tiles(call.q_layout, {2, 2, 3});
  } else {
    selection.q_blocks = test::random_blocks(2, 4, 6, length);
    selection.kv_blocks = test::random_blocks(1, 2, 9, length);
  }
  selection.classes = test::random_classes(selection, 2, number == 3 ? 4 : 1, 3);
}

TEST(Lowering, EqualsPairByPair) {
  at::manual_seed(1);
  for (const TokenLayout& layout : test::awkward_layouts()) {
    const AttentionCall call = call_of(layout);
    const int64_t length = layout.seq_len();
    for (const Predicate& predicate : grid_predicates(layout)) {
      for (size_t number = 0; number < 4; ++number) {
        AttentionPlan plan = AttentionPlan::dense("cut");
        if (number == 2) plan.q_order = plan.kv_order = TokenOrder::tiles({2, 2, 3});
        if (number == 3)
          plan.q_order = TokenOrder::axes({{2, 0, 1}, {0, 1, 2}, {1, 2, 0}, {2, 1, 0}});
        if (number == 3) plan.kv_order = test::random_order(2, 2, length);
        selection_of(plan).predicates = {predicate};
        cut(plan, call, number);
        expect_lists(plan, call);
      }
    }
  }
}

TEST(Lowering, JoinsPredicatesAndStoredBits) {
  at::manual_seed(2);
  for (const TokenLayout& layout : test::awkward_layouts()) {
    const AttentionCall call = call_of(layout);
    const int64_t length = layout.seq_len();
    const std::vector<Predicate> rules = grid_predicates(layout);
    for (const int64_t heads : {1, 4}) {
      for (size_t number = 0; number < 3; ++number) {
        const at::Tensor seen = at::rand({heads == 1 ? 2 : 1, heads, length, length}).gt(0.7);
        AttentionPlan plan = AttentionPlan::dense("cut");
        if (number == 2) plan.q_order = TokenOrder::tiles({2, 2, 3});
        selection_of(plan).predicates = {StoredPredicate{seen}, rules[0],
                                         StoredPredicate{seen.transpose(2, 3)}, rules[5]};
        if (number == 1) selection_of(plan).predicates = {StoredPredicate{at::ones_like(seen)}};
        cut(plan, call, number);
        expect_lists(plan, call);
      }
    }
  }
}

// A plan of 75,600 tokens, whose pairs would be 5.7 GB.
TEST(Lowering, TakesLongVideos) {
  AttentionCall call;
  call.q_layout = call.kv_layout = TokenLayout::grid(21, 45, 80);
  call.q = call.k = call.v = at::zeros({1, 1, 1, 1}).expand({1, 1, 75'600, 1});
  AttentionPlan plan = AttentionPlan::dense("cut");
  WindowPredicate window;
  window.axes[0] = {.size = 3};
  window.axes[1] = {.size = 9};
  selection_of(plan).predicates = {window};
  const HostLists lists =
      lower_to_lists(plan, std::get<SoftmaxBranch>(plan.branches[0].kind), call, 0);
  ASSERT_EQ(lists.maps, 1);
  // Every row sees 3 frames of 9 lines of 80.
  int64_t pairs = 0;
  for (int64_t i = 0; i < lists.num_q_blocks; ++i) {
    const int64_t rows =
        lists.q_offsets[static_cast<size_t>(i) + 1] - lists.q_offsets[static_cast<size_t>(i)];
    for (int64_t at = lists.row_ptr[static_cast<size_t>(i)];
         at < lists.row_ptr[static_cast<size_t>(i) + 1]; ++at) {
      const auto j = static_cast<size_t>(lists.kv_index[static_cast<size_t>(at)]);
      const int64_t keys = lists.kv_offsets[j + 1] - lists.kv_offsets[j];
      const int64_t first = lists.bits_offset[static_cast<size_t>(at)];
      if (first < 0) pairs += rows * keys;
      for (int64_t w = 0; first >= 0 && w < rows * ((keys + 63) / 64); ++w) {
        pairs += std::popcount(lists.bits[static_cast<size_t>(first + w)]);
      }
    }
  }
  EXPECT_EQ(pairs, int64_t{75'600} * 3 * 9 * 80);
}

}  // namespace
}  // namespace fovea
