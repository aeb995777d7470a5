#include "apps/fovea/launch.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <optional>
#include <sstream>
#include <string_view>
#include <thread>

#include "apps/fovea/signals.h"
#include "core/check.h"
#include "core/file.h"
#include "core/interrupt.h"

namespace fovea::apps {
namespace {

using Clock = std::chrono::steady_clock;

constexpr auto kPoll = std::chrono::milliseconds(20);
constexpr std::array<std::string_view, 6> kVariables = {
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"};

// A port that nobody listens at now.
int find_free_port() {
  const int descriptor = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  auto* base = reinterpret_cast<sockaddr*>(&address);
  const bool found = descriptor >= 0 && ::bind(descriptor, base, size) == 0 &&
                     ::getsockname(descriptor, base, &size) == 0;
  const int number = errno;
  if (descriptor >= 0) ::close(descriptor);
  require(found, ErrorCode::resource, "MASTER_PORT", "no free port: ", std::strerror(number));
  return ntohs(address.sin_port);
}

// This process's environment without the variables of a place.
std::vector<std::string> other_variables() {
  std::vector<std::string> result;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string_view text = *entry;
    const auto name = text.substr(0, text.find('='));
    if (std::find(kVariables.begin(), kVariables.end(), name) == kVariables.end()) {
      result.emplace_back(text);
    }
  }
  return result;
}

std::vector<char*> pointers(const std::vector<std::string>& texts) {
  std::vector<char*> result;
  for (const auto& text : texts) result.push_back(const_cast<char*>(text.c_str()));
  result.push_back(nullptr);
  return result;
}

// What runs between fork and exec: system calls only, since other threads may hold any lock.
[[noreturn]] void become(const char* program, char* const* argv, char* const* envp, pid_t parent) {
  ::setpgid(0, 0);
  ::prctl(PR_SET_PDEATHSIG, SIGTERM);
  if (::getppid() != parent) ::_exit(128 + SIGTERM);  // it has died already
  for (const int number : {SIGPIPE, SIGXFSZ}) ::signal(number, SIG_DFL);
  sigset_t none;
  sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  const int null = ::open("/dev/null", O_RDONLY);
  if (null >= 0) ::dup2(null, STDIN_FILENO);
  ::execve(program, argv, envp);
  ::_exit(127);
}

class Launch {
 public:
  Launch(int count, const std::vector<std::string>& command, const LaunchOptions& options);
  ~Launch();
  Launch(const Launch&) = delete;
  Launch& operator=(const Launch&) = delete;

  int wait();

 private:
  struct Child {
    int rank;
    pid_t pid;
  };

  void start(int rank, std::vector<std::string> variables);
  void reap();
  void note_end(int rank, int status);
  void stop(int signal_number);
  void send(int signal_number) const;

  const std::vector<std::string>& command_;
  Clock::duration grace_;
  std::vector<Child> running_;
  std::optional<Clock::time_point> deadline_;  // set once the processes were asked to stop
  bool killed_ = false;                        // they were sent SIGKILL
  int code_ = 0;
  std::optional<Error> error_;
};

Launch::Launch(int count, const std::vector<std::string>& command, const LaunchOptions& options)
    : command_(command),
      grace_(std::chrono::duration_cast<Clock::duration>(
          std::chrono::duration<double>(options.grace_seconds))) {
  std::vector<std::string> variables = other_variables();
  variables.push_back(str("WORLD_SIZE=", count));
  variables.push_back(str("LOCAL_WORLD_SIZE=", count));
  variables.push_back("MASTER_ADDR=127.0.0.1");
  variables.push_back(str("MASTER_PORT=", find_free_port()));
  try {
    for (int rank = 0; rank < count; ++rank) start(rank, variables);
  } catch (...) {
    send(SIGKILL);
    throw;
  }
}

// Processes are left only after an error, or when even SIGKILL does not end them.
Launch::~Launch() { send(SIGKILL); }

void Launch::start(int rank, std::vector<std::string> variables) {
  variables.push_back(str("RANK=", rank));
  variables.push_back(str("LOCAL_RANK=", rank));
  const auto argv = pointers(command_);
  const auto envp = pointers(variables);
  const pid_t parent = ::getpid();
  const pid_t pid = ::fork();
  if (pid == 0) become(command_[0].c_str(), argv.data(), envp.data(), parent);
  require(pid > 0, ErrorCode::resource, str("process ", rank),
          "cannot be started: ", std::strerror(errno));
  running_.push_back({rank, pid});
}

void Launch::send(int signal_number) const {
  for (const Child& child : running_) ::kill(child.pid, signal_number);
}

void Launch::stop(int signal_number) {
  send(signal_number);
  deadline_ = Clock::now() + grace_;
}

void Launch::note_end(int rank, int status) {
  if (code_ != 0 || status == 0) return;
  if (WIFEXITED(status)) {
    code_ = WEXITSTATUS(status);
    return;
  }
  const int signal_number = WTERMSIG(status);
  code_ = 128 + signal_number;
  if (deadline_) return;  // we asked for it
  error_.emplace(ErrorCode::device, str("process ", rank),
                 str("killed by signal ", signal_number, " (", ::strsignal(signal_number), ")"));
}

void Launch::reap() {
  const auto ended = [this](const Child& child) {
    int status = 0;
    if (::waitpid(child.pid, &status, WNOHANG) == 0) return false;
    note_end(child.rank, status);
    return true;
  };
  running_.erase(std::remove_if(running_.begin(), running_.end(), ended), running_.end());
}

int Launch::wait() {
  for (reap(); !running_.empty(); reap()) {
    if (!deadline_ && code_ != 0) stop(SIGTERM);
    if (!deadline_ && interrupt_requested() != 0) stop(interrupt_requested());
    if (deadline_ && Clock::now() > *deadline_) {
      if (killed_) break;  // stuck in a driver
      stop(SIGKILL);
      killed_ = true;
    }
    std::this_thread::sleep_for(kPoll);
  }
  if (error_) throw Error(*error_);
  return code_;
}

}  // namespace

bool is_launched() { return std::getenv("RANK") != nullptr; }

std::vector<std::string> own_command() {
  std::ifstream file("/proc/self/cmdline", std::ios::binary);
  std::vector<std::string> command;
  for (std::string argument; std::getline(file, argument, '\0');) command.push_back(argument);
  std::error_code error;
  const fs::path program = fs::read_symlink("/proc/self/exe", error);
  require(!error && !command.empty(), ErrorCode::resource, "/proc/self",
          "cannot be read, so that no further process of this program can be started");
  command[0] = program;
  return command;
}

int launch_processes(int count, const std::vector<std::string>& command,
                     const LaunchOptions& options) {
  require(count >= 1 && !command.empty(), ErrorCode::usage, "processes",
          "expected a number from 1, got ", count);
  require(::access(command[0].c_str(), X_OK) == 0, ErrorCode::usage, command[0],
          "cannot be run: ", std::strerror(errno));
  ::signal(SIGCHLD, SIG_DFL);  // ignored, it would take their exit codes away
  // Ours must outlive those of the processes, which have a grace of their own.
  set_stop_grace(2 * options.grace_seconds + 2);
  return Launch(count, command, options).wait();
}

}  // namespace fovea::apps
