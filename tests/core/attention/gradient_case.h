#pragma once

#include <cmath>
#include <vector>

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "core/attention/executor.h"

// Gradients of executors by the rules of the project's contract.

namespace fovea::test {

// Gradients of leaves, such as q, k and v.
using Gradients = std::vector<at::Tensor>;

// What comes from behind for the two results.
struct FromBehind {
  at::Tensor out, lse;

  FromBehind(const AttentionCall& call)
      : out(at::randn(call.q.sizes()).to(call.q.options())),
        lse(at::randn(call.q.sizes().slice(0, 3)).to(call.q.device())) {}

  at::Tensor loss(const AttentionResult& result) const {
    const at::Tensor seen = result.lse.masked_fill(result.lse.isinf(), 0);
    return (result.out * out.to(result.out.scalar_type())).sum() +
           (seen * lse.to(seen.scalar_type())).sum();
  }
};

// The call in another type, with leaves that want gradients.
inline AttentionCall with_leaves(AttentionCall call, at::ScalarType dtype) {
  for (at::Tensor* x : {&call.q, &call.k, &call.v}) {
    *x = x->detach().to(dtype).clone().requires_grad_();
  }
  if (call.bias.defined()) call.bias = call.bias.to(dtype);
  return call;
}

inline Gradients gradients_of(const at::Tensor& loss, const AttentionCall& call) {
  return torch::autograd::grad({loss}, {call.q, call.k, call.v});
}

inline double length_of(const at::Tensor& x) { return x.norm().item<double>(); }

inline double worst_row(const at::Tensor& x, const at::Tensor& r) {
  const at::Tensor rows = r.norm(2, -1), error = (x - r).norm(2, -1);
  // Where few keys are seen, or one takes all, a row's gradient is a difference that all but
  // cancels. The composition then rounds both sides alike, but the sum of out * grad_out comes from
  // elsewhere than the products that it is subtracted from: M4 takes rows of usual size.
  const at::Tensor sized = rows.gt(rows.square().mean().sqrt());
  return (error / rows).masked_fill(sized.logical_not(), 0).max().item<double>();
}

// Over how many numbers M5 averages. Rounded to a half type each has an error of its own size, so
// that large ones count for more: as many as there would be if all were as large.
inline double counted(const at::Tensor& r, at::ScalarType dtype) {
  if (dtype == at::kFloat) return static_cast<double>(r.numel());
  const at::Tensor squares = r.square();
  return std::pow(squares.sum().item<double>(), 2) / squares.square().sum().item<double>();
}

// Rules M1 and M4 (with factor 3) and M3, M5, M6 of the project's contract, for each head.
inline void expect_rules(const at::Tensor& got, const at::Tensor& expected,
                         const at::Tensor& baseline) {
  const at::ScalarType dtype = got.scalar_type();
  const double cap = dtype == at::kFloat ? 2e-5 : dtype == at::kHalf ? 5e-3 : 3e-2;
  ASSERT_FALSE(got.isnan().any().item<bool>());
  for (int64_t i = 0; i < got.size(0) * got.size(1); ++i) {
    const auto head = [&](const at::Tensor& x) {
      return x.detach().flatten(0, 1)[i].to(at::kDouble);
    };
    const at::Tensor x = head(got), r = head(expected), b = head(baseline);
    if (length_of(r) == 0) {
      EXPECT_EQ(length_of(x), 0);
      continue;
    }
    const at::Tensor stored = r.to(dtype), rounded = stored.to(at::kDouble);
    const double unit =
        2 * ((stored + 0.3 - 0.3).to(at::kDouble) - rounded).abs().max().item<double>();
    EXPECT_LE((x - r).abs().max().item<double>(),
              3 * (b - r).abs().max().item<double>() + unit);  // M1
    const double of_b = length_of(b - r) / length_of(r), of_x = length_of(x - r) / length_of(r);
    EXPECT_LE(of_x, std::min(std::max(2 * of_b, 1.5 * length_of(rounded - r) / length_of(r)),
                             cap));                                                          // M3
    EXPECT_LE(worst_row(x, r), std::max(3 * worst_row(b, r), 1.5 * worst_row(rounded, r)));  // M4
    const double gain = (x * r).sum().item<double>() / (r * r).sum().item<double>();
    EXPECT_LE(std::abs(gain - 1), 10 / std::sqrt(counted(r, dtype)) * of_b + std::exp2(-24));  // M5
  }
}

}  // namespace fovea::test
