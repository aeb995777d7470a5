#pragma once

#include <gtest/gtest.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "core/file.h"

namespace fovea::test {

/// A program of the tests' folder that runs beside the test; it does not outlive it.
class ChildProcess {
 public:
  /// command    name of the program, then its arguments
  /// variables  NAME=VALUE, added to the environment
  /// output     where its standard output and error go
  ChildProcess(std::vector<std::string> command, std::vector<std::string> variables,
               fs::path output)
      : output_(std::move(output)) {
    command[0] = fs::read_symlink("/proc/self/exe").parent_path() / command[0];
    std::vector<char*> argv;
    for (auto& argument : command) argv.push_back(argument.data());
    argv.push_back(nullptr);
    pid_ = ::fork();
    if (pid_ != 0) return;
    if (std::freopen(output_.c_str(), "w", stdout) == nullptr) ::_exit(120);
    ::dup2(STDOUT_FILENO, STDERR_FILENO);
    for (auto& variable : variables) ::putenv(variable.data());
    ::execv(argv[0], argv.data());
    ::_exit(121);
  }
  ~ChildProcess() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;

  void send(int signal_number) const { ::kill(pid_, signal_number); }

  std::string output() const { return fs::exists(output_) ? read_file(output_, 1 << 20) : ""; }

  /// Waits until the output has `text` `count` times. False after 30 s.
  bool wait_for(const std::string& text, int count = 1) const {
    return poll([&] {
      const std::string so_far = output();
      int found = 0;
      for (size_t at = so_far.find(text); at != std::string::npos; at = so_far.find(text, at + 1)) {
        ++found;
      }
      return found >= count;
    });
  }

  /// The exit code; 128 + signal when it was killed, -1 when it is still running after 30 s.
  int wait() {
    int status = 0;
    if (!poll([&] { return ::waitpid(pid_, &status, WNOHANG) != 0; })) return -1;
    pid_ = 0;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }

  void expect_end(int code, const std::string& text) {
    EXPECT_EQ(wait(), code) << output();
    EXPECT_NE(output().find(text), std::string::npos) << output() << "\nexpected: " << text;
  }

 private:
  // Within the time in which a group must notice that a process of it is gone.
  template <typename Done>
  static bool poll(const Done& done) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(30);
    while (!done()) {
      if (std::chrono::steady_clock::now() > deadline) return false;
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    return true;
  }

  fs::path output_;
  pid_t pid_ = 0;
};

}  // namespace fovea::test
