#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <thread>

#include <c10/util/intrusive_ptr.h>

namespace c10d {
class Store;
}

namespace fovea {

/// Signs of life that the processes of a group give each other through its store, from a thread.
///
/// They tell a process that is gone from one that is busy: collectives alone cannot, and an NCCL
/// kernel whose peer is gone runs for ever. Not part of the interface of core.
class ProcessLiveness {
 public:
  using Clock = std::chrono::steady_clock;

  /// store  a connection of its own: its calls block
  ProcessLiveness(c10::intrusive_ptr<c10d::Store> store, int rank, int world_size);
  /// Waits for the thread for two seconds at most: a store that does not answer blocks it.
  ~ProcessLiveness();
  ProcessLiveness(const ProcessLiveness&) = delete;
  ProcessLiveness& operator=(const ProcessLiveness&) = delete;

  /// The process that has been silent longest, if for more than `limit`. When the store itself is
  /// silent that is rank 0, which holds it.
  std::optional<int> silent_rank(Clock::duration limit) const;

 private:
  struct State;
  static void exchange(const std::shared_ptr<State>& state);

  std::shared_ptr<State> state_;
  std::thread thread_;
};

}  // namespace fovea
