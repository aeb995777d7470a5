// Gradients of executors of GPUs, emulated and on a GPU where there is one.

#include <functional>
#include <limits>

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <gtest/gtest.h>

#include "core/attention/executors/cuda.h"
#include "core/attention/executors/reference.h"
#include "core/check.h"
#include "tests/core/attention/cuda_case.h"
#include "tests/core/attention/gradient_case.h"
#include "tests/core/attention/plan_cases.h"

namespace fovea {
namespace {

using test::FromBehind;
using test::Gradients;
using test::selection_of;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

// What may have gradients, and its name in messages.
struct Leaf {
  std::string name;
  at::Tensor* x;
};

// A plan and a call with leaves of their own, in another type.
struct Own {
  AttentionPlan plan;
  AttentionCall call;

  Own(const AttentionPlan& p, const AttentionCall& c, at::ScalarType dtype) : plan(p), call(c) {
    for (const Leaf& leaf : leaves()) {
      *leaf.x = leaf.x->detach().to(dtype).clone().requires_grad_();
    }
  }
  std::vector<Leaf> leaves() {
    std::vector<Leaf> out = {{"q", &call.q}, {"k", &call.k}, {"v", &call.v}};
    for (Branch& branch : plan.branches) {
      if (auto* softmax = std::get_if<SoftmaxBranch>(&branch.kind); softmax && softmax->keys) {
        out.push_back({"given k", &softmax->keys->k});
        out.push_back({"given v", &softmax->keys->v});
      }
      if (auto* pooled = std::get_if<PooledValuesBranch>(&branch.kind)) {
        out.push_back({"weights of pooled values", &pooled->weights});
      }
    }
    for (at::Tensor& weight : plan.group_weights) out.push_back({"weight of a group", &weight});
    return out;
  }
  Gradients gradients(const at::Tensor& loss) {
    std::vector<at::Tensor> inputs;
    for (const Leaf& leaf : leaves()) inputs.push_back(*leaf.x);
    Gradients out = torch::autograd::grad({loss}, inputs, {}, {}, false, /*allow_unused=*/true);
    for (size_t i = 0; i < out.size(); ++i) {
      if (!out[i].defined()) out[i] = at::zeros_like(inputs[i]);
    }
    return out;
  }
};

class CudaGradients : public test::CudaBackendTest {
 protected:
  Gradients gradients_of(const AttentionPlan& plan, const AttentionCall& call,
                         const FromBehind& behind) {
    Own own(plan, call, call.q.scalar_type());
    EXPECT_EQ(executor_->why_not(own.plan, own.call), std::nullopt) << plan.describe();
    const AttentionResult result = executor_->run(own.plan, own.call, nullptr);
    {
      const c10::NoGradGuard no_gradients;
      const AttentionResult without = executor_->run(plan, call, nullptr);
      if (GetParam()->packed_tile != nullptr) {
        // Lists are packed where no gradients are wanted, and sums come in another order then.
        expect_near(result.out, without.out, 4e-3);
        expect_near(result.lse, without.lse, 1e-5);
      } else {
        test::expect_same_bits(result.out.detach(), without.out, "out");
        test::expect_same_bits(result.lse.detach(), without.lse, "lse");
      }
    }
    return own.gradients(behind.loss(result));
  }

  // NaN and infinities in the same places, and the others apart by so much at most, relative.
  static void expect_near(const at::Tensor& x, const at::Tensor& y, double most) {
    const at::Tensor is_finite = y.isfinite();
    EXPECT_TRUE(x.detach().isfinite().equal(is_finite));
    const at::Tensor own = x.detach().masked_select(is_finite), other = y.masked_select(is_finite);
    if (own.numel() > 0) {
      EXPECT_LE(test::relative_error(own, other), most);
    }
  }

