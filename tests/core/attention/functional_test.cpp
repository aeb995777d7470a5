#include "core/attention/functional.h"

#include <limits>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "core/attention/executors/reference.h"
#include "core/check.h"
#include "tests/support/golden.h"

namespace fovea {
namespace {

using test::relative_error;

struct Inputs {
  at::Tensor q, k, v;
};

Inputs draw(int64_t q_len, int64_t kv_len, at::ScalarType dtype = at::kFloat) {
  return {at::randn({2, 4, q_len, 24}).to(dtype), at::randn({2, 2, kv_len, 24}).to(dtype),
          at::randn({2, 2, kv_len, 16}).to(dtype)};
}

std::string message_of(const auto& run) {
  try {
    run();
  } catch (const Error& error) {
    return error.what();
  }
  return "nothing was thrown";
}

void expect_message(const auto& run, const std::string& part) {
  EXPECT_NE(message_of(run).find(part), std::string::npos) << message_of(run);
}

TEST(Functional, IsTorchsAttentionWithALogSumExp) {
  at::manual_seed(1);
  for (const auto& [dtype, bound] :
       {std::pair{at::kDouble, 1e-13}, {at::kFloat, 2e-6}, {at::kBFloat16, 4e-3}}) {
    for (const bool is_causal : {false, true}) {
      const Inputs in = draw(70, 70, dtype);
      AttentionOptions options;
      options.is_causal = is_causal;
      const AttentionResult got = attention(in.q, in.k, in.v, options);
      const at::Tensor expected = at::scaled_dot_product_attention(
          in.q.to(at::kDouble), in.k.to(at::kDouble), in.v.to(at::kDouble), {}, 0.0, is_causal, {},
          /*enable_gqa=*/true);
      EXPECT_EQ(got.out.scalar_type(), dtype);
      EXPECT_LE(relative_error(got.out, expected), bound);
      at::Tensor logits = at::matmul(in.q.to(at::kDouble),
                                     in.k.to(at::kDouble).repeat_interleave(2, 1).transpose(2, 3)) /
                          std::sqrt(24.0);
      if (is_causal) {
        const at::Tensor later = at::ones({70, 70}, at::kBool).triu(1);
        logits = logits.masked_fill(later, -std::numeric_limits<double>::infinity());
      }
      EXPECT_EQ(got.lse.scalar_type(), dtype == at::kDouble ? at::kDouble : at::kFloat);
      EXPECT_TRUE(at::allclose(got.lse.to(at::kDouble), logits.logsumexp(3), 1e-5, 1e-5));
    }
  }
}

// Padding may hold anything, and lies anywhere once tiles have been cut.
TEST(Functional, SequencesMayEndWithPadding) {
  at::manual_seed(2);
  Inputs in = draw(40, 60);
  AttentionCall call{.q_layout = TokenLayout::sequence(40),
                     .kv_layout = TokenLayout::sequence(60, at::tensor({60, 33}, at::kLong)),
                     .q = in.q,
                     .k = in.k,
                     .v = in.v,
                     .needs_lse = true};
  AttentionPlan plan = AttentionPlan::dense("tiles");
  std::get<SoftmaxBranch>(plan.branches[0].kind).selection.predicates = {BandPredicate{30}};
  for (const auto& order : {TokenOrder(), TokenOrder::axes({{2, 1, 0}})}) {
    plan.kv_order = order;
    const AttentionResult reference = run_plan(plan, call, "reference");
    const AttentionResult cpu = run_plan(plan, call, "cpu");
    EXPECT_LE(relative_error(cpu.out, reference.out), 2e-6);
    for (at::Tensor* x : {&call.k, &call.v}) {
      (*x)[1].slice(1, 33).fill_(std::numeric_limits<float>::quiet_NaN());
    }
    EXPECT_TRUE(run_plan(plan, call, "cpu").out.equal(cpu.out));
  }
}

TEST(Functional, RunsAPlanner) {
  at::manual_seed(3);
  const TokenLayout layout = TokenLayout::grid(2, 8, 8);
  const Inputs in = draw(128, 128);
  AttentionOptions options{.planner = "topk",
                           .planner_options = parse_planner_options(
                               {"density=0.25", "block_q=16", "block_kv=16"}, "options"),
                           .q_layout = layout,
                           .kv_layout = layout};
  const AttentionResult cpu = attention(in.q, in.k, in.v, options);
  options.executor = "reference";
  EXPECT_LE(relative_error(cpu.out, attention(in.q, in.k, in.v, options).out), 2e-6);
  EXPECT_GT(relative_error(cpu.out, attention(in.q, in.k, in.v).out), 1e-2);
}

// Keys are shared by heads, and so are their clusters.
TEST(Functional, PlansOfSharedKeysMayHaveBlocksPerHeadOfKeys) {
  at::manual_seed(4);
  const TokenLayout layout = TokenLayout::grid(2, 8, 8);
  const Inputs in = draw(128, 128);
  AttentionOptions options{.planner = "svg2",
                           .planner_options = {{"q_clusters", 4}, {"kv_clusters", 6}},
                           .q_layout = layout,
                           .kv_layout = layout};
  const AttentionResult cpu = attention(in.q, in.k, in.v, options);
  options.executor = "reference";
  EXPECT_LE(relative_error(cpu.out, attention(in.q, in.k, in.v, options).out), 2e-6);
}

// 2^31 numbers that lie in one row of memory.
TEST(Functional, CountsBeyond32Bits) {
  at::manual_seed(5);
  const int64_t keys = 1 << 20;
  AttentionCall call{.q_layout = TokenLayout::sequence(2),
                     .kv_layout = TokenLayout::sequence(keys),
                     .q = at::randn({1, 8, 2, 256}),
                     .k = at::randn({1, 8, 1, 256}).expand({1, 8, keys, 256}),
                     .v = at::randn({1, 8, 1, 3}).expand({1, 8, keys, 3}),
                     .needs_lse = true};
  ASSERT_GE(call.k.numel(), int64_t{1} << 31);
  const AttentionPlan plan = AttentionPlan::dense("dense");
  const AttentionResult result = run_plan(plan, call, "cpu");
  // A sum of so many equal numbers in fp32 is off by more than those of drawn ones.
  EXPECT_LE(relative_error(result.out, call.v.slice(2, 0, 2)), 2e-4);
  const at::Tensor logit = at::matmul(call.q, call.k.slice(2, 0, 1).transpose(2, 3)).squeeze(3);
  EXPECT_TRUE(at::allclose(result.lse, logit / 16 + std::log(double(keys)), 1e-5, 1e-5));

  const int64_t too_many = (int64_t{1} << 31) + 8;
  call.kv_layout = TokenLayout::sequence(too_many);
  call.k = at::zeros({1, 8, 1, 256}).expand({1, 8, too_many, 256});
  call.v = at::zeros({1, 8, 1, 3}).expand({1, 8, too_many, 3});
  expect_message([&] { run_plan(plan, call, "cpu"); }, "at most 2147483647 tokens");
}

TEST(Functional, RefusesTensorsThatDoNotGoTogether) {
  const Inputs in = draw(8, 8);
  expect_message([&] { attention(in.q[0], in.k, in.v); }, "tensor 'q'");
  expect_message([&] { attention(in.q, in.k.slice(3, 1), in.v); }, "tensor 'k'");
  expect_message([&] { attention(in.q.slice(1, 0, 3), in.k, in.v); }, "tensor 'k'");
  expect_message([&] { attention(in.q, in.k, in.v.slice(2, 1)); }, "tensor 'v'");
  expect_message([&] { attention(in.q, in.k, in.v.to(at::kDouble)); }, "tensor 'v'");
  expect_message([&] { attention(in.q, in.k, at::Tensor()); }, "'v' is missing");
  expect_message([&] { attention(in.q.slice(3, 0, 0), in.k.slice(3, 0, 0), in.v); },
                 "at least one channel");
  AttentionOptions options;
  options.bias = at::zeros({1, 3, 8, 8});
  expect_message([&] { attention(in.q, in.k, in.v, options); }, "tensor 'bias'");
  options = {};
  options.q_layout = TokenLayout::grid(1, 3, 3);
  expect_message([&] { attention(in.q, in.k, in.v, options); }, "grid 1x3x3");
  options = {};
  options.executor = "abacus";
  expect_message([&] { attention(in.q, in.k, in.v, options); }, "known: auto, checked, ");
  options.executor = "sdpa";
  expect_message([&] { attention(in.q, in.k, in.v, options); }, "no log-sum-exp");
}

TEST(Functional, NothingToAttendToIsZero) {
  const Inputs in = draw(5, 0);
  const AttentionResult none = attention(in.q, in.k, in.v);
  EXPECT_EQ(none.out.abs().sum().item<double>(), 0);
  EXPECT_TRUE(none.lse.isneginf().all().item<bool>());
  const Inputs empty = draw(0, 5);
  EXPECT_EQ(attention(empty.q, empty.k, empty.v).out.numel(), 0);
}

struct Lie {
  const char* part;  // of the message
  void (*tell)(AttentionPlan& plan, Selection& selection);
};

class PlansThatLie : public testing::TestWithParam<Lie> {};

TEST_P(PlansThatLie, AreRefusedByName) {
  const Inputs in = draw(12, 12);
  AttentionCall call{.q_layout = TokenLayout::sequence(12),
                     .kv_layout = TokenLayout::sequence(12),
                     .q = in.q,
                     .k = in.k,
                     .v = in.v};
  AttentionPlan plan = AttentionPlan::dense("liar");
  Selection& selection = std::get<SoftmaxBranch>(plan.branches[0].kind).selection;
  plan.q_order = TokenOrder::index(at::arange(12, at::kInt).view({1, 1, 12}));
  const at::Tensor offsets = at::tensor({0, 4, 12}, at::kInt).view({1, 1, 3});
  selection.q_blocks = selection.kv_blocks = BlockAxis::from_offsets(offsets, 8);
  selection.classes = at::ones({1, 1, 2, 2}, at::kByte);
  run_plan(plan, call);  // nothing wrong yet
  GetParam().tell(plan, selection);
  for (const char* executor : {"cpu", "reference"}) {
    expect_message([&] { run_plan(plan, call, executor); }, GetParam().part);
  }
}

at::Tensor offsets_of(std::vector<int32_t> values) {
  return at::tensor(values, at::kInt).view({1, 1, -1});
}

INSTANTIATE_TEST_SUITE_P(
    Lies, PlansThatLie,
    testing::Values(
        Lie{"query order is no permutation",
            [](AttentionPlan& plan, Selection&) {
              plan.q_order = TokenOrder::index(at::zeros({1, 1, 12}, at::kInt));
            }},
        Lie{"key order is no permutation",
            [](AttentionPlan& plan, Selection&) {
              plan.kv_order = TokenOrder::index(at::arange(1, 13, at::kInt).view({1, 1, 12}));
            }},
        Lie{"query order of shape",
            [](AttentionPlan& plan, Selection&) {
              plan.q_order = TokenOrder::index(at::arange(12, at::kInt).expand({1, 3, 12}));
            }},
        Lie{"key order of shape",
            [](AttentionPlan& plan, Selection&) {
              plan.kv_order = TokenOrder::axes({{0, 1, 2}, {2, 1, 0}, {1, 2, 0}});
            }},
        Lie{"key offsets do not ascend from 0 to 12",
            [](AttentionPlan& plan, Selection&) {
              PooledValuesBranch branch;
              branch.q_blocks = BlockAxis::from_offsets(offsets_of({0, 4, 12}), 12);
              branch.kv_blocks = BlockAxis::from_offsets(offsets_of({0, 4, 13}), 12);
              branch.weights = at::ones({1, 1, 2, 2});
              plan.branches.push_back({branch, 1});
            }},
        Lie{"query offsets do not ascend",
            [](AttentionPlan&, Selection& s) {
              s.q_blocks = BlockAxis::from_offsets(offsets_of({0, 13, 12}), 12);
            }},
        Lie{"key offsets do not ascend from 0 to 12",
            [](AttentionPlan&, Selection& s) {
              s.kv_blocks = BlockAxis::from_offsets(offsets_of({1, 4, 12}), 12);
            }},
        Lie{"key offsets do not ascend from 0 to 12",
            [](AttentionPlan&, Selection& s) {
              s.kv_blocks = BlockAxis::from_offsets(offsets_of({0, 4, 1 << 30}), 12);
            }},
        Lie{"their largest size",
            [](AttentionPlan&, Selection& s) {
              s.q_blocks = BlockAxis::from_offsets(offsets_of({0, 4, 12}), 7);
            }},
        Lie{"key offsets of shape",
            [](AttentionPlan&, Selection& s) {
              s.kv_blocks = BlockAxis::from_offsets(offsets_of({0, 4, 12}).expand({1, 3, 3}), 8);
            }},
        Lie{"class 2 of a block",
            [](AttentionPlan&, Selection& s) {
              s.classes = at::full({1, 1, 2, 2}, 2, at::kByte);
            }},
        Lie{"expected a class map",
            [](AttentionPlan&, Selection& s) {
              s.classes = at::ones({1, 3, 2, 2}, at::kByte);
            }},
        Lie{"stored bits",
            [](AttentionPlan&, Selection& s) {
              s.predicates = {StoredPredicate{at::ones({1, 1, 12, 11}, at::kBool)}};
            }},
        Lie{"weights of shape",
            [](AttentionPlan& plan, Selection&) { plan.group_weights = {at::ones({5})}; }}));

}  // namespace
}  // namespace fovea
