#include "core/process_liveness.h"

#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include <torch/csrc/distributed/c10d/Store.hpp>

namespace fovea {
namespace {

constexpr auto kBeat = std::chrono::milliseconds(250);

std::string key_of(int rank) { return "alive/" + std::to_string(rank); }

}  // namespace

struct ProcessLiveness::State {
  State(c10::intrusive_ptr<c10d::Store> its_store, int its_rank, int world_size)
      : store(std::move(its_store)), rank(its_rank), last_seen(static_cast<size_t>(world_size)) {
    for (auto& time : last_seen) time = Clock::now();
  }

  c10::intrusive_ptr<c10d::Store> store;
  const int rank;
  std::vector<std::atomic<Clock::time_point>> last_seen;  // by rank
  std::mutex mutex;
  std::condition_variable changed;
  bool stop = false;
  bool ended = false;
};

ProcessLiveness::ProcessLiveness(c10::intrusive_ptr<c10d::Store> store, int rank, int world_size)
    : state_(std::make_shared<State>(std::move(store), rank, world_size)),
      thread_([state = state_] { exchange(state); }) {}

ProcessLiveness::~ProcessLiveness() {
  std::unique_lock lock(state_->mutex);
  state_->stop = true;
  state_->changed.notify_all();
  const bool ended =
      state_->changed.wait_for(lock, std::chrono::seconds(2), [this] { return state_->ended; });
  lock.unlock();
  ended ? thread_.join() : thread_.detach();
}

void ProcessLiveness::exchange(const std::shared_ptr<State>& state) {
  std::vector<int64_t> beats(state->last_seen.size(), 0);
  std::unique_lock lock(state->mutex);
  while (!state->stop) {
    lock.unlock();
    try {
      state->store->add(key_of(state->rank), 1);
      for (size_t r = 0; r < beats.size(); ++r) {
        const int64_t now = state->store->add(key_of(static_cast<int>(r)), 0);
        if (now != beats[r]) state->last_seen[r] = Clock::now();
        beats[r] = now;
      }
    } catch (const std::exception&) {
      // Rank 0 and its store are gone.
      state->last_seen[0] = Clock::time_point::min();
      lock.lock();
      break;
    }
    lock.lock();
    state->changed.wait_for(lock, kBeat, [&state] { return state->stop; });
  }
  state->store.reset();
  state->ended = true;
  state->changed.notify_all();
}

std::optional<int> ProcessLiveness::silent_rank(Clock::duration limit) const {
  const auto now = Clock::now();
  std::optional<int> silent;
  auto earliest = now - limit;
  for (size_t r = 0; r < state_->last_seen.size(); ++r) {
    const auto seen = state_->last_seen[r].load();
    if (static_cast<int>(r) == state_->rank || seen >= earliest) continue;
    earliest = seen;
    silent = static_cast<int>(r);
  }
  return silent;
}

}  // namespace fovea
