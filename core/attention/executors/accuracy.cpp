#include "core/attention/executors/accuracy.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include <ATen/ATen.h>

#include "core/check.h"

namespace fovea {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kBoundOfDoubles = 1e-12;

double cap_of(at::ScalarType dtype) {
  if (dtype == at::kHalf) return 2e-3;
  if (dtype == at::kBFloat16) return 1.2e-2;
  return dtype == at::kDouble ? kBoundOfDoubles : 5e-6;
}

// 0 where the error is 0, also against a bound of 0.
at::Tensor ratio(const at::Tensor& error, const at::Tensor& bound) {
  return at::where(error.eq(0), at::zeros_like(error), error / bound);
}

at::Tensor norm_of_heads(const at::Tensor& x) { return x.square().sum({2, 3}).sqrt(); }
at::Tensor norm_of_rows(const at::Tensor& x) { return x.square().sum(3).sqrt(); }

class Judge {
 public:
  explicit Judge(const Comparison& comparison)
      : given_(comparison),
        dtype_(comparison.result.out.scalar_type()),
        x_(comparison.result.out.to(at::kDouble)),
        r_(comparison.exact.out.to(at::kDouble)) {
    FOVEA_ASSERT(x_.sizes() == r_.sizes() && comparison.plain.out.sizes() == r_.sizes());
  }

  std::vector<RuleResult> run() {
    if (x_.numel() == 0) return {};
    chance_ = 1 + 6 / std::sqrt(static_cast<double>(x_.size(2)));
    special_values();
    error_ = x_ - r_;
    row_error_ = norm_of_rows(error_);
    rounding_ = r_.to(dtype_).to(at::kDouble) - r_;
    at::Tensor plain = given_.plain.out.to(at::kDouble);
    // Where plain algebra overflows it is no measure.
    plain_error_ = at::where(plain.isfinite(), plain - r_, rounding_);
    if (given_.jump.defined()) {
      const at::Tensor jump = given_.jump.to(at::kDouble).nan_to_num(0, 0);
      plain_error_ = at::where(jump.gt(plain_error_.abs()), jump, plain_error_);
    }
    slack_ = at::full({x_.size(0), x_.size(1)}, given_.slack, x_.options());
    if (given_.logit_size.defined()) {
      slack_ = slack_ + std::pow(2.0, -24) * given_.logit_size.amax(2);
    }
    const at::Tensor r = r_.to(dtype_);
    floor_ = 2 * ((r + 0.3 - 0.3) - r).to(at::kDouble).abs().amax({2, 3});
    if (dtype_ != at::kDouble) {
      largest_and_mean();
      gain();
    }
    norms();
    if (is_quantized()) quantization();
    log_sum_exp();
    return std::move(results_);
  }

 private:
  bool is_quantized() const { return given_.unquantized.defined(); }

  // error and bound [batch, heads]
  void add(const char* rule, const at::Tensor& error, const at::Tensor& bound) {
    const at::Tensor all = ratio(error, bound).nan_to_num(kInfinity, kInfinity).cpu();
    const int64_t at = all.argmax().item<int64_t>(), heads = all.size(1);
    const int64_t batch = at / heads, head = at % heads;
    const auto number = [&](const at::Tensor& x) {
      return x.expand(all.sizes())[batch][head].item<double>();
    };
    results_.push_back(
        {rule, number(error), number(bound), number(all), batch, head, worst_row(batch, head)});
  }
  int64_t worst_row(int64_t batch, int64_t head) const {
    return row_error_.defined() ? row_error_[batch][head].argmax().item<int64_t>() : 0;
  }

  // Also takes what is not finite out of both sides.
  void special_values() {
    const auto kinds = [](const at::Tensor& x) {
      return x.isnan().to(at::kInt) + 2 * x.eq(kInfinity).to(at::kInt) +
             4 * x.eq(-kInfinity).to(at::kInt);
    };
    const at::Tensor differ = kinds(x_).ne(kinds(r_.to(dtype_).to(at::kDouble)));
    const at::Tensor nothing = r_.eq(0).all(3, /*keepdim=*/true).logical_and(x_.ne(0));
    row_error_ = differ.logical_or(nothing).to(at::kDouble).sum(3);
    const at::Tensor wrong = row_error_.sum(2);
    add("M6", wrong, at::zeros_like(wrong));
    lost_ = x_.isfinite().logical_and(r_.isfinite()).logical_not();
    x_ = x_.masked_fill(lost_, 0);
    r_ = r_.masked_fill(lost_, 0);
  }

  void largest_and_mean() {
    add("M1", error_.abs().amax({2, 3}),
        2 * chance_ * plain_error_.abs().amax({2, 3}) + floor_ + slack_ * r_.abs().amax({2, 3}));
    add("M2", error_.abs().mean({2, 3}),
        1.5 * chance_ * plain_error_.abs().mean({2, 3}) + floor_ / 4 +
            slack_ * r_.abs().mean({2, 3}));
  }

