#pragma once

#include "core/check.h"

namespace fovea {

/// Asks running work to stop at its next check point; `signal_number` is SIGINT, SIGTERM or SIGHUP.
/// Safe to call from any thread and from a signal handler.
void request_interrupt(int signal_number) noexcept;

/// The signal that asked for a stop, or 0.
int interrupt_requested() noexcept;

/// Throws Error interrupted / terminated / hangup once a stop was asked for. Long loops (steps,
/// layers, frames, tensors loaded) call it once an iteration.
void throw_if_interrupted();

/// Whether an error says that a run was asked to stop.
bool is_interruption(ErrorCode code) noexcept;

/// Whether an UninterruptedScope lives in this thread.
bool interruption_is_held() noexcept;

/// While one lives, `throw_if_interrupted` does nothing in its thread: for the short clean-up that
/// an interrupted run still has to do, such as saving where it stopped.
class UninterruptedScope {
 public:
  UninterruptedScope() noexcept;
  ~UninterruptedScope();
  UninterruptedScope(const UninterruptedScope&) = delete;
  UninterruptedScope& operator=(const UninterruptedScope&) = delete;
};

}  // namespace fovea
