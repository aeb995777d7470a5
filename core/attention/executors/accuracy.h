#pragma once

#include <vector>

#include "core/attention/executor.h"

namespace fovea {

/// How close a result comes to one rule of accuracy.
struct RuleResult {
  const char* rule = "";  ///< "M1" to "M7", "Q6"
  double error = 0;
  double bound = 0;
  /// error / bound; above 1 the rule is broken. Infinite where nothing but the exact number will
  /// do.
  double ratio = 0;
  int64_t batch = 0, head = 0;  ///< where the ratio is the largest; M5 also counts all heads as one
  int64_t row = 0;              ///< of that head the one whose error is the largest
};

/// What an executor gave, and what it is held against; all of the same rows.
struct Comparison {
  AttentionResult result;  ///< without a log-sum-exp M7 is left out
  AttentionResult exact;   ///< fp64, of the same inputs as they are stored
  /// Plain tensor algebra in the storage type, nothing widened (`ReferenceOptions`).
  AttentionResult plain;
  /// For quantized plans, where `exact` is the emulation in fp64 and `plain` the one in fp32: the
  /// plan in fp64 without quantization. Undefined otherwise.
  at::Tensor unquantized = at::Tensor();
  /// How far the emulations themselves jump, number by number, where weights are rounded in the
  /// other ways that are right as well (`other_roundings`): that in fp64, and that in fp32, whose q
  /// and k may differ where halves lie between two numbers. Counts as an error of `plain`.
  /// Undefined: 0.
  at::Tensor jump = at::Tensor();
  /// The same of exp(lse), relatively [batch, heads, rows]; allowed in M7 as well. Undefined: 0.
  at::Tensor sum_jump = at::Tensor();
  /// Relative error of exp(lse) that M7 allows quantized plans in any case (`weight_sum_error`).
  double sum_error = 1e-3;
  /// Largest sm_scale ‖q‖ ‖k‖ of each row [batch, heads, rows]: fp32 knows logits to no more than
  /// 2⁻²⁴ of it, and weights to that, relatively; which is allowed in M1 to M5 as well. Undefined:
  /// 0.
  at::Tensor logit_size = at::Tensor();
  /// Relative error of keys that are rounded before they are multiplied (`pooled_key_error`); so
  /// much of logit_size is allowed in M7 as well.
  double key_error = 0;
  /// Relative error allowed beside M1 to M5: of sums that are ordered in another way than those of
  /// plain algebra, such as a linear branch in linear time.
  double slack = 0;
};

/// With x the result, r the exact and b the plain one, per batch item and head, the worst of which
/// counts, n their numbers, and c = 1 + 6 / √rows, because few numbers are alike by chance only:
///
/// M1  max |x − r| ≤ 2c max |b − r| + u, with u = 2 max |(r + 0.3 − 0.3) − r| in x's type
/// M2  mean |x − r| ≤ 1.5c mean |b − r| + u / 4
/// M3  ‖x − r‖ / ‖r‖ ≤ max(2c ‖b − r‖ / ‖r‖, 1.5 ‖round(r) − r‖ / ‖r‖) of the worst head each, and
///     √n u / 4; no more than 5e-6 in fp32, 2e-3 in fp16, 1.2e-2 in bf16, where plain algebra
///     keeps to that
/// M4  as M3 row by row, without the cap: the worst ‖xᵢ − rᵢ‖ / ‖rᵢ‖ of each
/// M5  |gain(x)| ≤ 10c / √n · ‖b − r‖ / ‖r‖ + 2⁻²² + 2 |gain(round(r))|, with
///     gain(x) = ⟨x, r⟩ / ⟨r, r⟩ − 1; all heads together, and each alone. n counts rows that are
///     alike as one, in the share of ‖r‖² that is their mean's
/// M6  infinities and NaN where r has them and nowhere else; rows of zeros are exactly zero
/// M7  |lse − lse of r| ≤ 1e-5 + 2e-6 |lse of r| + (2⁻²⁰ + key_error) logit_size. That holds the
/// share of the
///     softmax that a plan keeps, exp(lse − lse of all keys), to the same
///
/// Quantized plans have no cap; M5 has 2c in place of 10c / √n; M7 is |exp(lse − lse of r) − 1| ≤
/// max(sum_error, twice that of b) + sum_jump, and Q6 ‖x − unquantized‖ ≤ 1.1 ‖round(r) or b −
/// unquantized‖ + 1e-4 ‖unquantized‖. For fp64 there is no b that says anything: M3 and M4 with
/// 1e-12, and that in M7.
///
/// returns  one entry for each rule that applies; none for a result without numbers
std::vector<RuleResult> judge(const Comparison& comparison);

/// The one with the largest ratio; `results` is not empty.
const RuleResult& worst_of(const std::vector<RuleResult>& results);

}  // namespace fovea
