#include "core/parallel.h"

#include <atomic>
#include <chrono>
#include <csignal>
#include <mutex>
#include <numeric>
#include <set>
#include <thread>
#include <vector>

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <gtest/gtest.h>

#include "core/check.h"
#include "core/device.h"
#include "core/interrupt.h"
#include "tests/support/files.h"

namespace fovea {
namespace {

using test::expect_error;

class ParallelTest : public testing::Test {
 protected:
  void SetUp() override { set_num_threads(3); }
  void TearDown() override { set_num_threads(1); }
};

TEST_F(ParallelTest, CoversEveryIndexOnce) {
  for (const int64_t count : {0, 1, 2, 3, 7, 100, 12345}) {
    for (const int64_t grain : {1, 4, 1000}) {
      std::vector<std::atomic<int>> times(static_cast<size_t>(count));
      parallel_for(count, grain, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) ++times[static_cast<size_t>(i)];
      });
      for (const auto& seen : times) ASSERT_EQ(seen, 1);
    }
  }
}

// Each range waits for the others: without threads of its own this would never end.
TEST_F(ParallelTest, RangesRunAtTheSameTime) {
  for (int round = 0; round < 200; ++round) {
    std::atomic<int> arrived = 0;
    parallel_for(3, 1, [&](int64_t, int64_t) {
      ++arrived;
      while (arrived < 3) std::this_thread::yield();
    });
    ASSERT_EQ(arrived, 3);
  }
}

TEST_F(ParallelTest, ShortWorkStaysInTheCallersThread) {
  std::vector<std::thread::id> threads;
  parallel_for(100, 60, [&](int64_t, int64_t) { threads.push_back(std::this_thread::get_id()); });
  EXPECT_EQ(threads, std::vector{std::this_thread::get_id()});
}

TEST_F(ParallelTest, ThrowsWhatARangeThrows) {
  for (const int64_t bad : {0, 1, 2}) {
    expect_error(ErrorCode::bad_data, "range", [&] {
      parallel_for(3, 1, [&](int64_t begin, int64_t) {
        require(begin != bad, ErrorCode::bad_data, "test", "range ", begin);
      });
    });
  }
  std::atomic<int64_t> sum = 0;
  parallel_for(10, 1, [&](int64_t begin, int64_t end) { sum += end - begin; });
  EXPECT_EQ(sum, 10);
}

TEST_F(ParallelTest, NestedAndConcurrentCallsRunToo) {
  std::atomic<int64_t> sum = 0;
  const auto call = [&] {
    for (int i = 0; i < 50; ++i) {
      parallel_for(8, 1, [&](int64_t begin, int64_t end) {
        for (int64_t j = begin; j < end; ++j) {
          parallel_for(4, 1, [&](int64_t first, int64_t last) { sum += last - first; });
        }
      });
    }
  };
  std::thread other(call);
  call();
  other.join();
  EXPECT_EQ(sum, 2 * 50 * 8 * 4);
}

// A range is in the mode of the caller: of LibTorch, and as to interruption.
TEST_F(ParallelTest, RangesHaveTheCallersState) {
  std::atomic<int> inferring = 0;
  {
    const c10::InferenceMode inference;
    parallel_for(3, 1, [&](int64_t, int64_t) { inferring += c10::InferenceMode::is_enabled(); });
  }
  EXPECT_EQ(inferring, 3);
  parallel_for(3, 1, [&](int64_t, int64_t) { inferring += c10::InferenceMode::is_enabled(); });
  EXPECT_EQ(inferring, 3);

  request_interrupt(SIGINT);
  {
    const UninterruptedScope saving;
    parallel_for(3, 1, [](int64_t, int64_t) { throw_if_interrupted(); });
  }
  expect_error(ErrorCode::interrupted, "SIGINT",
               [] { parallel_for(3, 1, [](int64_t, int64_t) { throw_if_interrupted(); }); });
  request_interrupt(0);
}

}  // namespace
}  // namespace fovea
