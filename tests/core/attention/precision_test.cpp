// Quantized branches: rounding number by number, and attention by its formula.

#include "core/attention/precision.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "core/attention/attention.h"
#include "core/attention/executors/reference.h"
#include "core/check.h"
#include "tests/core/attention/executor_case.h"
#include "tests/support/attention_cases.h"
#include "tests/support/files.h"
#include "tests/support/golden.h"

namespace fovea {
namespace {

using test::expect_error;
using test::relative_error;

// All e4m3 numbers from 0 up, by their bits.
std::vector<double> e4m3_numbers() {
  std::vector<double> out;
  for (int bits = 0; bits < 127; ++bits) {
    const int exponent = bits >> 3, fraction = bits & 7;
    out.push_back(exponent == 0 ? std::ldexp(fraction, -9)
                                : std::ldexp(8 + fraction, exponent - 10));
  }
  return out;
}

// The nearest number of a format, halves to even, limited.
double rounded(double x, NumberFormat format) {
  if (format == NumberFormat::int8) return std::clamp(std::nearbyint(x), -127.0, 127.0);
  static const std::vector<double> numbers = e4m3_numbers();
  size_t best = 0;
  for (size_t i = 1; i < numbers.size(); ++i) {
    const double now = std::abs(numbers[i] - std::abs(x)),
                 before = std::abs(numbers[best] - std::abs(x));
    if (now < before || (now == before && i % 2 == 0)) best = i;
  }
  return std::copysign(numbers[best], x);
}

double quantized(double x, double amax, NumberFormat format) {
  if (format == NumberFormat::storage) return x;
  const double scale = amax == 0 ? 1 : amax / (format == NumberFormat::int8 ? 127 : 448);
  return rounded(x / scale, format) * scale;
}

TEST(Quantize, E4m3IsThatOfLibTorch) {
  at::manual_seed(1);
  const at::Tensor one = at::full({1}, 448.0f);
  std::vector<at::Tensor> cases = {at::randn({4096}) * at::exp2(at::randint(-12, 9, {4096})),
                                   at::arange(0, 448 * 64).to(at::kFloat) / 64,
                                   at::arange(0, 1024).to(at::kFloat) / (1 << 16)};
  const at::Tensor x = at::cat({at::cat(cases), -at::cat(cases)}).clamp(-448, 448);
  const at::Tensor expected = x.to(at::kFloat8_e4m3fn).to(at::kFloat);
  EXPECT_TRUE(quantize(x, NumberFormat::e4m3, one).equal(expected));
}

TEST(Quantize, FormatsKeepTheirNumbers) {
  std::vector<double> numbers = e4m3_numbers();
  const at::Tensor e4m3 = at::tensor(numbers, at::kDouble);
  EXPECT_EQ(numbers.back(), 448);
  EXPECT_TRUE(quantize(-e4m3 / 7, NumberFormat::e4m3, at::full({1}, 64.0, at::kDouble))
                  .allclose(-e4m3 / 7, 1e-15, 0));
  const at::Tensor int8 = at::arange(-127, 128, at::kDouble);
  EXPECT_TRUE(quantize(int8, NumberFormat::int8, at::full({1}, 127.0, at::kDouble)).equal(int8));
}

TEST(Quantize, RoundsHalvesToEvenAndLimits) {
  const at::Tensor amax = at::full({1}, 127.0f);
  const at::Tensor x = at::tensor({0.5f, 1.5f, -2.5f, 200.0f, -200.0f});
  EXPECT_TRUE(quantize(x, NumberFormat::int8, amax)
                  .equal(at::tensor({0.0f, 2.0f, -2.0f, 127.0f, -127.0f})));
  EXPECT_TRUE(
      quantize(at::tensor({17.0f, 19.0f, 1000.0f}), NumberFormat::e4m3, at::full({1}, 448.0f))
          .equal(at::tensor({16.0f, 20.0f, 448.0f})));
  EXPECT_TRUE(quantize(at::zeros({3}), NumberFormat::int8, at::zeros({1})).equal(at::zeros({3})));
}

TEST(Quantize, ErrsByHalfAScaleAtMost) {
  at::manual_seed(2);
  const at::Tensor x = at::randn({50, 64}, at::kDouble);
  const at::Tensor amax = x.abs().amax(1, true);
  const at::Tensor error = (quantize(x, NumberFormat::int8, amax) - x).abs();
  EXPECT_TRUE((error <= amax / 127 / 2 * (1 + 1e-12)).all().item<bool>());
  EXPECT_GT(error.max().item<double>(), 0);
}

TEST(Quantize, GradientsGoStraightThrough) {
  at::Tensor x = at::randn({9}, at::kDouble).requires_grad_();
  const at::Tensor amax = x.detach().abs().max();
  const at::Tensor weight = at::randn({9}, at::kDouble);
  const at::Tensor value = quantize(x, NumberFormat::e4m3, amax);
  EXPECT_TRUE(value.detach().equal(quantize(x.detach(), NumberFormat::e4m3, amax)));
  (value * weight).sum().backward();
  EXPECT_TRUE(x.grad().equal(weight));
}

// Which scale a number belongs to, as a key.
using UnitOf = std::function<int64_t(int64_t row, int64_t channel)>;

// x [rows, dim] of one head, scale by scale.
at::Tensor by_units(const at::Tensor& x, NumberFormat format, const UnitOf& unit,
                    const std::vector<bool>& valid) {
  std::map<int64_t, double> amax;
  const auto in = x.accessor<double, 2>();
  for (int64_t i = 0; i < x.size(0); ++i) {
    for (int64_t c = 0; c < x.size(1); ++c) {
      double& largest = amax[unit(i, c)];
      if (valid[static_cast<size_t>(i)]) largest = std::max(largest, std::abs(in[i][c]));
    }
  }
  at::Tensor out = at::empty_like(x);
  auto to = out.accessor<double, 2>();
  for (int64_t i = 0; i < x.size(0); ++i) {
    for (int64_t c = 0; c < x.size(1); ++c)
      to[i][c] = quantized(in[i][c], amax[unit(i, c)], format);
  }
  return out;
}

// Blocks of 16 rows anew in each segment, and pieces of `group` rows of them.
struct Units {
  std::vector<int64_t> block, piece;
  Units(const TokenLayout& layout, int64_t group) {
    const auto blocks = test::blocks_of(layout, 16);
    for (size_t i = 0; i < blocks.size(); ++i) {
      for (size_t at = 0; at < blocks[i].size(); ++at) {
        block.push_back(static_cast<int64_t>(i));
        piece.push_back(static_cast<int64_t>(i) * 1000 +
                        (group > 0 ? static_cast<int64_t>(at) / group : 0));
      }
    }
  }
  UnitOf of(ScaleUnit unit) const {
    if (unit == ScaleUnit::head) return [](int64_t, int64_t) { return 0; };
    if (unit == ScaleUnit::token) return [](int64_t row, int64_t) { return row; };
    if (unit == ScaleUnit::channel) return [](int64_t, int64_t channel) { return channel; };
    return [this](int64_t row, int64_t) { return piece[static_cast<size_t>(row)]; };
  }
};

// What p = exp(s - top) becomes where all weights of a head have one scale.
double rounded_weight(double s, double top, NumberFormat format) {
  if (format != NumberFormat::e4m3) return quantized(std::exp(s - top), 1, format);
  int power = 0;
  while (std::exp(top) > std::ldexp(256, power)) ++power;
  while (std::exp(top) <= std::ldexp(256, power - 1)) --power;
  return std::ldexp(rounded(std::ldexp(std::exp(s), -power), format), power) / std::exp(top);
}

AttentionResult direct(const AttentionCall& call, const Precision& precision,
                       const at::Tensor& pairs) {
  AttentionResult out{at::zeros({2, 4, call.q.size(2), 6}, at::kDouble),
                      at::zeros({2, 4, call.q.size(2)}, at::kDouble)};
  const double scale = 1 / std::sqrt(8.0);
  test::for_each_head(call, [&](int64_t b, int64_t h, int64_t g) {
    std::vector<bool> valid;
    std::vector<int64_t> keys;
    for (int64_t j = 0; j < call.k.size(2); ++j) {
      valid.push_back(test::is_valid(call.kv_layout, b, j));
      if (valid.back()) keys.push_back(j);
    }
    const auto use = [&](const at::Tensor& x, const Quantized& how) {
      return by_units(x, how.format, Units(call.q_layout, how.group).of(how.unit), valid);
    };
    const at::Tensor mean = test::mean_of(call.k[b][g], keys) * (precision.smooth_k ? 1.0 : 0.0);
    at::Tensor s =
        at::matmul(use(call.q[b][h], precision.q), use(call.k[b][g] - mean, precision.k).t()) *
        scale;
    const at::Tensor v = use(call.v[b][g], precision.v);
    const int64_t rows = s.size(0);
    const Units units(call.q_layout, 0);
    const auto pair = [&](int64_t i, int64_t j) {
      return std::pair(units.block[static_cast<size_t>(i)], units.block[static_cast<size_t>(j)]);
    };
    std::vector<double> top(static_cast<size_t>(rows), -1e300);
    std::map<std::pair<int64_t, int64_t>, double> amax;
    const auto for_each_pair = [&](const std::function<void(int64_t, int64_t, double)>& f) {
      for (int64_t i = 0; i < rows; ++i) {
        for (const int64_t j : keys) {
          if (pairs[b][h][i][j].item<bool>()) f(i, j, s[i][j].item<double>());
        }
      }
    };
    for_each_pair([&](int64_t i, int64_t, double logit) {
      top[static_cast<size_t>(i)] = std::max(top[static_cast<size_t>(i)], logit);
    });
    for_each_pair([&](int64_t i, int64_t j, double logit) {
      if (!valid[static_cast<size_t>(i)]) return;  // queries and keys have one layout
      double& largest = amax[pair(i, j)];
      largest = std::max(largest, std::exp(logit - top[static_cast<size_t>(i)]));
    });
    at::Tensor sum = at::zeros({rows}, at::kDouble);
    for_each_pair([&](int64_t i, int64_t j, double logit) {
      const double most = top[static_cast<size_t>(i)];
      const double p = precision.p.unit == ScaleUnit::block
                           ? quantized(std::exp(logit - most), amax[pair(i, j)], precision.p.format)
                           : rounded_weight(logit, most, precision.p.format);
      sum[i] += p;
      out.out[b][h][i] += p * v[j];
    });
    out.out[b][h] /= sum.unsqueeze(1);
    out.lse[b][h] = at::tensor(top, at::kDouble) + sum.log() + at::mv(call.q[b][h], mean) * scale;
  });
  return out;
}

std::vector<Precision> precisions() {
  constexpr NumberFormat kInt8 = NumberFormat::int8, kE4m3 = NumberFormat::e4m3;
  Precision sage{.q = {kInt8, ScaleUnit::block, 5},
                 .k = {kInt8, ScaleUnit::block, 7},
                 .v = {kE4m3, ScaleUnit::channel},
                 .p = {kE4m3, ScaleUnit::head},
                 .smooth_k = true};
  Precision paro{.q = {kInt8}, .k = {kInt8}, .v = {kInt8}, .p = {kInt8}};
  Precision tokens{.q = {kInt8, ScaleUnit::token}, .k = {kInt8, ScaleUnit::token}, .v = {}};
  Precision heads{.q = {kE4m3, ScaleUnit::head},
                  .k = {kE4m3, ScaleUnit::head},
                  .v = {kE4m3, ScaleUnit::head},
                  .p = {kInt8, ScaleUnit::head}};
  return {sage, paro, tokens, heads};
}

AttentionPlan plan_of(const AttentionCall& call, const Precision& precision) {
  AttentionPlan plan = AttentionPlan::dense("quantized");
  auto& branch = std::get<SoftmaxBranch>(plan.branches[0].kind);
  branch.precision = precision;
  branch.selection.q_blocks = BlockAxis::uniform(call.q_layout, 16);
  branch.selection.kv_blocks = BlockAxis::uniform(call.kv_layout, 16);
  return plan;
}

TEST(Precision, IsItsFormula) {
  at::manual_seed(3);
  TokenLayout layout = TokenLayout::grid(1, 3, 7);
  layout.append(TokenLayout::text(9, at::tensor({4, 7}, at::kLong)));
  AttentionCall call = test::awkward_call(layout);
  // Padding is large, and in no scale.
  call.k[0].slice(1, 25).fill_(1e4);
  call.v[1].slice(1, 28).fill_(1e4);
  for (const Precision& precision : precisions()) {
    for (const bool sparse : {false, true}) {
      AttentionPlan plan = plan_of(call, precision);
      at::Tensor pairs = at::ones({2, 4, 30, 30}, at::kBool);
      if (sparse) {
        const at::Tensor classes =
            at::tensor({1, 0, 1, 1, 1, 0, 0, 1, 1}, at::kByte).view({1, 1, 3, 3});
        std::get<SoftmaxBranch>(plan.branches[0].kind).selection.classes = classes;
        const at::Tensor size = at::tensor({16, 5, 9}, at::kLong);
        pairs = classes.repeat_interleave(size, 2).repeat_interleave(size, 3).ne(0).expand(
            {2, 4, 30, 30});
      }
      validate(plan, call);
      const AttentionResult got = ReferenceExecutor().run(plan, call);
      const AttentionResult expected = direct(call, precision, pairs);
      EXPECT_LE(relative_error(got.out, expected.out), 1e-10) << plan.describe();
      EXPECT_LE(relative_error(got.lse, expected.lse), 1e-10) << plan.describe();
      const AttentionResult exact = ReferenceExecutor().run(
          [&] {
            AttentionPlan same = plan;
            std::get<SoftmaxBranch>(same.branches[0].kind).precision = {};
            return same;
          }(),
          call);
      // Rows of padding have weights beyond what their scales are for.
      const at::Tensor valid = layout.valid_mask().transpose(2, 3);
      const double error = relative_error(got.out * valid, exact.out * valid);
      EXPECT_GT(error, 1e-4) << plan.describe();
      EXPECT_LT(error, 0.1) << plan.describe();
    }
  }
}

// Blocks are those of the order: the same tokens in another order of rows give the same.
TEST(Precision, ScalesFollowTheOrder) {
  at::manual_seed(4);
  const TokenLayout layout = TokenLayout::extra(30);
  const AttentionCall call = test::awkward_call(layout);
  const at::Tensor rows = at::randperm(30);
  AttentionCall sorted = call;
  for (at::Tensor* x : {&sorted.q, &sorted.k, &sorted.v}) *x = x->index_select(2, rows);
  for (const Precision& precision : precisions()) {
    AttentionPlan plan = plan_of(call, precision);
    const at::Tensor expected = ReferenceExecutor().run(plan, sorted).out;
    plan.q_order = plan.kv_order = TokenOrder::index(rows.view({1, 1, 30}));
    EXPECT_LE(
        relative_error(ReferenceExecutor().run(plan, call).out.index_select(2, rows), expected),
        1e-13);
  }
}

// Whatever stands in the others, a row that sees one key gets that key's value.
TEST(Precision, TheWeightsOfARowAddUpToOne) {
  at::manual_seed(8);
  AttentionCall call = test::awkward_call(TokenLayout::extra(48));
  call.v.fill_(0.7);
  for (const NumberFormat format : {NumberFormat::int8, NumberFormat::e4m3}) {
    for (const ScaleUnit unit : {ScaleUnit::head, ScaleUnit::block}) {
      const AttentionPlan plan = plan_of(call, {.q = {}, .k = {}, .v = {}, .p = {format, unit}});
      const at::Tensor out = ReferenceExecutor().run(plan, call).out;
      EXPECT_LE((out - 0.7).abs().max().item<double>(), 1e-14) << plan.describe();
      AttentionPlan diagonal = plan;
      test::selection_of(diagonal).predicates = {
          StoredPredicate{at::eye(48).to(at::kBool).view({1, 1, 48, 48})}};
      AttentionCall own = call;
      own.v = at::randn(call.v.sizes(), at::kDouble);
      EXPECT_TRUE(ReferenceExecutor().run(diagonal, own).out.equal(own.v.repeat_interleave(2, 1)));
    }
  }
}

// e4m3 weights are relative to a power of 2: another one changes nothing, as long as the smallest
// weights are e4m3's normal numbers. Logits may be as large as they like.
TEST(Precision, PowersOfTwoLeaveE4m3WeightsAlone) {
  at::manual_seed(9);
  for (const at::ScalarType dtype : {at::kDouble, at::kFloat}) {
    AttentionCall call = test::awkward_call(TokenLayout::extra(48));
    for (at::Tensor* x : {&call.q, &call.k, &call.v}) *x = x->to(dtype);
    const AttentionPlan plan =
        plan_of(call, {.q = {}, .k = {}, .v = {}, .p = {NumberFormat::e4m3, ScaleUnit::head}});
    const auto with_bias = [&](double bias) {
      call.bias = at::full({1, 1, 1, 1}, bias, at::kDouble).to(dtype);
      return ReferenceExecutor().run(plan, call);
    };
    const AttentionResult plain = with_bias(0), other = with_bias(0.2);
    const double bound = dtype == at::kDouble ? 1e-12 : 1e-3;
    EXPECT_GT(relative_error(other.out, plain.out), 2e-3);
    const double far = dtype == at::kDouble ? 2000 : 200;  // beyond the largest power of the type
    for (const double power : {-far, -3.0, 1.0, 2.0, far}) {
      const AttentionResult shifted = with_bias(power * std::log(2.0));
      EXPECT_LE(relative_error(shifted.out, plain.out), bound) << power;
      EXPECT_LE(relative_error(shifted.lse - power * std::log(2.0), plain.lse), bound) << power;
    }
  }
}

// A channel that all keys share costs the others their precision, unless it is taken out.
TEST(Precision, SmoothingHelpsKeysWithACommonPart) {
  at::manual_seed(5);
  AttentionCall call = test::awkward_call(TokenLayout::extra(64));
  call.k.select(3, 2).add_(100);
  const at::Tensor exact = ReferenceExecutor().run(AttentionPlan::dense("exact"), call).lse;
  Precision precision = precisions()[1];
  const at::Tensor rough = ReferenceExecutor().run(plan_of(call, precision), call).lse;
  precision.smooth_k = true;
  const at::Tensor smooth = ReferenceExecutor().run(plan_of(call, precision), call).lse;
  EXPECT_LT(5 * relative_error(smooth, exact), relative_error(rough, exact));
}

TEST(Precision, HasGradientsCloseToThoseOfTheExactBranch) {
  at::manual_seed(6);
  AttentionCall call = test::awkward_call(TokenLayout::extra(40));
  const at::Tensor weight = at::randn({2, 4, 40, 6}, at::kDouble);
  const auto gradient = [&](const AttentionPlan& plan) {
    AttentionCall own = call;
    for (at::Tensor* x : {&own.q, &own.k, &own.v}) *x = x->detach().clone().requires_grad_();
    (ReferenceExecutor().run(plan, own).out * weight).sum().backward();
    return at::cat({own.q.grad().flatten(), own.k.grad().flatten(), own.v.grad().flatten()});
  };
  const at::Tensor exact = gradient(plan_of(call, {}));
  for (const Precision& precision : precisions()) {
    EXPECT_LT(relative_error(gradient(plan_of(call, precision)), exact), 0.15);
  }
}

// Straight through the rounding, with p' and their sum in the places of p and its sum.
TEST(Precision, GradientsAreTheirFormula) {
  at::manual_seed(10);
  AttentionCall call = test::awkward_call(TokenLayout::extra(40));
  for (at::Tensor* x : {&call.k, &call.v}) *x = x->repeat_interleave(2, 1);
  const at::Tensor dout = at::randn({2, 4, 40, 6}, at::kDouble);
  const at::Tensor dlse = at::randn({2, 4, 40}, at::kDouble);
  for (at::Tensor* x : {&call.q, &call.k, &call.v}) x->requires_grad_();
  for (const NumberFormat format : {NumberFormat::int8, NumberFormat::e4m3}) {
    const AttentionPlan plan =
        plan_of(call, {.q = {}, .k = {}, .v = {}, .p = {format, ScaleUnit::head}});
    const AttentionResult got = ReferenceExecutor().run(plan, call);
    const auto gradients = torch::autograd::grad({(got.out * dout).sum() + (got.lse * dlse).sum()},
                                                 {call.q, call.k, call.v});
    const at::Tensor s = (at::matmul(call.q, call.k.transpose(2, 3)) / std::sqrt(8.0)).detach();
    const at::Tensor top = s.amax(3, true), p = (s - top).exp();
    at::Tensor rounded = at::empty_like(p);
    for (int64_t i = 0; i < p.numel(); ++i) {
      rounded.view(-1)[i] = rounded_weight(s.reshape(-1)[i].item<double>(),
                                           top.reshape(-1)[i / 40].item<double>(), format);
    }
    const at::Tensor sum = rounded.sum(3, true), out = at::matmul(rounded, call.v.detach()) / sum;
    const at::Tensor ds = (at::matmul(dout, call.v.detach().transpose(2, 3)) -
                           (dout * out).sum(3, true) + dlse.unsqueeze(3)) *
                          p / sum / std::sqrt(8.0);
    EXPECT_LE(relative_error(got.out.detach(), out), 1e-12);
    EXPECT_LE(relative_error(got.lse.detach(), (top + sum.log()).squeeze(3)), 1e-12);
    EXPECT_LE(relative_error(gradients[0], at::matmul(ds, call.k.detach())), 1e-12);
    EXPECT_LE(relative_error(gradients[1], at::matmul(ds.transpose(2, 3), call.q.detach())), 1e-12);
    EXPECT_LE(relative_error(gradients[2], at::matmul((rounded / sum).transpose(2, 3), dout)),
              1e-12);
  }
}

// The CPU's executor in integers or in quantized values of fp32. The reference computes in fp32
// too: halves of bf16 numbers lie exactly between two integers, and must fall to the same side.
TEST(Precision, RunsOnTheCpu) {
  at::manual_seed(7);
  TokenLayout padded = TokenLayout::grid(3, 7, 9);
  padded.append(TokenLayout::text(30, at::tensor({11, 30}, at::kLong)));
  std::vector<Precision> all = precisions();
  for (Precision precision : precisions()) {
    precision.p = {.unit = ScaleUnit::head};
    all.push_back(precision);
  }
  all.push_back(all[2]);
  all.back().smooth_k = true;
  for (const TokenLayout& layout : {padded, TokenLayout::extra(200)}) {
    for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
      AttentionCall call = test::make_call({.layout = layout, .dtype = dtype});
      call.k = (call.k + 0.5).to(dtype);
      for (const Precision& precision : all) {
        AttentionPlan plan = plan_of(call, precision);
        Selection& selection = test::selection_of(plan);
        selection.classes = test::random_classes(selection, 1, 4, 2);
        const int64_t length = layout.seq_len();
        plan.q_order = plan.kv_order = TokenOrder::index(at::randperm(length).view({1, 1, length}));
        validate(plan, call);
        CpuExecutor cpu;
        ASSERT_EQ(cpu.why_not(plan, call), std::nullopt);
        const AttentionResult got = cpu.run(plan, call, nullptr);
        const AttentionResult expected = ReferenceExecutor().run(plan, call);
        // A mean, or a logit, that differs in its last bit takes some numbers to the next integer.
        const bool may_step = precision.smooth_k || precision.p.format != NumberFormat::storage;
        const double bound = dtype == at::kBFloat16 ? 5e-3 : may_step ? 5e-4 : 1e-5;
        const at::Tensor valid = layout.valid_mask().defined() ? layout.valid_mask().transpose(2, 3)
                                                               : at::ones({1, 1, 1, 1}, at::kBool);
        const auto masked = [&](const at::Tensor& x) { return x.to(at::kFloat).where(valid, 0); };
        EXPECT_LE(relative_error(masked(got.out), masked(expected.out)), bound) << plan.describe();
        EXPECT_TRUE(at::allclose(masked(got.lse.unsqueeze(3)), masked(expected.lse.unsqueeze(3)),
                                 1e-5, may_step ? 1e-3 : 1e-5))
            << plan.describe();
        EXPECT_EQ(got.out.scalar_type(), dtype);
      }
    }
  }
}

TEST(Precision, GradientsAndWeightsRunOnTheCpu) {
  AttentionCall call = test::awkward_call(TokenLayout::extra(20));
  for (at::Tensor* x : {&call.q, &call.k, &call.v}) *x = x->to(at::kFloat);
  const AttentionPlan weights = plan_of(call, precisions()[0]);
  EXPECT_FALSE(weights.is_dense());
  const AttentionPlan tokens = plan_of(call, precisions()[2]);
  const auto runs = [&](const AttentionPlan& plan) {
    std::string out;
    for (const auto& executor : make_executors()) {
      const bool checks = executor->name().rfind("checked:", 0) == 0;
      if (!checks && !executor->why_not(plan, call)) out += executor->name() + " ";
    }
    return out;
  };
  EXPECT_EQ(runs(weights), "cpu reference ");
  EXPECT_EQ(runs(tokens), "cpu reference ");
  call.q.requires_grad_();
  EXPECT_EQ(runs(tokens), "cpu reference ");
}

TEST(Precision, SaysWhatItIsAndRefusesWhatCannotBe) {
  const AttentionCall call = test::awkward_call(TokenLayout::extra(20));
  EXPECT_EQ(Precision{}.describe(), "");
  EXPECT_EQ(precisions()[0].describe(),
            "q int8 per block of 5, k int8 per block of 7, v e4m3 per channel, p e4m3 per head, "
            "smooth k");
  const auto refuse = [&](const char* words, const std::function<void(SoftmaxBranch&)>& spoil) {
    AttentionPlan plan = plan_of(call, precisions()[1]);
    validate(plan, call);
    spoil(std::get<SoftmaxBranch>(plan.branches[0].kind));
    expect_error(ErrorCode::usage, words, [&] { validate(plan, call); });
  };
  refuse("no blocks", [](SoftmaxBranch& branch) { branch.selection.q_blocks = {}; });
  refuse("q cannot", [](SoftmaxBranch& branch) { branch.precision.q.unit = ScaleUnit::channel; });
  refuse("v cannot", [](SoftmaxBranch& branch) { branch.precision.v.unit = ScaleUnit::token; });
  refuse("p cannot", [](SoftmaxBranch& branch) { branch.precision.p.group = 3; });
  refuse("-1 positions", [](SoftmaxBranch& branch) { branch.precision.k.group = -1; });
  refuse("own keys", [](SoftmaxBranch& branch) {
    branch.selection.classes = at::ones({1, 1, 2, 2}, at::kByte);
    branch.selection.summaries = {{}};
  });
  refuse("key blocks cover", [](SoftmaxBranch& branch) {
    branch.selection.kv_blocks = BlockAxis::uniform(TokenLayout::extra(7), 3);
  });
}

}  // namespace
}  // namespace fovea
