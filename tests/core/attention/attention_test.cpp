#include "core/attention/attention.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "core/check.h"
#include "tests/support/golden.h"

namespace fovea {
namespace {

struct Problem {
  int64_t batch = 2, heads = 3, kv_heads = 3, q_len = 17, kv_len = 29, head_dim = 16;
};

AttentionCall make_call(const Problem& p, at::ScalarType dtype = at::kDouble) {
  const auto options = at::TensorOptions().dtype(dtype);
  return {.role = AttentionRole::cross,
          .q_layout = TokenLayout::extra(p.q_len),
          .kv_layout = TokenLayout::extra(p.kv_len),
          .q = at::randn({p.batch, p.heads, p.q_len, p.head_dim}, options),
          .k = at::randn({p.batch, p.kv_heads, p.kv_len, p.head_dim}, options),
          .v = at::randn({p.batch, p.kv_heads, p.kv_len, p.head_dim}, options),
          .bias = {},
          .sm_scale = {},
          .context = {},
          .layer = 0};
}

// softmax(sm_scale · q·kᵀ + bias) · v with the valid keys only, in fp64.
at::Tensor reference(const AttentionCall& call) {
  const int64_t group = call.q.size(1) / call.k.size(1);
  const at::Tensor k = call.k.to(at::kDouble).repeat_interleave(group, 1);
  const at::Tensor v = call.v.to(at::kDouble).repeat_interleave(group, 1);
  const double scale = call.sm_scale.value_or(1 / std::sqrt(static_cast<double>(call.q.size(3))));
  at::Tensor s = at::matmul(call.q.to(at::kDouble), k.transpose(2, 3)) * scale;
  if (call.bias.defined()) s = s + call.bias;
  const at::Tensor valid = call.kv_layout.valid_mask();
  if (valid.defined())
    s = s.masked_fill(valid.logical_not(), -std::numeric_limits<double>::infinity());
  return at::matmul(at::softmax(s, -1).nan_to_num(0), v);
}

TEST(Attention, EqualsTheFormula) {
  at::manual_seed(1);
  Attention attention;
  for (const Problem& p :
       {Problem{}, Problem{.q_len = 1, .kv_len = 1}, Problem{.heads = 6, .kv_heads = 2},
        Problem{.q_len = 65, .kv_len = 3, .head_dim = 12}}) {
    AttentionCall call = make_call(p);
    EXPECT_LE(test::relative_error(attention.run(call), reference(call)), 1e-12);
    call.sm_scale = 1.0;
    call.bias = at::randn({1, p.heads, p.q_len, p.kv_len}, call.q.options());
    EXPECT_LE(test::relative_error(attention.run(call), reference(call)), 1e-12);
  }
}

TEST(Attention, PaddingKeysDoNotCount) {
  at::manual_seed(2);
  Attention attention;
  AttentionCall call = make_call({});
  call.kv_layout = TokenLayout::text(29, at::tensor({29, 5}, at::kLong));
  EXPECT_LE(test::relative_error(attention.run(call), reference(call)), 1e-12);
  call.bias = at::randn({1, 3, 17, 29}, call.q.options());
  EXPECT_LE(test::relative_error(attention.run(call), reference(call)), 1e-12);
}

TEST(Attention, NoKeysGiveZeros) {
  Attention attention;
  const at::Tensor out = attention.run(make_call({.kv_len = 0}));
  EXPECT_EQ(out.sizes(), at::IntArrayRef({2, 3, 17, 16}));
  EXPECT_TRUE(at::equal(out, at::zeros_like(out)));
}

TEST(Attention, TakesAnyStrides) {
  at::manual_seed(3);
  Attention attention;
  AttentionCall call = make_call({}, at::kFloat);
  const at::Tensor expected = attention.run(call);
  for (at::Tensor* x : {&call.q, &call.k, &call.v})
    *x = x->transpose(1, 2).contiguous().transpose(1, 2);
  EXPECT_LE(test::relative_error(attention.run(call), expected), 1e-6);
}

TEST(Attention, CountsCallsByRole) {
  Attention attention;
  attention.run(make_call({}));
  attention.run(make_call({}));
  EXPECT_EQ(attention.counts().at("cross: dense on sdpa"), 2);
}

TEST(Attention, RefusesLayoutsThatDisagreeWithTheTensors) {
  Attention attention;
  AttentionCall call = make_call({});
  call.kv_layout = TokenLayout::extra(30);
  EXPECT_THROW(attention.run(call), Error);
}

TEST(Attention, UnknownPlannerIsNamed) {
  try {
    Attention attention("no_such_method");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::usage);
    EXPECT_NE(error.reason().find("no_such_method"), std::string::npos);
    EXPECT_NE(error.reason().find("dense"), std::string::npos);
  }
}

}  // namespace
}  // namespace fovea
