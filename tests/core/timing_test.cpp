#include "core/timing.h"

#include <string>

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <gtest/gtest.h>

#include "core/attention/executors/sdpa.h"

namespace fovea {
namespace {

const c10::Device kCpu(c10::kCPU);

TEST(Timing, TakesTurnsInBothOrders) {
  std::string seen;
  const auto times =
      time_in_turns(kCpu, {[&] { seen += 'a'; }, [&] { seen += 'b'; }, [&] { seen += 'c'; }}, 3);
  EXPECT_EQ(seen, "abccbaabc");
  ASSERT_EQ(times.size(), 3u);
  for (const auto& rounds : times) {
    ASSERT_EQ(rounds.size(), 3u);
    for (const double ms : rounds) EXPECT_GE(ms, 0);
  }
}

TEST(Timing, RepeatsShortCallsAfterWarmingUp) {
  int64_t calls = 0;
  const double ms = milliseconds_of(
      kCpu, [&] { ++calls; }, 0.5);
  EXPECT_GE(calls, 4);  // starts, counts, warms up, measures
  EXPECT_GE(ms, 0);
  calls = 0;
  milliseconds_of(kCpu, [&] { ++calls; });
  EXPECT_EQ(calls, 1);
}

TEST(Timing, FindsTheMiddle) {
  EXPECT_EQ(median_of({}), 0);
  EXPECT_EQ(median_of({3}), 3);
  EXPECT_EQ(median_of({9, 1, 4}), 4);
  EXPECT_EQ(median_of({9, 1, 4, 2}), 3);
}

TEST(Timing, CountsNoBytesOfACpu) {
  bool was_called = false;
  EXPECT_EQ(peak_bytes_of(kCpu, [&] { was_called = true; }), 0);
  EXPECT_TRUE(was_called);
}

AttentionCall call_on(at::Device device, at::ScalarType dtype) {
  AttentionCall call;
  call.q_layout = call.kv_layout = TokenLayout::grid(1, 16, 20);
  for (at::Tensor* x : {&call.q, &call.k, &call.v}) {
    *x = at::randn({1, 4, 320, 64}).to(device, dtype);
  }
  return call;
}

TEST(Timing, KernelsOfLibTorchByNameRunOnGpus) {
  const AttentionPlan dense = AttentionPlan::dense("dense");
  for (const SdpaKernel kernel : {SdpaKernel::cudnn, SdpaKernel::flash}) {
    const SdpaExecutor executor(kernel);
    EXPECT_EQ(executor.why_not(dense, call_on(at::kCPU, at::kBFloat16)), "runs on NVIDIA GPUs");
    EXPECT_EQ(executor.name(), kernel == SdpaKernel::cudnn ? "sdpa_cudnn" : "sdpa_flash");
  }
}

TEST(Timing, OfAGpuGoesByItsClock) {
  if (!at::hasCUDA()) GTEST_SKIP() << "missing: a GPU";
  const c10::InferenceMode no_gradients;
  const AttentionCall call = call_on(at::kCUDA, at::kBFloat16);
  const AttentionPlan dense = AttentionPlan::dense("dense");
  const at::Tensor expected = SdpaExecutor().run(dense, call).out.to(at::kFloat);
  for (const SdpaKernel kernel : {SdpaKernel::cudnn, SdpaKernel::flash}) {
    SdpaExecutor executor(kernel);
    ASSERT_EQ(executor.why_not(dense, call), std::nullopt) << executor.name();
    EXPECT_TRUE(executor.why_not(dense, call_on(at::kCUDA, at::kFloat))) << executor.name();
    at::Tensor out;
    const int64_t bytes =
        peak_bytes_of(call.q.device(), [&] { out = executor.run(dense, call).out; });
    EXPECT_GE(bytes, out.numel() * 2);
    EXPECT_LT((out.to(at::kFloat) - expected).abs().max().item<double>(), 0.05);
    const double ms = milliseconds_of(
        call.q.device(), [&] { executor.run(dense, call); }, 1);
    EXPECT_GT(ms, 0);
  }
}

}  // namespace
}  // namespace fovea
