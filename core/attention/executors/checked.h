#pragma once

#include "core/attention/executors/accuracy.h"
#include "core/attention/executors/reference.h"

namespace fovea {

/// What the names of checked executors begin with, such as "checked:cpu".
constexpr const char* kChecked = "checked:";

/// Runs another executor and computes some rows of each call once more with the reference in fp64.
///
/// The rows are the same for all batch items and heads: the first and the last one, those at the
/// edges of some blocks of queries, and some others, drawn by counting from layer, step and
/// guidance branch. They are held against the rules of `judge`. A check costs those rows in fp64
/// and in the storage type, three or four times where weights are quantized, and an fp64 copy of k
/// and v; it waits for the device.
///
/// throws  Error non_finite that names executor, plan, layer, step, batch item, head and row where
///         a rule is broken
class CheckedExecutor : public Executor {
 public:
  explicit CheckedExecutor(std::unique_ptr<Executor> executor, int64_t rows = 16);

  std::string name() const override { return kChecked + executor_->name(); }
  std::optional<std::string> why_not(const AttentionPlan& plan,
                                     const AttentionCall& call) const override {
    return executor_->why_not(plan, call);
  }
  std::shared_ptr<const LoweredPlan> lower(const AttentionPlan& plan,
                                           const AttentionCall& call) const override {
    return executor_->lower(plan, call);
  }
  AttentionResult run(const AttentionPlan& plan, const AttentionCall& call,
                      const LoweredPlan* lowered) override;

 private:
  std::unique_ptr<Executor> executor_;
  int64_t rows_;
};

/// The rows of a call that are checked: int64 on the CPU, ascending, at most `count`, all where
/// there are no more.
at::Tensor sampled_rows(const AttentionPlan& plan, const AttentionCall& call, int64_t count);

/// How far off fp32 may have softmax weights that a plan quantizes, relatively; 0 where it
/// quantizes none. On a GPU logits of e4m3 count with 2⁻¹³ of the largest ‖q‖ ‖k‖, as
/// Hopper's matrix units keep 13 bits of fraction of the largest product that they add
/// (DeepSeek-V3, arXiv:2412.19437, section 3.3.2): what errors of many products come to, no strict
/// bound.
double weight_error(const AttentionPlan& plan, const AttentionCall& call);

/// What quantized softmax weights may be instead, as far as executors round them in another way
/// than the reference: weights within `weight_error` of a half between two numbers fall to the
/// other one, and small e4m3 weights are rounded more finely (`Precision::p`). Empty where a plan
/// quantizes no weights, and in fp64.
std::vector<ReferenceOptions> other_roundings(const AttentionPlan& plan, const AttentionCall& call,
                                              const at::Tensor& rows);

/// How far off the sum of a row's quantized weights may be, relatively. On a GPU matrix units that
/// cut off as said above add e4m3 ones of a head up.
double weight_sum_error(const AttentionPlan& plan, at::Device device);

/// By how much kernels of GPUs may round pooled keys, relatively: they multiply numbers of the
/// inputs' type. 0 for plans without summaries.
double pooled_key_error(const AttentionPlan& plan, at::ScalarType dtype);

/// What a result is held against, for some of its rows. On a GPU with `pooled_key_error` and
/// `weight_sum_error`.
///
/// result  of the whole call
/// rows    int64 on the device of q; undefined: all
Comparison compare_with_reference(const AttentionPlan& plan, const AttentionCall& call,
                                  const AttentionResult& result, const at::Tensor& rows);

}  // namespace fovea
