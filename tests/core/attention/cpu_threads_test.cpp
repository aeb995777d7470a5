#include <functional>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "core/attention/planner.h"
#include "core/device.h"
#include "core/ops/product.h"
#include "tests/core/attention/executor_case.h"

// All kinds of branches on the CPU's executor: results and gradients have the same bits with any
// number of threads, and in any batch.

namespace fovea {
namespace {

using test::Case;
using test::make_call;
using test::random_blocks;
using test::random_classes;
using test::random_order;
using test::selection_of;

// What a test did to the number of threads ends with it.
class CpuThreads : public testing::Test {
 protected:
  void SetUp() override {
    before_ = at::get_num_threads();
    at::manual_seed(1);
  }
  void TearDown() override { set_num_threads(before_); }

 private:
  int before_ = 1;
};

// Two batches of six heads of three; so many tokens that LibTorch's operators take their threads.
Case long_case(at::ScalarType dtype) {
  TokenLayout layout = TokenLayout::grid(4, 16, 16);
  layout.append(TokenLayout::text(77, at::tensor({11, 77}, at::kLong)));
  return {.layout = layout, .heads = 6, .kv_heads = 2, .dim = 64, .dtype = dtype};
}

struct Made {
  AttentionPlan plan;
  std::vector<at::Tensor> leaves;  // of the plan
};

using Maker = std::function<Made(const AttentionCall&)>;

struct Bits {
  std::vector<at::Tensor> all;

  bool operator==(const Bits& other) const {
    for (size_t i = 0; i < all.size(); ++i) {
      if (!all[i].equal(other.all[i])) return false;
    }
    return all.size() == other.all.size();
  }
};

at::Tensor wanted(at::Tensor x) { return x.requires_grad_(); }

// Output, log-sum-exp, and the gradients of the inputs and of what the plan holds.
Bits bits_of(const Made& made, AttentionCall call) {
  for (at::Tensor* x : {&call.q, &call.k, &call.v}) *x = wanted(x->detach());
  CpuExecutor cpu;
  EXPECT_EQ(cpu.why_not(made.plan, call), std::nullopt);
  const AttentionResult result = cpu.run(made.plan, call, nullptr);
  const at::Tensor from_behind =
      at::linspace(-1, 1, result.out.numel()).view(result.out.sizes()).to(result.out.scalar_type());
  std::vector<at::Tensor> leaves = {call.q, call.k, call.v};
  leaves.insert(leaves.end(), made.leaves.begin(), made.leaves.end());
  Bits out{{result.out.detach()}};
  if (result.lse.defined())
    out.all.push_back(result.lse.detach().masked_fill(result.lse.isinf(), 0));
  for (at::Tensor& gradient : torch::autograd::grad({result.out}, leaves, {from_behind})) {
    EXPECT_GT(gradient.abs().max().item<double>(), 0);
    out.all.push_back(std::move(gradient));
  }
  return out;
}

void expect_same_bits(const Maker& make,
                      const std::function<Case(at::ScalarType)>& of = long_case) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    const AttentionCall call = make_call(of(dtype));
    set_num_threads(1);
    const Made made = make(call);
    validate(made.plan, call);
    const Bits expected = bits_of(made, call);
    for (const int threads : {2, 3, 4}) {
      set_num_threads(threads);
      EXPECT_TRUE(bits_of(made, call) == expected)
          << threads << " threads, " << dtype << ", " << made.plan.describe();
    }
  }
}

Selection& cut(AttentionPlan& plan, const AttentionCall& call) {
  Selection& selection = selection_of(plan);
  selection.q_blocks = BlockAxis::uniform(call.q_layout, 64);
  selection.kv_blocks = BlockAxis::uniform(call.kv_layout, 48);
  return selection;
}

// A linear branch with a projection that wants gradients, and a weight that does.
Made with_linear(AttentionPlan plan, const AttentionCall& call, LinearBranch linear) {
  Made out;
  const int64_t dim = call.v.size(3);
  linear.proj_weight = wanted(at::randn({dim, dim}) / 8);
  linear.proj_bias = wanted(at::randn({dim}));
  plan.branches.push_back({linear, 1});
  const at::Tensor weight = wanted(at::rand({1, call.q.size(1), 1, 1}));
  plan.group_weights = {at::Tensor(), weight};
  out.leaves = {linear.proj_weight, linear.proj_bias, weight};
  out.plan = std::move(plan);
  return out;
}

TEST_F(CpuThreads, LinearOverAllKeys) {
  for (const FeatureMap map : {FeatureMap::softmax, FeatureMap::elu_plus_one, FeatureMap::relu}) {
    expect_same_bits([&](const AttentionCall& call) {
      return with_linear(AttentionPlan::dense("linear"), call, {.feature_map = map});
    });
  }
}

// A single product, which LibTorch splits among four threads.
TEST_F(CpuThreads, LinearOfOneHead) {
  const auto one_head = [](at::ScalarType dtype) -> Case {
    return {.layout = TokenLayout::sequence(1101),
            .batch = 1,
            .heads = 1,
            .kv_heads = 1,
            .dim = 64,
            .dtype = dtype};
  };
  expect_same_bits(
      [](const AttentionCall& call) {
        return with_linear(AttentionPlan::dense("one head"), call, {});
      },
      one_head);
}

