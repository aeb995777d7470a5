#include "core/interrupt.h"

#include <atomic>
#include <csignal>

namespace fovea {
namespace {
std::atomic<int> g_signal{0};
thread_local int t_uninterrupted = 0;  // living UninterruptedScopes
}  // namespace

void request_interrupt(int signal_number) noexcept { g_signal.store(signal_number); }

int interrupt_requested() noexcept { return g_signal.load(std::memory_order_relaxed); }

void throw_if_interrupted() {
  const int signal_number = interrupt_requested();
  if (signal_number == 0 || t_uninterrupted > 0) return;
  const auto code = static_cast<ErrorCode>(128 + signal_number);
  const char* name = signal_number == SIGINT    ? "SIGINT"
                     : signal_number == SIGTERM ? "SIGTERM"
                                                : "SIGHUP";
  throw Error(code, "run", str("interrupted by ", name));
}

bool is_interruption(ErrorCode code) noexcept {
  return code == ErrorCode::interrupted || code == ErrorCode::terminated ||
         code == ErrorCode::hangup;
}

bool interruption_is_held() noexcept { return t_uninterrupted > 0; }

UninterruptedScope::UninterruptedScope() noexcept { ++t_uninterrupted; }
UninterruptedScope::~UninterruptedScope() { --t_uninterrupted; }

}  // namespace fovea
