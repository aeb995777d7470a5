#pragma once

#include <memory>
#include <vector>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "core/attention/executors/accuracy.h"
#include "core/attention/executors/checked.h"
#include "tests/core/attention/executor_case.h"
#include "tests/core/attention/plan_cases.h"
#include "tests/support/emulated_cuda.h"

// Executors of GPUs: with the kernel emulated on the CPU, and on a GPU where there is one.

namespace fovea::test {

inline std::vector<const CudaBackend*> cuda_backends() {
#if FOVEA_HAS_CUDA
  return {&emulated_backend(), &sm90_backend(), &sm80_backend()};
#else
  return {&emulated_backend()};
#endif
}

/// Tensors are made on the CPU, and where the backend wants them by `on`.
class CudaBackendTest : public testing::TestWithParam<const CudaBackend*> {
 protected:
  void SetUp() override {
    at::manual_seed(1);
    if (GetParam() != &emulated_backend()) {
      if (!at::hasCUDA()) GTEST_SKIP() << "missing: a GPU";
      device_ = at::Device(at::kCUDA, 0);
    }
    AttentionCall call;
    call.q = at::zeros({1, 1, 1, 64}, at::device(device_).dtype(at::kHalf));
    if (const auto reason = GetParam()->why_not(call)) {
      GTEST_SKIP() << "missing: a GPU for " << GetParam()->name << ", which " << *reason;
    }
    executor_ = std::make_unique<CudaExecutor>(*GetParam());
  }
  at::Tensor on(const at::Tensor& x) const { return x.defined() ? x.to(device_) : x; }
  TokenLayout on(const TokenLayout& layout) const {
    TokenLayout out;
    for (size_t i = 0; i < layout.segments().size(); ++i) {
      const Segment& segment = layout.segments()[i];
      const auto& [frames, height, width] = segment.grid;
      const at::Tensor valid = on(layout.valid_len()[i]);
      if (segment.kind == Segment::Kind::grid) {
        out.append(valid.defined() ? TokenLayout::sequence(segment.capacity, valid)
                                   : TokenLayout::grid(frames, height, width));
      } else if (segment.kind == Segment::Kind::text) {
        out.append(TokenLayout::text(segment.capacity, valid));
      } else {
        out.append(TokenLayout::extra(segment.capacity));
      }
    }
    return out;
  }
  AttentionCall call_of(const TokenLayout& layout, Case c = {.layout = {}}) const {
    c.layout = on(layout);
    if (c.dim == 40) c.dim = 64;
    if (c.dtype == at::kFloat) c.dtype = at::kBFloat16;
    AttentionCall call = make_call(c);
    call.q = on(call.q), call.k = on(call.k), call.v = on(call.v);
    return call;
  }
  BlockAxis on(const BlockAxis& axis) const {
    if (!axis.device_offsets().defined()) return axis;
    return BlockAxis::from_offsets(on(axis.device_offsets()), axis.max_size());
  }
  TokenOrder on(const TokenOrder& order) const {
    return order.kind() == TokenOrder::Kind::index ? TokenOrder::index(on(order.index_rows()))
                                                   : order;
  }
  void set_random_blocks(AttentionPlan& plan, const AttentionCall& call, int64_t count) const {
    Selection& selection = selection_of(plan);
    const int64_t heads = call.q.size(1), kv_heads = call.k.size(1), items = call.q.size(0);
    selection.q_blocks = on(random_blocks(items, heads, 9, call.q.size(2)));
    selection.kv_blocks = on(random_blocks(1, kv_heads, 12, call.k.size(2)));
    selection.classes = on(random_classes(selection, items, heads, count));
  }

  /// Runs a plan, which meets the rules of accuracy, twice, which changes no bit.
  void expect_rules(const AttentionPlan& plan, const AttentionCall& call) {
    validate(plan, call);
    ASSERT_EQ(executor_->why_not(plan, call), std::nullopt) << plan.describe();
    const AttentionResult result = executor_->run(plan, call, nullptr);
    Comparison comparison = compare_with_reference(plan, call, result, at::Tensor());
    comparison.key_error = pooled_key_error(plan, call.q.scalar_type());
    const auto rules = judge(comparison);
    const RuleResult& worst = worst_of(rules);
    EXPECT_LE(worst.ratio, 1) << worst.rule << ": error " << worst.error << ", allowed "
                              << worst.bound << " in item " << worst.batch << " head " << worst.head
                              << " row " << worst.row << " of " << plan.describe() << " for "
                              << call.q_layout.describe();
    const AttentionResult again = executor_->run(plan, call, nullptr);
    expect_same_bits(result.out.nan_to_num(), again.out.nan_to_num(), plan.describe());
    expect_same_bits(result.lse, again.lse, plan.describe());
  }

  at::Device device_ = at::kCPU;
  std::unique_ptr<Executor> executor_;
};

}  // namespace fovea::test