  // Rules M1 and M3 to M6 with the factors of gradients, and the same bits in a second run.
  //
  // is_shared  rows get one gradient many times: rounded alike, which is more than M5 thinks of
  void expect_gradients(const AttentionPlan& plan, const AttentionCall& call,
                        bool is_shared = false) {
    SCOPED_TRACE(plan.describe() + " for " + call.q_layout.describe());
    validate(plan, call);
    const FromBehind behind(call);
    const Gradients got = gradients_of(plan, call, behind);
    const Gradients again = gradients_of(plan, call, behind);
    const auto reference = [&](at::ScalarType dtype, const ReferenceOptions& options) {
      Own own(plan, call, dtype);
      return own.gradients(behind.loss(reference_attention(own.plan, own.call, options)));
    };
    const Gradients exact = reference(at::kDouble, {});
    const Gradients plain = reference(call.q.scalar_type(), {.in_storage_type = true});
    const std::vector<Leaf> leaves = Own(plan, call, call.q.scalar_type()).leaves();
    for (size_t i = 0; i < got.size(); ++i) {
      SCOPED_TRACE(leaves[i].name);
      ASSERT_EQ(got[i].scalar_type(), call.q.scalar_type());
      test::expect_same_bits(got[i], again[i], leaves[i].name);
      if (is_shared) {
        const double of_plain = test::relative_error(plain[i], exact[i]);
        EXPECT_LE(test::relative_error(got[i], exact[i]), std::max(2 * of_plain, 4e-3));
      } else {
        test::expect_rules(got[i], exact[i], plain[i]);
      }
    }
  }

