#include "core/parallel.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include <ATen/Parallel.h>
#include <ATen/ThreadLocalState.h>

#include "core/interrupt.h"

namespace fovea {
namespace {

thread_local bool g_in_task = false;

// What a call asks for, and how far it is.
struct Job {
  const std::function<void(int64_t)>& task;
  int64_t tasks;
  int helpers;  // of the pool's threads
  at::ThreadLocalState state{};
  bool uninterrupted = interruption_is_held();
  std::atomic<int64_t> next{0};
  int active = 0;  // helpers at work, under the pool's mutex
  std::mutex mutex;
  std::exception_ptr error;

  void work() {
    for (int64_t i = next++; i < tasks; i = next++) {
      try {
        task(i);
      } catch (...) {
        const std::lock_guard lock(mutex);
        if (!error) error = std::current_exception();
        next = tasks;
      }
    }
  }
};

// Threads that sleep until there is a job; made when first needed, and left to the process's end.
class Pool {
 public:
  static Pool& get() {
    static Pool* const pool = new Pool;
    return *pool;
  }

  // False when another thread's job is running.
  bool run(Job& job) {
    const std::unique_lock busy(busy_, std::try_to_lock);
    if (!busy) return false;
    {
      const std::lock_guard lock(mutex_);
      while (static_cast<int>(threads_.size()) < job.helpers) {
        threads_.emplace_back([this, number = static_cast<int>(threads_.size())] { serve(number); })
            .detach();
      }
      job_ = &job;
      ++generation_;
    }
    wake_.notify_all();
    g_in_task = true;
    job.work();
    g_in_task = false;
    std::unique_lock lock(mutex_);
    job_ = nullptr;
    done_.wait(lock, [&] { return job.active == 0; });
    return true;
  }

 private:
  void serve(int number) {
    g_in_task = true;
    uint64_t seen = 0;
    std::unique_lock lock(mutex_);
    for (;;) {
      wake_.wait(lock,
                 [&] { return job_ != nullptr && generation_ != seen && number < job_->helpers; });
      seen = generation_;
      Job& job = *job_;
      ++job.active;
      lock.unlock();
      {
        const at::ThreadLocalStateGuard state(job.state);
        std::optional<UninterruptedScope> held;
        if (job.uninterrupted) held.emplace();
        job.work();
      }
      lock.lock();
      if (--job.active == 0) done_.notify_all();
    }
  }

  std::mutex busy_, mutex_;
  std::condition_variable wake_, done_;
  std::vector<std::thread> threads_;
  Job* job_ = nullptr;
  uint64_t generation_ = 0;
};

}  // namespace

void parallel_for(int64_t count, int64_t grain, const std::function<void(int64_t, int64_t)>& f) {
  if (count <= 0) return;
  const int64_t most = std::max<int64_t>(1, count / std::max<int64_t>(grain, 1));
  const int64_t ranges = std::min<int64_t>(most, at::get_num_threads());
  if (ranges == 1 || g_in_task) return f(0, count);
  const std::function<void(int64_t)> task = [&](int64_t i) {
    f(count * i / ranges, count * (i + 1) / ranges);
  };
  Job job{task, ranges, static_cast<int>(ranges) - 1};
  if (!Pool::get().run(job)) return f(0, count);
  if (job.error) std::rethrow_exception(job.error);
}

}  // namespace fovea
