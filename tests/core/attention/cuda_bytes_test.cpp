// Executors of GPUs in 8-bit numbers: with the kernel emulated on the CPU, and on a GPU where there
// is one.

#include "core/attention/executors/cuda_bytes.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "tests/core/attention/cuda_case.h"
#include "tests/core/attention/plan_cases.h"

namespace fovea {
namespace {

using test::selection_of;

constexpr Quantized kE4m3OfChannels = {NumberFormat::e4m3, ScaleUnit::channel};
constexpr Quantized kWeights = {NumberFormat::e4m3, ScaleUnit::head};

Precision precision_of(NumberFormat format, ScaleUnit unit, int64_t group = 0) {
  Precision out;
  out.q = out.k = {format, unit, group};
  out.v = kE4m3OfChannels, out.p = kWeights;
  return out;
}

std::vector<const CudaBackend*> backends() {
#if FOVEA_HAS_CUDA
  return {&test::emulated_backend(), &sm90_backend()};
#else
  return {&test::emulated_backend()};
#endif
}

class CudaBytesTest : public test::CudaBackendTest {
 protected:
  AttentionCall call_of(const TokenLayout& layout, at::ScalarType dtype = at::kBFloat16) const {
    return test::CudaBackendTest::call_of(layout, {.layout = {}, .dim = 128, .dtype = dtype});
  }
  AttentionPlan plan_of(const Precision& precision) const {
    AttentionPlan plan = AttentionPlan::dense("bytes");
    std::get<SoftmaxBranch>(plan.branches[0].kind).precision = precision;
    return plan;
  }
  void set_blocks(AttentionPlan& plan, const AttentionCall& call, int64_t size) const {
    Selection& selection = selection_of(plan);
    selection.q_blocks = BlockAxis::uniform(call.q_layout, size);
    selection.kv_blocks = BlockAxis::uniform(call.kv_layout, size);
    selection.classes = on(test::random_classes(selection, 2, 4, 2));
  }
};

TEST_P(CudaBytesTest, RunsDensePlans) {
  const AttentionCall call = call_of(TokenLayout::grid(2, 9, 11));
  for (const NumberFormat format : {NumberFormat::e4m3, NumberFormat::int8}) {
    for (const ScaleUnit unit : {ScaleUnit::head, ScaleUnit::token}) {
      Precision precision = precision_of(format, unit);
      expect_rules(plan_of(precision), call);
      precision.smooth_k = true;
      expect_rules(plan_of(precision), call);
      precision.v.unit = ScaleUnit::head;
      expect_rules(plan_of(precision), call_of(call.q_layout, at::kHalf));
    }
  }
}

TEST_P(CudaBytesTest, RunsDensePlansWithPaddingAndBiases) {
  TokenLayout joint = TokenLayout::grid(2, 5, 11);
  joint.append(TokenLayout::text(40, at::tensor({31, 0}, at::kLong)));
  for (const TokenLayout& layout :
       {joint, TokenLayout::text(131, at::tensor({7, 131}, at::kLong))}) {
    for (const bool smooth_k : {false, true}) {
      AttentionCall call = call_of(layout);
      Precision precision = precision_of(NumberFormat::int8, ScaleUnit::token);
      precision.smooth_k = smooth_k;
      expect_rules(plan_of(precision), call);
      call.bias = on(at::randn({1, 4, 1, layout.seq_len()}));
      expect_rules(plan_of(precision), call);
    }
  }
}

TEST_P(CudaBytesTest, RunsBlocksOfAnySize) {
  TokenLayout joint = TokenLayout::grid(3, 7, 11);
  joint.append(TokenLayout::text(50, at::tensor({31, 2}, at::kLong)));
  for (const TokenLayout& layout : {TokenLayout::grid(3, 7, 13), joint}) {
    const AttentionCall call = call_of(layout);
    for (const NumberFormat format : {NumberFormat::e4m3, NumberFormat::int8}) {
      for (const int64_t size : {17, 64, 150}) {
        for (const int64_t group : {0, 24, 128}) {
          if (group > size) continue;
          Precision precision = precision_of(format, ScaleUnit::block, group);
          precision.smooth_k = size == 64;
          AttentionPlan plan = plan_of(precision);
          set_blocks(plan, call, size);
          expect_rules(plan, call);
          if (group != 0 || format == NumberFormat::e4m3) continue;
          plan.q_order = on(test::random_order(2, 4, layout.seq_len()));
          plan.kv_order = on(test::random_order(1, 2, layout.seq_len()));
          expect_rules(plan, call);
        }
      }
    }
  }
}

TEST_P(CudaBytesTest, RunsBlocksThatTheDeviceKnows) {
  const AttentionCall call = call_of(TokenLayout::grid(3, 7, 13));
  for (const ScaleUnit unit : {ScaleUnit::head, ScaleUnit::block, ScaleUnit::token}) {
    for (const int64_t heads : {1, 2, 4}) {
      AttentionPlan plan = plan_of(precision_of(NumberFormat::int8, unit));
      Selection& selection = selection_of(plan);
      selection.q_blocks = on(test::random_blocks(2, 4, 5, 273));
      selection.kv_blocks = on(test::random_blocks(1, heads, 6, 273));
      selection.classes = on(test::random_classes(selection, 2, 4, 2));
      expect_rules(plan, call);
    }
  }
}

TEST_P(CudaBytesTest, RunsPredicates) {
  TokenLayout joint = TokenLayout::grid(2, 6, 11);
  joint.append(TokenLayout::text(21));
  const AttentionCall call = call_of(joint);
  AttentionPlan plan = plan_of(precision_of(NumberFormat::e4m3, ScaleUnit::block));
  set_blocks(plan, call, 40);
  WindowPredicate window;
  window.axes[2] = {.size = 5};
  selection_of(plan).predicates = {window};
  expect_rules(plan, call);
}

TEST_P(CudaBytesTest, RunsFps) {
  const AttentionCall call = call_of(test::video_and_text());
  int count = 0;
  for (const AttentionPlan& plan : test::plans_of_all_planners(call)) {
    if (plan.planner != "fps") continue;
    ++count;
    expect_rules(plan, call);
  }
  EXPECT_GT(count, 0);
}

TEST_P(CudaBytesTest, SaysWhatItDoesNotTake) {
  const AttentionCall call = call_of(TokenLayout::grid(1, 4, 8));
  const auto reason = [&](auto change) {
    Precision precision = precision_of(NumberFormat::int8, ScaleUnit::head);
    change(precision);
    const auto why = executor_->why_not(plan_of(precision), call);
    return why ? *why : "";
  };
  EXPECT_EQ(reason([](Precision&) {}), "");
  const std::string known =
      "takes q and k both in int8 or e4m3, v in e4m3 per head or channel and p in e4m3 with one "
      "scale, the plan asks for ";
  EXPECT_EQ(reason([](Precision& x) { x.p = {}; }),
            known + "q int8 per head, k int8 per head, v e4m3 per channel");
  EXPECT_EQ(reason([](Precision& x) { x.q.format = NumberFormat::e4m3; }),
            known + "q e4m3 per head, k int8 per head, v e4m3 per channel, p e4m3 per head");
  EXPECT_NE(reason([](Precision& x) { x.v.format = NumberFormat::int8; }), "");
  EXPECT_NE(reason([](Precision& x) { x.v.unit = ScaleUnit::block; }), "");
  EXPECT_NE(reason([](Precision& x) { x.p.unit = ScaleUnit::block; }), "");
  AttentionCall narrow = call;
  for (at::Tensor* x : {&narrow.q, &narrow.k, &narrow.v}) *x = x->slice(3, 0, 64);
  EXPECT_EQ(executor_->why_not(plan_of(precision_of(NumberFormat::int8, ScaleUnit::head)), narrow),
            "takes 128 channels a head in 8-bit numbers, not 64");
}

INSTANTIATE_TEST_SUITE_P(Backends, CudaBytesTest, testing::ValuesIn(backends()),
                         [](const auto& info) { return std::string(info.param->name); });

TEST(PadBlocks, BeginsAtSixteens) {
  AttentionCall call;
  call.k = at::zeros({1, 1, 50, 8});
  call.q = call.k;
  const BlockAxis host = BlockAxis::from_host({0, 5, 5, 37, 50});
  const BlockAxis device =
      BlockAxis::from_offsets(at::tensor({0, 5, 5, 37, 50}, at::kInt).view({1, 1, 5}), 32);
  const at::Tensor rows = at::arange(49, -1, -1, at::kInt).view({1, 1, 50});
  for (const BlockAxis& blocks : {host, device}) {
    for (const at::Tensor& order : {at::Tensor(), rows}) {
      const auto padded = pad_blocks(blocks, order, call);
      ASSERT_TRUE(padded);
      const at::Tensor begins = padded->blocks.offsets(at::kCPU).flatten();
      EXPECT_TRUE(begins.equal(at::tensor({0, 16, 16, 48, 64}, at::kLong)));
      EXPECT_TRUE(padded->valid.flatten().equal(at::tensor({5, 0, 32, 13}, at::kInt)));
      ASSERT_GE(padded->len, 64);
      EXPECT_EQ(padded->len % 16, 0);
      const at::Tensor got = padded->rows.flatten();
      for (int64_t place = 0; place < padded->len; ++place) {
        int64_t position = -1;
        if (place < 5) position = place;
        if (place >= 16 && place < 48) position = place - 16 + 5;
        if (place >= 48 && place < 61) position = place - 48 + 37;
        const int64_t want = position < 0 || !order.defined() ? position : 49 - position;
        EXPECT_EQ(got[place].item<int64_t>(), want) << place;
      }
    }
  }
  EXPECT_FALSE(pad_blocks(BlockAxis::from_host({0, 16, 48, 50}), {}, call));
}

TEST(ScalesByKey, WhereSpansHaveSeveral) {
  const auto of = [](ScaleUnit unit, int64_t group, bool is_listed) {
    return scales_by_key({NumberFormat::int8, unit, group}, is_listed);
  };
  EXPECT_FALSE(of(ScaleUnit::head, 0, false));
  EXPECT_TRUE(of(ScaleUnit::token, 0, true));
  EXPECT_FALSE(of(ScaleUnit::block, 0, true));
  EXPECT_TRUE(of(ScaleUnit::block, 0, false));
  EXPECT_FALSE(of(ScaleUnit::block, 256, true));
  EXPECT_TRUE(of(ScaleUnit::block, 64, true));
}

}  // namespace
}  // namespace fovea
