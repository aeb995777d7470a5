#include <cmath>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "core/check.h"
#include "core/device.h"
#include "tests/core/attention/executor_case.h"

// Quantized plans on the CPU's executor, and gradients of biases, against the reference in fp64.

namespace fovea {
namespace {

using test::Case;
using test::make_call;
using test::relative_error;
using test::selection_of;

constexpr NumberFormat kInt8 = NumberFormat::int8, kE4m3 = NumberFormat::e4m3;
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

using Gradients = std::vector<at::Tensor>;

struct Computed {
  AttentionResult result;
  Gradients gradients;  // of q, k, v
};

// The call in another type, and the gradients of a weighted sum of both results.
Computed run(Executor& executor, const AttentionPlan& plan, AttentionCall call,
             at::ScalarType dtype) {
  for (at::Tensor* x : {&call.q, &call.k, &call.v}) {
    *x = x->detach().to(dtype).clone().requires_grad_();
  }
  Computed out;
  EXPECT_EQ(executor.why_not(plan, call), std::nullopt);
  out.result = executor.run(plan, call, nullptr);
  const at::Tensor& lse = out.result.lse;
  const auto weights = [](const at::Tensor& like, double step) {
    return at::arange(like.numel(), at::kDouble).mul(step).sin().view(like.sizes());
  };
  // Rows of padding have no numbers to be held to.
  at::Tensor counts = at::ones({1, 1, 1, 1}, at::kBool);
  if (call.q_layout.valid_mask().defined()) counts = call.q_layout.valid_mask().transpose(2, 3);
  const at::Tensor own = out.result.out.to(at::kDouble) * weights(out.result.out, 0.7);
  const at::Tensor seen = lse.masked_fill(lse.isinf(), 0).to(at::kDouble) * weights(lse, 0.3);
  const at::Tensor loss =
      own.masked_fill(counts.logical_not(), 0).sum() +
      seen.masked_fill(counts.squeeze(3).expand_as(seen).logical_not(), 0).sum();
  out.gradients = torch::autograd::grad({loss}, {call.q, call.k, call.v});
  return out;
}

Precision with_weights(NumberFormat format, ScaleUnit unit) {
  return {.q = {}, .k = {}, .v = {}, .p = {format, unit}};
}

std::vector<Precision> precisions() {
  std::vector<Precision> out;
  for (const NumberFormat format : {kInt8, kE4m3}) {
    out.push_back({.q = {format, ScaleUnit::head},
                   .k = {format, ScaleUnit::head},
                   .v = {format, ScaleUnit::head}});
    out.push_back({.q = {format, ScaleUnit::block},
                   .k = {format, ScaleUnit::block},
                   .v = {format, ScaleUnit::block},
                   .smooth_k = true});
    out.push_back({.q = {format, ScaleUnit::block, 5},
                   .k = {format, ScaleUnit::block, 7},
                   .v = {format, ScaleUnit::channel},
                   .p = {format, ScaleUnit::head},
                   .smooth_k = true});
    out.push_back({.q = {format, ScaleUnit::token},
                   .k = {format, ScaleUnit::token},
                   .v = {},
                   .p = {format, ScaleUnit::block},
                   .smooth_k = true});
    out.push_back(with_weights(format, ScaleUnit::head));
    out.push_back(with_weights(format, ScaleUnit::block));
  }
  out.push_back({.q = {kInt8}, .k = {kE4m3}, .v = {kInt8}, .p = {kInt8}});
  out.push_back({.q = {}, .k = {kInt8}, .v = {kE4m3}, .p = {kE4m3}});
  return out;
}

AttentionPlan plan_of(const AttentionCall& call, const Precision& precision, int64_t block_q,
                      int64_t block_kv) {
  AttentionPlan plan = AttentionPlan::dense("quantized");
  Selection& selection = selection_of(plan);
  std::get<SoftmaxBranch>(plan.branches[0].kind).precision = precision;
  selection.q_blocks = BlockAxis::uniform(call.q_layout, block_q);
  selection.kv_blocks = BlockAxis::uniform(call.kv_layout, block_kv);
  return plan;
}

// A number on the other side of a half makes a step of 1/127 of one number; few do.
constexpr double kFewSteps = 3e-3;

void expect_reference(const AttentionPlan& plan, const AttentionCall& call) {
  SCOPED_TRACE(plan.describe());
  validate(plan, call);
  CpuExecutor cpu;
  ReferenceExecutor reference;
  const Computed got = run(cpu, plan, call, call.q.scalar_type());
  const Computed expected = run(reference, plan, call, at::kDouble);
  const at::Tensor valid = call.q_layout.valid_mask();
  const auto counted = [&](const at::Tensor& x) {
    return valid.defined() ? x.masked_fill(valid.logical_not().transpose(2, 3), 0) : x;
  };
  EXPECT_LE(relative_error(counted(got.result.out), counted(expected.result.out)), kFewSteps);
  const auto lse = [&](const Computed& x) {
    const at::Tensor own = x.result.lse.masked_fill(x.result.lse.isinf(), 77);
    return counted(own.to(at::kDouble).unsqueeze(3));
  };
  EXPECT_LE(relative_error(lse(got), lse(expected)), kFewSteps);
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_LE(relative_error(got.gradients[i], expected.gradients[i]), kFewSteps) << "qkv"[i];
    EXPECT_EQ(got.gradients[i].scalar_type(), call.q.scalar_type());
  }
  const double difference = relative_error(
      counted(got.result.out),
      counted(ReferenceExecutor()
                  .run(
                      [&] {
                        AttentionPlan exact = plan;
                        std::get<SoftmaxBranch>(exact.branches[0].kind).precision = {};
                        return exact;
                      }(),
                      test::widened(call))
                  .out));
  EXPECT_GT(difference, kFewSteps) << "nothing is quantized";
}

TEST(CpuQuantized, GivesTheReferencesNumbersAndGradients) {
  at::manual_seed(1);
  for (const TokenLayout& layout : {test::video_and_text(), TokenLayout::extra(300)}) {
    AttentionCall call = make_call({.layout = layout});
    call.k = call.k + 0.5;
    for (const Precision& precision : precisions()) {
      for (const bool sparse : {false, true}) {
        AttentionPlan plan = plan_of(call, precision, 32, 20);
        if (sparse) {
          const int64_t length = layout.seq_len();
          plan.q_order = test::random_order(1, 4, length);
          plan.kv_order = test::random_order(2, 1, length);
          Selection& selection = selection_of(plan);
          selection.classes = test::random_classes(selection, 2, 4, 2);
          selection.classes.select(2, 3).zero_();  // rows without keys
        }
        expect_reference(plan, call);
      }
    }
  }
}

// Blocks of queries of several tiles, steps of several blocks of keys, several chunks.
TEST(CpuQuantized, TakesBlocksOfSeveralTiles) {
  at::manual_seed(2);
  AttentionCall call = make_call({.layout = TokenLayout::extra(1100), .batch = 1, .dim = 24});
  for (const NumberFormat format : {kInt8, kE4m3}) {
    AttentionPlan plan = plan_of(call, with_weights(format, ScaleUnit::block), 400, 300);
    // A row far from the others' tile holds the largest weight of each pair.
    call.q.slice(2, 7, 8).mul_(5);
    expect_reference(plan, call);
    selection_of(plan).predicates = {CausalPredicate{}};
    expect_reference(plan, call);
  }
}

// Heads that share keys see them in blocks of their own.
TEST(CpuQuantized, TakesBlocksOfHeadsThatShareKeys) {
  at::manual_seed(3);
  const AttentionCall call = make_call({.layout = TokenLayout::extra(150)});
  for (const NumberFormat format : {kInt8, kE4m3}) {
    for (const bool ordered : {false, true}) {
      AttentionPlan plan = plan_of(call,
                                   {.q = {format},
                                    .k = {format},
                                    .v = {format},
                                    .p = {format, ScaleUnit::block},
                                    .smooth_k = true},
                                   32, 32);
      Selection& selection = selection_of(plan);
      selection.q_blocks = test::random_blocks(2, 4, 5, 150);
      selection.kv_blocks = test::random_blocks(2, 4, 7, 150);
      selection.classes = test::random_classes(selection, 2, 4, 2);
      if (ordered) plan.kv_order = test::random_order(1, 2, 150);
      expect_reference(plan, call);
    }
  }
}

// What stands in padding changes nothing: no scale of a weight either.
TEST(CpuQuantized, DoesNotLookAtPadding) {
  at::manual_seed(4);
  const TokenLayout layout = test::video_and_text();
  const AttentionCall call = make_call({.layout = layout});
  const at::Tensor padding = layout.valid_mask().logical_not().transpose(2, 3);
  CpuExecutor cpu;
  ReferenceExecutor reference;
  for (Executor* executor : std::vector<Executor*>{&cpu, &reference}) {
    for (const Precision& precision : precisions()) {
      const AttentionPlan plan = plan_of(call, precision, 32, 48);
      const auto result = [&](double in_padding) {
        AttentionCall own = call;
        for (at::Tensor* x : {&own.q, &own.k, &own.v}) *x = x->masked_fill(padding, in_padding);
        const AttentionResult all = executor->run(plan, own, nullptr);
        return at::cat(
            {all.out.masked_fill(padding, 0), all.lse.unsqueeze(3).masked_fill(padding, 0)}, 3);
      };
      EXPECT_TRUE(result(kNaN).equal(result(0))) << plan.describe();
      EXPECT_TRUE(result(1e4).equal(result(0))) << plan.describe();
    }
  }
}

// In half types gradients are those of the numbers that both executors round alike.
TEST(CpuQuantized, TakesHalfTypes) {
  at::manual_seed(5);
  for (const at::ScalarType dtype : {at::kBFloat16, at::kHalf}) {
    const double bound = dtype == at::kHalf ? 5e-3 : 3e-2;
    const AttentionCall call = make_call({.layout = test::video_and_text(), .dtype = dtype});
    for (const Precision& precision : precisions()) {
      const AttentionPlan plan = plan_of(call, precision, 32, 20);
      CpuExecutor cpu;
      ReferenceExecutor reference;
      const Computed got = run(cpu, plan, call, dtype),
                     expected = run(reference, plan, call, dtype);
      for (size_t i = 0; i < 3; ++i) {
        EXPECT_LE(relative_error(got.gradients[i], expected.gradients[i]), bound)
            << "qkv"[i] << plan.describe();
        EXPECT_EQ(got.gradients[i].scalar_type(), dtype);
      }
    }
  }
}

TEST(CpuQuantized, GivesTheSameBitsForAnyNumberOfThreads) {
  at::manual_seed(6);
  AttentionCall call = make_call({.layout = TokenLayout::extra(700)});
  const int before = at::get_num_threads();
  for (const ScaleUnit unit : {ScaleUnit::head, ScaleUnit::block}) {
    const Precision precision{
        .q = {kInt8}, .k = {kInt8}, .v = {}, .p = {kInt8, unit}, .smooth_k = true};
    const AttentionPlan plan = plan_of(call, precision, 300, 64);
    CpuExecutor cpu;
    set_num_threads(1);
    const Computed one = run(cpu, plan, call, at::kFloat);
    for (const int threads : {2, 3}) {
      set_num_threads(threads);
      const Computed more = run(cpu, plan, call, at::kFloat);
      EXPECT_TRUE(more.result.out.equal(one.result.out) && more.result.lse.equal(one.result.lse));
      for (size_t i = 0; i < 3; ++i) EXPECT_TRUE(more.gradients[i].equal(one.gradients[i]));
    }
  }
  set_num_threads(before);
}

// A bias of the call, of any shape that broadcasts.
TEST(CpuBias, HasTheReferencesGradient) {
  at::manual_seed(7);
  const TokenLayout layout = test::video_and_text();
  const int64_t length = layout.seq_len();
  const AttentionCall call = make_call({.layout = layout});
  AttentionPlan plan = plan_of(call, {}, 32, 20);
  selection_of(plan).classes = test::random_classes(selection_of(plan), 2, 4, 2);
  plan.q_order = test::random_order(1, 4, length);
  plan.kv_order = test::random_order(2, 2, length);
  AttentionPlan quantized = plan;
  std::get<SoftmaxBranch>(quantized.branches[0].kind).precision = precisions()[3];
  const at::Tensor weight = at::randn(call.q.sizes(), at::kDouble);
  const at::Tensor of_lse = at::randn({2, 4, length}, at::kDouble);
  for (const AttentionPlan& own : {plan, quantized}) {
    for (const std::vector<int64_t>& shape :
         std::vector<std::vector<int64_t>>{{2, 4, length, length},
                                           {1, 4, length, length},
                                           {2, 1, length, length},
                                           {1, 1, length, length},
                                           {2, 4, 1, length},
                                           {1, 1, 1, length},
                                           {1, 4, length, 1},
                                           {1, 1, length, 1},
                                           {2, 4, 1, 1}}) {
      at::Tensor bias = at::randn(shape);
      if (shape[2] > 1 && shape[3] > 1) {
        bias = bias.masked_fill(at::rand(shape).lt(0.1), -std::numeric_limits<float>::infinity());
      }
      const auto gradient = [&](Executor& executor, at::ScalarType dtype) {
        AttentionCall biased = call;
        for (at::Tensor* x : {&biased.q, &biased.k, &biased.v}) *x = x->to(dtype);
        biased.bias = bias.to(dtype).requires_grad_();
        EXPECT_EQ(executor.why_not(own, biased), std::nullopt);
        const AttentionResult result = executor.run(own, biased, nullptr);
        const at::Tensor seen = result.lse.masked_fill(result.lse.isinf(), 0);
        // Rows of padding have scales that say nothing.
        const at::Tensor rows = layout.valid_mask().transpose(2, 3);
        const at::Tensor loss =
            (result.out * weight).masked_fill(rows.logical_not(), 0).sum() +
            (seen * of_lse).unsqueeze(3).masked_fill(rows.logical_not(), 0).sum();
        return torch::autograd::grad({loss}, {biased.bias})[0];
      };
      CpuExecutor cpu;
      ReferenceExecutor reference;
      const at::Tensor got = gradient(cpu, at::kFloat), expected = gradient(reference, at::kDouble);
      EXPECT_EQ(got.sizes(), at::IntArrayRef(shape));
      EXPECT_LE(relative_error(got, expected),
                own.branches[0].kind.index() == 0 &&
                        std::get<SoftmaxBranch>(own.branches[0].kind).precision.is_storage()
                    ? 5e-6
                    : kFewSteps)
          << got.sizes();
    }
  }
}

}  // namespace
}  // namespace fovea