TEST_F(CpuThreads, LinearOverTheComplement) {
  for (const bool tiled : {false, true}) {
    expect_same_bits([&](const AttentionCall& call) {
      AttentionPlan plan = AttentionPlan::dense("complement");
      if (tiled) plan.q_order = plan.kv_order = TokenOrder::tiles({2, 4, 4});
      Selection& selection = cut(plan, call);
      selection.classes = random_classes(selection, 2, 6, 2);
      return with_linear(std::move(plan), call, {.complement_of = 0});
    });
  }
}

TEST_F(CpuThreads, LinearOverTheComplementOfBlocksPerHead) {
  expect_same_bits([](const AttentionCall& call) {
    AttentionPlan plan = AttentionPlan::dense("clusters");
    const int64_t length = call.q_layout.seq_len();
    plan.q_order = random_order(2, 6, length);
    plan.kv_order = random_order(2, 2, length);
    Selection& selection = selection_of(plan);
    selection.q_blocks = random_blocks(2, 6, 9, length);
    selection.kv_blocks = random_blocks(2, 2, 11, length);
    selection.classes = random_classes(selection, 2, 6, 2);
    return with_linear(std::move(plan), call, {.complement_of = 0});
  });
}

TEST_F(CpuThreads, PooledValues) {
  expect_same_bits([](const AttentionCall& call) {
    Made out{AttentionPlan::dense("values"), {}};
    PooledValuesBranch branch;
    branch.q_blocks = BlockAxis::uniform(call.q_layout, 16);
    branch.kv_blocks = BlockAxis::uniform(call.kv_layout, 40);
    branch.weights =
        wanted(at::rand({1, 1, branch.q_blocks.num_blocks(), branch.kv_blocks.num_blocks()}));
    out.plan.kv_order = TokenOrder::tiles({2, 4, 4});
    out.plan.branches.push_back({branch, 1});
    out.leaves = {branch.weights};
    return out;
  });
}

TEST_F(CpuThreads, Summaries) {
  for (const bool scattered : {false, true}) {
    expect_same_bits([&](const AttentionCall& call) {
      Made out{AttentionPlan::dense("summaries"), {}};
      if (scattered) out.plan.kv_order = random_order(2, 2, call.kv_layout.seq_len());
      Selection& selection = cut(out.plan, call);
      selection.summaries = {{.pool = 2}, {.pool = 5, .log_count = false}, {.pool = 0}};
      selection.classes = random_classes(selection, 2, 6, 5);
      return out;
    });
  }
}

TEST_F(CpuThreads, PlansOfPlanners) {
  expect_same_bits([](const AttentionCall& call) {
    return Made{make_planner("psa", Json::object())->plan(call), {}};
  });
  for (const char* over : {"unselected", "all"}) {
    expect_same_bits([&](AttentionCall call) {
      const int64_t dim = call.v.size(3);
      call.params = {wanted(at::randn({dim, dim}) / 8), wanted(at::randn({dim}))};
      return Made{make_planner("sla", Json{{"density", 0.2}, {"linear_over", over}})->plan(call),
                  call.params};
    });
  }
}

// The second item of a batch alone.
TEST_F(CpuThreads, ItemsDoNotDependOnTheirBatch) {
  const Case c{.layout = TokenLayout::grid(3, 11, 13), .dim = 64};
  const AttentionCall call = make_call(c);
  AttentionPlan plan = AttentionPlan::dense("batch");
  Selection& selection = cut(plan, call);
  selection.summaries = {{.pool = 2}, {.pool = 0}};
  selection.classes = random_classes(selection, 1, 4, 4);
  plan.branches.push_back({LinearBranch{.complement_of = 0}, 1});
  plan.branches.push_back({LinearBranch{}, 2});
  PooledValuesBranch pooled;
  pooled.q_blocks = pooled.kv_blocks = BlockAxis::uniform(c.layout, 40);
  const int64_t blocks = pooled.q_blocks.num_blocks();
  pooled.weights = at::rand({1, 4, blocks, blocks});
  plan.branches.push_back({pooled, 3});
  AttentionCall alone = call;
  for (at::Tensor* x : {&alone.q, &alone.k, &alone.v}) *x = x->slice(0, 1);
  CpuExecutor cpu;
  const AttentionResult both = cpu.run(plan, call, nullptr), one = cpu.run(plan, alone, nullptr);
  EXPECT_TRUE(both.out.slice(0, 1).equal(one.out));
  EXPECT_TRUE(both.lse.slice(0, 1).equal(one.lse));
}

// The sums behind all gradients of what is broadcast.
TEST_F(CpuThreads, SumsOfAnyDimensions) {
  const at::Tensor x = at::randn({2, 40, 1500, 24});
  for (const std::vector<int64_t>& sizes :
       {std::vector<int64_t>{1}, {24}, {1500, 24}, {40, 1, 1}, {2, 1, 1500, 1}, {1, 40, 1, 24}}) {
    set_num_threads(1);
    const at::Tensor sum = ops::sum_to_shape(x, sizes);
    const at::Tensor expected = x.to(at::kDouble).sum_to_size(sizes);
    EXPECT_EQ(sum.sizes(), expected.sizes());
    EXPECT_LT((sum - expected).abs().max().item<double>(), 2e-3);
    for (const int threads : {2, 3, 4}) {
      set_num_threads(threads);
      EXPECT_TRUE(ops::sum_to_shape(x, sizes).equal(sum));
    }
  }
  EXPECT_TRUE(ops::sum_to_shape(at::ones({0, 3}), {3}).equal(at::zeros({3})));
  EXPECT_TRUE(ops::sum_to_shape(at::ones({40, 0}), {1, 0}).equal(at::zeros({1, 0})));
}

}  // namespace
}  // namespace fovea
