#pragma once

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "core/attention/executors/cpu.h"
#include "core/attention/executors/reference.h"
#include "tests/support/golden.h"

// The CPU's executor against the reference in fp64 on the same rounded inputs.

namespace fovea::test {

struct Case {
  TokenLayout layout;
  int64_t batch = 2, heads = 4, kv_heads = 2, dim = 40;
  at::ScalarType dtype = at::kFloat;
  double bound = 2e-6;
};

inline AttentionCall make_call(const Case& c) {
  const int64_t length = c.layout.seq_len();
  AttentionCall call;
  call.q_layout = call.kv_layout = c.layout;
  const auto draw = [&](int64_t heads) {
    // As projections give it: tokens before heads.
    return at::randn({c.batch, length, heads, c.dim}).to(c.dtype).transpose(1, 2);
  };
  call.q = draw(c.heads);
  call.k = draw(c.kv_heads);
  call.v = draw(c.kv_heads);
  return call;
}

inline AttentionCall widened(AttentionCall call) {
  for (at::Tensor* x : {&call.q, &call.k, &call.v, &call.bias}) {
    if (x->defined()) *x = x->to(at::kDouble);
  }
  return call;
}

inline void expect_reference(const AttentionPlan& plan, const AttentionCall& call, double bound) {
  validate(plan, call);
  CpuExecutor cpu;
  ASSERT_EQ(cpu.why_not(plan, call), std::nullopt);
  const AttentionResult got = cpu.run(plan, call, nullptr);
  const AttentionResult expected = ReferenceExecutor().run(plan, widened(call));
  EXPECT_EQ(got.out.scalar_type(), call.q.scalar_type());
  EXPECT_LE(relative_error(got.out, expected.out), bound) << plan.describe();
  EXPECT_TRUE(at::allclose(got.lse, expected.lse.to(at::kFloat), 1e-5, 1e-5)) << plan.describe();
}

inline Selection& selection_of(AttentionPlan& plan) {
  return std::get<SoftmaxBranch>(plan.branches[0].kind).selection;
}

inline TokenLayout video_and_text() {
  TokenLayout layout = TokenLayout::grid(3, 7, 9);
  return layout.append(TokenLayout::text(30, at::tensor({11, 30}, at::kLong)));
}

inline at::Tensor random_classes(const Selection& selection, int64_t batch, int64_t heads,
                                 int64_t count) {
  return at::randint(count, {batch, heads, selection.q_blocks.num_blocks(),
                             selection.kv_blocks.num_blocks()})
      .to(at::kByte);
}

// [items, heads, count + 1] random ends of blocks
inline BlockAxis random_blocks(int64_t items, int64_t heads, int64_t count, int64_t length) {
  at::Tensor ends = std::get<0>(at::randint(length, {items, heads, count - 1}).sort(2));
  ends = at::cat({at::zeros({items, heads, 1}), ends, at::full({items, heads, 1}, length)}, 2);
  return BlockAxis::from_offsets(ends.to(at::kInt), length);
}

inline TokenOrder random_order(int64_t items, int64_t heads, int64_t length) {
  return TokenOrder::index(std::get<1>(at::rand({items, heads, length}).sort(2)).to(at::kInt));
}

}  // namespace fovea::test
