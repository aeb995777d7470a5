#include "apps/fovea/signals.h"

#include <pthread.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstdio>
#include <ctime>
#include <thread>

#include "core/file.h"
#include "core/interrupt.h"

namespace fovea::apps {
namespace {

std::atomic<double> g_grace_seconds = 1.5;

// Who decides how the process ends, and so prints the one error line: the run or the watch.
constexpr int kOpen = -1, kInterrupted = -2;
std::atomic<int> g_exit_code = kOpen;

sigset_t watched_signals() {
  sigset_t set;
  sigemptyset(&set);
  for (const int number : {SIGINT, SIGTERM, SIGHUP}) sigaddset(&set, number);
  return set;
}

// Until a signal comes, or the grace is over.
void wait_for(const sigset_t& set) {
  const double seconds = g_grace_seconds;
  const auto whole = static_cast<time_t>(seconds);
  const timespec grace = {whole, static_cast<long>((seconds - static_cast<double>(whole)) * 1e9)};
  sigtimedwait(&set, nullptr, &grace);
}

[[noreturn]] void watch() {
  const sigset_t set = watched_signals();
  int number = 0;
  while (sigwait(&set, &number) != 0) {
  }
  request_interrupt(number);
  wait_for(set);
  int code = kOpen;
  if (!g_exit_code.compare_exchange_strong(code, kInterrupted)) {
    // The run is over, and only the process still ends, as slowly as a busy machine lets it.
    wait_for(set);
    ::_exit(code);
  }
  // Still here: the run is inside one long operation, or the user is impatient.
  std::fprintf(stderr, "error: %d: run: interrupted\n", 128 + number);
  remove_temporary_files();
  ::_exit(128 + number);
}

}  // namespace

SignalWatch::SignalWatch() {
  std::signal(SIGPIPE, SIG_IGN);
  std::signal(SIGXFSZ, SIG_IGN);  // a file size limit shows up as a failed write, too
  const sigset_t set = watched_signals();
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  std::thread(watch).detach();
}

void settle_exit_code(int code) noexcept {
  int now = kOpen;
  if (g_exit_code.compare_exchange_strong(now, code) || now != kInterrupted) return;
  for (;;) ::pause();  // until the watch has ended the process
}

void set_stop_grace(double seconds) noexcept { g_grace_seconds = seconds; }

}  // namespace fovea::apps