  void norms() {
    const at::Tensor size = norm_of_heads(r_), row_size = norm_of_rows(r_);
    if (dtype_ == at::kDouble) {
      add("M3", norm_of_heads(error_), size * kBoundOfDoubles);
      add("M4", (row_error_ / row_size).nan_to_num(0, kInfinity).amax(2),
          at::full_like(size, kBoundOfDoubles));
      return;
    }
    // Rows and heads of zeros are M6's.
    const auto relative = [](const at::Tensor& error, const at::Tensor& norm) {
      return error / norm.masked_fill(norm.eq(0), kInfinity);
    };
    const auto allowed = [&](const at::Tensor& plain, const at::Tensor& rounded) {
      return at::maximum(2 * chance_ * plain.amax(), 1.5 * rounded.amax()) + slack_;
    };
    const at::Tensor plain = relative(norm_of_heads(plain_error_), size);
    at::Tensor bound = allowed(plain, relative(norm_of_heads(rounding_), size));
    if (!is_quantized()) {
      bound = bound.minimum((1.5 * chance_ * plain.amax()).clamp_min(cap_of(dtype_)) + slack_);
    }
    const auto count = static_cast<double>(r_.size(2) * r_.size(3));
    add("M3", norm_of_heads(error_), bound * size + floor_ * (std::sqrt(count) / 4));
    const auto worst = [&](const at::Tensor& x) {
      return relative(norm_of_rows(x), row_size).amax(2);
    };
    const at::Tensor slack =
        relative(floor_.unsqueeze(2) * (std::sqrt(static_cast<double>(r_.size(3))) / 4), row_size);
    add("M4", worst(error_), allowed(worst(plain_error_), worst(rounding_)) + slack.amax(2));
  }

  // Sums over what a gain is measured on.
  struct Gain {
    at::Tensor dot, square, plain_square, rounded_dot, count;
  };
  void add_gain(const Gain& g, const at::Tensor& slack) {
    const at::Tensor safe = g.square.masked_fill(g.square.eq(0), 1);
    const at::Tensor own = g.rounded_dot.abs() / safe;
    // The few numbers that fall to the other side decide a quantized plan's error; they are no
    // mean.
    const at::Tensor count = is_quantized() ? g.count.clamp_max(25) : g.count;
    add("M5", (g.dot / safe).abs(),
        10 * chance_ * (g.plain_square / safe / count).sqrt() + 2 * own + std::pow(2.0, -22) +
            slack);
  }
  void gain() {
    const auto dot = [&](const at::Tensor& x) { return (x * r_).sum({2, 3}); };
    Gain each{dot(error_), dot(r_), at::Tensor(), dot(rounding_), at::Tensor()};
    each.plain_square =
        at::maximum(plain_error_.square().sum({2, 3}), rounding_.square().sum({2, 3}));
    // Rows that are alike have errors that are: of their squares, this share is their mean's.
    const auto rows = static_cast<double>(r_.size(2));
    const at::Tensor mean = r_.mean(2).square().sum(2) * rows;
    const at::Tensor share = (mean / each.square.masked_fill(each.square.eq(0), 1)).clamp(0, 1);
    each.count = rows * static_cast<double>(r_.size(3)) / (1 + (rows - 1) * share);
    add_gain(each, slack_);
    const auto all = [](const at::Tensor& x) { return x.sum().view({1, 1}); };
    add_gain({all(each.dot), all(each.square), all(each.plain_square), all(each.rounded_dot),
              all(each.count)},
             slack_.amax());
  }

  void log_sum_exp() {
    const at::Tensor &lse = given_.result.lse, &exact = given_.exact.lse;
    if (!lse.defined() || !exact.defined()) return;
    const at::Tensor l = lse.to(at::kDouble), e = exact.to(at::kDouble);
    const at::Tensor same = l.eq(e).logical_or(l.isnan().logical_and(e.isnan()));
    at::Tensor error, bound;
    if (is_quantized()) {
      error = (l - e).expm1().abs();
      bound = (given_.plain.lse.to(at::kDouble) - e).expm1().abs().nan_to_num(0, 0);
      bound = (2 * bound).clamp_min(given_.sum_error);
      if (given_.sum_jump.defined()) bound = bound + given_.sum_jump.to(at::kDouble);
    } else {
      error = (l - e).abs();
      const bool is_double = dtype_ == at::kDouble;
      bound = is_double ? kBoundOfDoubles * (1 + e.abs()) : 1e-5 + 2e-6 * e.abs();
      if (!is_double && given_.logit_size.defined()) {
        bound = bound + (std::pow(2.0, -20) + given_.key_error) * given_.logit_size;
      }
    }
    // One of them infinite: as wrong as can be.
    at::Tensor all = (error / bound).nan_to_num(kInfinity, kInfinity);
    all = all.masked_fill(l.isfinite().logical_and(e.isfinite()).logical_not(), kInfinity);
    row_error_ = all.masked_fill(same, 0);
    add("M7", row_error_.amax(2), at::ones({1, 1}, all.options()));
  }

  void quantization() {
    const at::Tensor far = given_.unquantized.to(at::kDouble).masked_fill(lost_, 0);
    const at::Tensor own = norm_of_heads(x_ - far), emulated = norm_of_heads(r_ + rounding_ - far);
    const at::Tensor plain = norm_of_heads(r_ + plain_error_ - far);
    add("Q6", own, 1.1 * at::maximum(emulated, plain) + 1e-4 * norm_of_heads(far));
  }

  const Comparison& given_;
  at::ScalarType dtype_;
  double chance_ = 1;
  at::Tensor x_, r_, error_, plain_error_, rounding_;  // fp64 [batch, heads, rows, value_dim]
  at::Tensor lost_;                                    // bool, where one of them is not finite
  at::Tensor row_error_;                               // [batch, heads, rows]
  at::Tensor floor_, slack_;                           // [batch, heads]
  std::vector<RuleResult> results_;
};

}  // namespace

std::vector<RuleResult> judge(const Comparison& comparison) { return Judge(comparison).run(); }

const RuleResult& worst_of(const std::vector<RuleResult>& results) {
  FOVEA_ASSERT(!results.empty());
  return *std::max_element(
      results.begin(), results.end(),
      [](const RuleResult& a, const RuleResult& b) { return a.ratio < b.ratio; });
}

}  // namespace fovea