  at::Tensor draw(at::IntArrayRef sizes) const { return on(at::randn(sizes).to(at::kBFloat16)); }
};

TokenLayout padded_text() {
  const at::Tensor valid = at::tensor({51, 7}, at::kLong);
  return TokenLayout::grid(2, 9, 9).append(TokenLayout::text(60, valid));
}

TEST_P(CudaGradients, OfDenseAttention) {
  const at::Tensor valid = at::tensor({130, 97}, at::kLong);
  for (const TokenLayout& layout :
       {TokenLayout::grid(1, 1, 193), TokenLayout::sequence(1), TokenLayout::sequence(150, valid),
        TokenLayout::text(131, valid), padded_text()}) {
    for (const int64_t dim : {64, 128}) {
      const at::ScalarType dtype = dim == 64 ? at::kHalf : at::kBFloat16;
      const AttentionCall call = call_of(layout, {.layout = {}, .dim = dim, .dtype = dtype});
      expect_gradients(AttentionPlan::dense("dense"), call);
    }
  }
}

// Biases that are no leaves, also with keys that one hides.
TEST_P(CudaGradients, OfDenseAttentionWithABias) {
  for (const TokenLayout& layout : {padded_text(), TokenLayout::grid(1, 1, 257)}) {
    AttentionCall call = call_of(layout);
    call.bias = at::randn({2, 4, 1, layout.seq_len()});
    call.bias.slice(3, 3, 90).fill_(-std::numeric_limits<float>::infinity());
    call.bias = on(call.bias);
    expect_gradients(AttentionPlan::dense("dense"), call);
  }
}

// Blocks of all kinds, orders of each head, padding that they scatter, rows that see nothing.
TEST_P(CudaGradients, OfBlocksInAnyOrder) {
  for (const TokenLayout& layout : {padded_text(), TokenLayout::grid(2, 9, 11)}) {
    const AttentionCall call = call_of(layout);
    const int64_t length = layout.seq_len();
    for (const int64_t size : {17, 64, 128}) {
      AttentionPlan plan = AttentionPlan::dense("uniform");
      Selection& selection = selection_of(plan);
      selection.q_blocks = BlockAxis::uniform(call.q_layout, size);
      selection.kv_blocks = BlockAxis::uniform(call.kv_layout, size == 17 ? 30 : 128);
      selection.classes = on(test::random_classes(selection, 1, 4, 2));
      selection.classes.select(2, 1).zero_();
      expect_gradients(plan, call);
      plan.q_order = on(test::random_order(2, 4, length));
      expect_gradients(plan, call);
      plan.kv_order = on(test::random_order(1, 2, length));
      expect_gradients(plan, call);
    }
    AttentionPlan plan = AttentionPlan::dense("offsets");
    plan.kv_order = TokenOrder::axes({{2, 0, 1}, {1, 2, 0}});
    set_random_blocks(plan, call, 2);
    expect_gradients(plan, call);
    // Blocks of keys of each head of queries.
    selection_of(plan).kv_blocks = on(test::random_blocks(2, 4, 12, length));
    expect_gradients(plan, call);
    AttentionPlan tiles = AttentionPlan::dense("tiles");
    tiles.q_order = tiles.kv_order = TokenOrder::tiles({2, 3, 4});
    Selection& selection = selection_of(tiles);
    selection.q_blocks = selection.kv_blocks = BlockAxis::tiles(call.q_layout, {2, 3, 4});
    selection.classes = on(test::random_classes(selection, 2, 1, 2));
    expect_gradients(tiles, call);
  }
}

TEST_P(CudaGradients, OfSummaries) {
  for (const TokenLayout& layout : {padded_text(), TokenLayout::grid(2, 9, 11)}) {
    AttentionCall call = call_of(layout);
    AttentionPlan plan = AttentionPlan::dense("summaries");
    Selection& selection = selection_of(plan);
    selection.summaries = {{.pool = 0}, {.pool = 2}, {.pool = 5, .log_count = false}};
    selection.q_blocks = BlockAxis::uniform(call.q_layout, 64);
    selection.kv_blocks = BlockAxis::uniform(call.kv_layout, 50);
    selection.classes = on(test::random_classes(selection, 2, 4, 5));
    expect_gradients(plan, call);
    set_random_blocks(plan, call, 5);
    expect_gradients(plan, call);
    plan.kv_order = on(test::random_order(2, 2, layout.seq_len()));
    expect_gradients(plan, call);
    // Blocks of keys of each head of queries.
    selection.kv_blocks = on(test::random_blocks(2, 4, 12, layout.seq_len()));
    call.bias = on(at::randn({1, 4, 1, layout.seq_len()}));
    expect_gradients(plan, call);
  }
}

TEST_P(CudaGradients, OfPredicates) {
  WindowPredicate window;
  window.axes[0] = {.size = 2, .stride = 2, .causal = true};
  window.axes[1] = {.size = 5};
  window.axes[2] = {.size = 3, .dilation = 2};
  for (const TokenLayout& layout : {padded_text(), TokenLayout::grid(2, 9, 11)}) {
    const AttentionCall call = call_of(layout);
    const int64_t length = layout.seq_len();
    const at::Tensor seen = on(at::rand({2, 4, length, length}).lt(0.6));
    for (const std::vector<Predicate>& predicates : {std::vector<Predicate>{window},
                                                     {DiscPredicate{3.5}},
                                                     {CausalPredicate{}, StoredPredicate{seen}}}) {
      AttentionPlan plan = AttentionPlan::dense("predicates");
      selection_of(plan).predicates = predicates;
      expect_gradients(plan, call);
      plan.q_order = TokenOrder::tiles({1, 4, 4});
      plan.kv_order = on(test::random_order(1, 2, length));
      set_random_blocks(plan, call, 2);
      expect_gradients(plan, call);
    }
    // Half of each block of queries: rows have masks, columns have none.
    AttentionPlan halves = AttentionPlan::dense("halves");
    Selection& selection = selection_of(halves);
    selection.q_blocks = selection.kv_blocks = BlockAxis::uniform(call.q_layout, 128);
    selection.classes = on(test::random_classes(selection, 2, 4, 2));
    const at::Tensor half = at::arange(length).remainder(128).ge(64).view({1, 1, length, 1});
    selection.predicates = {StoredPredicate{on(half.expand({1, 1, length, length}).clone())}};
    expect_gradients(halves, call);
    AttentionPlan plan = AttentionPlan::dense("both");
    selection_of(plan).predicates = {StoredPredicate{seen}};
    selection_of(plan).summaries = {{.pool = 3}};
    set_random_blocks(plan, call, 3);
    expect_gradients(plan, call);
  }
}

TEST_P(CudaGradients, OfGivenKeys) {
  const AttentionCall call = call_of(TokenLayout::grid(2, 9, 11));
  for (const int64_t kv_heads : {1, 2, 4}) {
    AttentionPlan plan = AttentionPlan::dense("given");
    auto& branch = std::get<SoftmaxBranch>(plan.branches[0].kind);
    branch.keys = GivenKeys{draw({2, kv_heads, 150, 64}), draw({2, kv_heads, 150, 64}),
                            on(at::randn({1, 4, 150}))};
    expect_gradients(plan, call);
    plan.q_order = on(test::random_order(2, 4, call.q.size(2)));
    branch.selection.q_blocks = BlockAxis::uniform(call.q_layout, 32);
    branch.selection.kv_blocks = BlockAxis::uniform(TokenLayout::extra(150), 16);
    branch.selection.classes = on(test::random_classes(branch.selection, 2, 4, 2));
    expect_gradients(plan, call);
    branch.selection.kv_blocks = on(test::random_blocks(1, 4, 10, 150));
    expect_gradients(plan, call);
  }
}

// Parts of a group merge by their log-sum-exp; groups are weighted.
TEST_P(CudaGradients, OfPlansOfSeveralBranches) {
  const AttentionCall call = call_of(padded_text());
  AttentionPlan plan = AttentionPlan::dense("branches");
  Selection& selection = selection_of(plan);
  plan.q_order = on(test::random_order(1, 4, call.q.size(2)));
  selection.q_blocks = BlockAxis::uniform(call.q_layout, 64);
  selection.kv_blocks = BlockAxis::uniform(call.kv_layout, 50);
  selection.classes = on(test::random_classes(selection, 1, 4, 2));
  SoftmaxBranch given;
  given.keys = GivenKeys{draw({2, 2, 33, 64}), draw({2, 2, 33, 64}), at::Tensor()};
  LinearBranch linear;
  linear.complement_of = 0;
  plan.branches.push_back({given, 0});
  plan.branches.push_back({linear, 1});
  plan.group_weights = {draw({1, 4, call.q.size(2), 1}), draw({1, 1, 1, 64})};
  expect_gradients(plan, call);
}

TEST_P(CudaGradients, OfPooledValues) {
  const AttentionCall call = call_of(padded_text());
  AttentionPlan plan = AttentionPlan::dense("pooled");
  plan.q_order = on(test::random_order(2, 4, call.q.size(2)));
  plan.kv_order = on(test::random_order(1, 2, call.q.size(2)));
  PooledValuesBranch pooled;
  pooled.q_blocks = BlockAxis::uniform(call.q_layout, 64);
  pooled.kv_blocks = on(test::random_blocks(2, 4, 9, call.q.size(2)));
  pooled.weights = on(at::rand({1, 4, pooled.q_blocks.num_blocks(), pooled.kv_blocks.num_blocks()})
                          .to(at::kBFloat16));
  plan.branches.push_back({pooled, 1});
  plan.group_weights = {draw({1, 4, 1, 1}), draw({2, 4, call.q.size(2), 1})};
  expect_gradients(plan, call, /*is_shared=*/true);
}

// Padding may hold anything, and gets nothing.
TEST_P(CudaGradients, OfPaddingAreZero) {
  const TokenLayout layout = padded_text();
  const int64_t begin = 2 * 9 * 9;
  for (const bool scattered : {false, true}) {
    for (const bool summed : {false, true}) {
      AttentionCall call = call_of(layout);
      for (const at::Tensor& x : {call.k, call.v}) {
        x[0].slice(1, begin + 51).fill_(kNaN);
        x[1].slice(1, begin + 7).fill_(kNaN);
      }
      AttentionPlan plan = AttentionPlan::dense("dense");
      if (summed || scattered) {
        Selection& selection = selection_of(plan);
        selection.q_blocks = BlockAxis::uniform(call.q_layout, 64);
        selection.kv_blocks = BlockAxis::uniform(call.kv_layout, 60);
        if (summed) selection.summaries = {{.pool = 0}, {.pool = 7}};
        selection.classes = on(test::random_classes(selection, 1, 4, summed ? 4 : 2));
      }
      if (scattered) plan.kv_order = on(test::random_order(2, 2, layout.seq_len()));
      const Gradients got = gradients_of(plan, call, FromBehind(call));
      for (const at::Tensor& x : got) EXPECT_FALSE(x.isnan().any().item<bool>());
      for (const at::Tensor& x : {got[1], got[2]}) {
        EXPECT_EQ(test::length_of(x[0].slice(1, begin + 51)), 0);
        EXPECT_EQ(test::length_of(x[1].slice(1, begin + 7)), 0);
        EXPECT_GT(test::length_of(x[0].slice(1, begin, begin + 51)), 0);
      }
    }
  }
}

// Of the inputs one alone, of the results one alone: the same bits.
TEST_P(CudaGradients, OfPartsOfTheProblem) {
  const AttentionCall call = call_of(TokenLayout::grid(1, 9, 9));
  AttentionPlan plan = AttentionPlan::dense("parts");
  selection_of(plan).predicates = {BandPredicate{12}};
  selection_of(plan).summaries = {{.pool = 4}};
  set_random_blocks(plan, call, 3);
  const FromBehind behind(call);
  const Gradients all = gradients_of(plan, call, behind);
  at::Tensor AttentionCall::*const leaves[] = {&AttentionCall::q, &AttentionCall::k,
                                               &AttentionCall::v};
  for (size_t i = 0; i < 3; ++i) {
    Own own(plan, call, call.q.scalar_type());
    AttentionCall one = call;
    one.*leaves[i] = own.call.*leaves[i];
    const at::Tensor loss = behind.loss(executor_->run(plan, one, nullptr));
    test::expect_same_bits(torch::autograd::grad({loss}, {own.call.*leaves[i]})[0], all[i],
                           std::to_string(i));
  }
  Own own(plan, call, call.q.scalar_type()), wide(plan, call, at::kDouble);
  const auto of_lse = [&](Own& of, const AttentionResult& result) {
    return of.gradients(result.lse.masked_fill(result.lse.isinf(), 0).sin().sum());
  };
  const Gradients got = of_lse(own, executor_->run(own.plan, own.call, nullptr));
  const Gradients exact = of_lse(wide, reference_attention(wide.plan, wide.call));
  EXPECT_LE(test::relative_error(got[0], exact[0]), 1e-2);
  EXPECT_LE(test::relative_error(got[1], exact[1]), 1e-2);
  EXPECT_EQ(test::length_of(got[2]), 0);
}

// Lists that were made with and without a wish for gradients.
TEST_P(CudaGradients, OfLoweredPlans) {
  const AttentionCall call = call_of(test::video_and_text());
  AttentionPlan plan = AttentionPlan::dense("kept");
  plan.q_order = plan.kv_order = TokenOrder::tiles({1, 4, 4});
  WindowPredicate window;
  window.axes[1] = {.size = 5};
  selection_of(plan).predicates = {window};
  const FromBehind behind(call);
  const Gradients expected = gradients_of(plan, call, behind);
  for (const bool wanted : {false, true}) {
    Own own(plan, call, call.q.scalar_type());
    const auto lowered = executor_->lower(plan, wanted ? own.call : call);
    for (int run = 0; run < 2; ++run) {
      const Gradients got =
          own.gradients(behind.loss(executor_->run(own.plan, own.call, lowered.get())));
      for (size_t i = 0; i < got.size(); ++i) {
        test::expect_same_bits(got[i], expected[i], std::to_string(i));
      }
    }
  }
}

TEST_P(CudaGradients, OfNoKeysAreZero) {
  const AttentionCall call = call_of(TokenLayout::grid(1, 5, 5));
  AttentionPlan plan = AttentionPlan::dense("nothing");
  std::get<SoftmaxBranch>(plan.branches[0].kind).keys =
      GivenKeys{draw({2, 2, 0, 64}), draw({2, 2, 0, 64}), at::Tensor()};
  Own own(plan, call, call.q.scalar_type());
  const AttentionResult result = executor_->run(own.plan, own.call, nullptr);
  EXPECT_EQ(test::length_of(result.out), 0);
  const Gradients got = torch::autograd::grad({result.out.sum()}, {own.call.q});
  EXPECT_EQ(got[0].sizes(), call.q.sizes());
  EXPECT_EQ(test::length_of(got[0]), 0);
}

TEST_P(CudaGradients, HaveNoGradientsThemselves) {
  const AttentionCall call = call_of(TokenLayout::extra(8));
  Own own(AttentionPlan::dense("plan"), call, call.q.scalar_type());
  const AttentionResult result = executor_->run(own.plan, own.call, nullptr);
  EXPECT_THROW(torch::autograd::grad({result.out.sum()}, {own.call.q}, {}, true, true), Error);
}

TEST(CudaGradientsReasons, AreSaidInWords) {
  const CudaExecutor executor(test::emulated_backend());
  const test::Case c{.layout = TokenLayout::sequence(9), .dtype = at::kHalf};
  const AttentionPlan plan = AttentionPlan::dense("plan");
  AttentionCall call = test::make_call(c);
  call.k = call.k.clone().requires_grad_();
  EXPECT_EQ(executor.why_not(plan, call), std::nullopt);
  call.bias = at::zeros({1, 1, 1, 9});
  EXPECT_EQ(executor.why_not(plan, call), std::nullopt);
  call.bias.requires_grad_();
  EXPECT_EQ(executor.why_not(plan, call), "gives no gradients of biases");
  {
    const c10::NoGradGuard no_gradients;
    EXPECT_EQ(executor.why_not(plan, call), std::nullopt);
  }
  call = test::make_call(c);
  AttentionPlan given = plan;
  const at::Tensor bias = at::zeros({1, 1, 9}).requires_grad_();
  std::get<SoftmaxBranch>(given.branches[0].kind).keys = GivenKeys{call.k, call.v, bias};
  EXPECT_EQ(executor.why_not(given, call), "gives no gradients of biases");
  for (at::Tensor* x : {&call.q, &call.k, &call.v}) *x = at::zeros({1, 1, 9, 136}, x->options());
  EXPECT_EQ(executor.why_not(plan, call), std::nullopt);
  call.v.requires_grad_();
  EXPECT_EQ(executor.why_not(plan, call), "gives gradients of up to 128 channels a head");
#if FOVEA_HAS_CUDA
  for (const CudaBackend* backend : {&sm90_backend(), &sm80_backend()}) {
    call.q = at::zeros({1, 1, 1, 128});
    EXPECT_EQ(backend->backward.why_not(call), std::nullopt);
    call.q = at::zeros({1, 1, 1, 96});
    EXPECT_EQ(backend->backward.why_not(call),
              "gives gradients of 64 or 128 channels a head, not of 96");
  }
#endif
}

INSTANTIATE_TEST_SUITE_P(Backends, CudaGradients, testing::ValuesIn(test::cuda_backends()),
                         [](const auto& info) { return std::string(info.param->name); });

}  // namespace
}  // namespace fovea
