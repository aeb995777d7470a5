// Checks core/process_group on real GPUs: process_group_check [PROCESSES = 2] [cpu]
//
// Starts the processes itself, rank R on GPU R, several times: once to compare and time the
// collectives, and then with one process that ends in the middle. Prints one line a scenario:
// how each rank ended, after how many seconds all had, and whether that is as it must be. Ends with
// 0 when everything is. With `cpu` it runs without GPUs.

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include <ATen/ATen.h>

#include "apps/fovea/launch.h"
#include "core/check.h"
#include "core/device.h"
#include "core/guard.h"
#include "core/process_group.h"

namespace {

using Clock = std::chrono::steady_clock;
using fovea::ErrorCode;
using fovea::ProcessGroup;

constexpr double kLimitSeconds = 30;  // a group must notice a lost process within

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

void expect(bool condition, const char* what) {
  fovea::require(condition, ErrorCode::bad_data, what, "is not as expected");
}

at::TensorOptions options_of(const ProcessGroup& group) {
  return at::TensorOptions().device(group.device());
}

void check_values(ProcessGroup& group) {
  const int ranks = group.world_size();
  const double mean = (ranks - 1) / 2.0;  // of the ranks
  at::Tensor tensor = at::full({1 << 22}, group.rank(), options_of(group).dtype(at::kFloat));
  // Work in front of the reduction on the same stream: it must see the result.
  const at::Tensor square = at::full({2048, 2048}, 1.0 / 2048, options_of(group));
  at::Tensor product = square;
  for (int i = 0; i < 20; ++i) product = at::mm(product, square);
  tensor.add_(product.sum().div(2048));  // + 1
  group.all_reduce_mean(tensor);
  tensor.mul_(2);
  group.wait_device();
  expect(tensor.sub(2 * (mean + 1)).abs().max().item<double>() < 1e-3, "all_reduce_mean, fp32");

  at::Tensor precise = at::full({3, 5}, group.rank() + 1e-12, options_of(group).dtype(at::kDouble));
  group.all_reduce_mean(precise);
  group.wait_device();
  expect(precise.sub(mean + 1e-12).abs().max().item<double>() < 1e-14, "all_reduce_mean, fp64");

  at::Tensor whole = at::arange(7, options_of(group).dtype(at::kLong)) + 100 * group.rank();
  group.broadcast(whole, ranks - 1);
  group.wait_device();
  expect(whole.cpu().equal(at::arange(7, at::kLong) + 100 * (ranks - 1)), "broadcast");

  double value = group.rank();
  group.agree_max({&value, 1});
  expect(value == ranks - 1, "agree_max");
  group.require_equal("the command", "the same");
}

void time_reduction(ProcessGroup& group) {
  constexpr int kRounds = 20;
  at::Tensor tensor = at::ones({25 << 20}, options_of(group));
  for (int i = 0; i < 3; ++i) group.all_reduce_mean(tensor);
  group.wait_device();
  group.barrier();
  auto start = Clock::now();
  for (int i = 0; i < kRounds; ++i) group.all_reduce_mean(tensor);
  group.wait_device();
  const double reduce = seconds_since(start) / kRounds;
  start = Clock::now();
  for (int i = 0; i < 10 * kRounds; ++i) group.barrier();
  const double agree = seconds_since(start) / (10 * kRounds);
  if (group.rank() != 0) return;
  const int ranks = group.world_size();
  const double bytes = 2.0 * (ranks - 1) / ranks * static_cast<double>(tensor.nbytes());
  std::printf("all_reduce_mean of 100 MiB: %.2f ms, bus %.1f GB/s; agreement of hosts: %.2f ms\n",
              reduce * 1e3, bytes / reduce * 1e-9, agree * 1e3);
}

// Steps as training has them, without end; `leave` happens to one rank in the middle.
void run_steps(ProcessGroup& group, int leaving_rank, const std::function<void()>& leave) {
  at::Tensor gradient = at::ones({1 << 20}, options_of(group));
  for (int step = 0;; ++step) {
    if (step == 50 && group.rank() == leaving_rank) leave();
    group.all_reduce_mean(gradient);
    group.wait_device();
    double loss = gradient[0].item<double>();
    group.agree_max({&loss, 1});
  }
}

void run_child(const std::string& scenario, bool on_cpu) {
  const auto place = fovea::read_process_place();
  const auto device =
      on_cpu ? at::Device(at::kCPU) : fovea::parse_device(fovea::str("cuda:", place.local_rank));
  const auto group = ProcessGroup::make(place, device);
  const auto die = [] { ::raise(SIGKILL); };
  if (scenario == "values") {
    check_values(*group);
    time_reduction(*group);
  } else if (scenario == "killed" || scenario == "launched") {
    run_steps(*group, 1, die);
  } else if (scenario == "first killed") {
    run_steps(*group, 0, die);
  } else if (scenario == "stopped") {
    run_steps(*group, 1, [] { ::raise(SIGSTOP); });
  } else {
    run_steps(*group, 1, [] { throw fovea::Error(ErrorCode::non_finite, "loss", "of rank 1"); });
  }
  group->barrier();
}

// As the program ends.
[[noreturn]] void end_as_program(const std::function<int()>& run) {
  int code = 0;
  try {
    try {
      code = run();
    } catch (...) {
      fovea::rethrow_as_error("check");
    }
  } catch (const fovea::Error& error) {
    std::fprintf(stderr, "  error: %s\n", error.what());
    code = error.exit_code();
  }
  if (!fovea::process_group_abandoned()) std::exit(code);
  std::fflush(nullptr);
  std::_Exit(code);
}

struct Scenario {
  std::string name;
  std::vector<int> codes;  // expected, by rank; -1: still there, any rank after the last: as it
};

// Starts all ranks without the launcher, which would stop the others itself.
std::vector<int> run_ranks(int count, const Scenario& scenario, int port) {
  std::map<pid_t, int> running;
  std::vector<std::string> command = fovea::apps::own_command();
  command.push_back(scenario.name);
  std::vector<char*> argv;
  for (auto& argument : command) argv.push_back(argument.data());
  argv.push_back(nullptr);
  for (int rank = 0; rank < count; ++rank) {
    const pid_t pid = ::fork();
    if (pid == 0) {
      ::setenv("RANK", std::to_string(rank).c_str(), 1);
      ::setenv("LOCAL_RANK", std::to_string(rank).c_str(), 1);
      ::setenv("WORLD_SIZE", std::to_string(count).c_str(), 1);
      ::setenv("MASTER_ADDR", "127.0.0.1", 1);
      ::setenv("MASTER_PORT", std::to_string(port).c_str(), 1);
      ::execv(argv[0], argv.data());
      ::_exit(127);
    }
    running[pid] = rank;
  }
  std::vector<int> codes(static_cast<size_t>(count), -1);
  const auto start = Clock::now();
  const auto expects_survivor = [&](int rank) {
    return static_cast<size_t>(rank) < scenario.codes.size() &&
           scenario.codes[static_cast<size_t>(rank)] == -1;
  };
  // Time to start, and a little more than the limit.
  while (!running.empty() && seconds_since(start) < kLimitSeconds + 30) {
    int status = 0;
    const pid_t pid = ::waitpid(-1, &status, WNOHANG);
    if (pid > 0) {
      const int code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
      codes[static_cast<size_t>(running.at(pid))] = code;
      running.erase(pid);
    }
    if (running.size() == 1 && expects_survivor(running.begin()->second)) break;
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  for (const auto& [pid, rank] : running) ::kill(pid, SIGKILL);
  for (const auto& [pid, rank] : running) ::waitpid(pid, nullptr, 0);
  return codes;
}

bool check_scenario(int count, const Scenario& scenario, int port) {
  const auto start = Clock::now();
  const std::vector<int> codes = run_ranks(count, scenario, port);
  const double seconds = seconds_since(start);
  bool fine = scenario.name == "values" || seconds < kLimitSeconds + 10;  // 10 s to start
  std::string text;
  for (size_t rank = 0; rank < codes.size(); ++rank) {
    const int expected = scenario.codes[std::min(rank, scenario.codes.size() - 1)];
    fine = fine && codes[rank] == expected;
    text += fovea::str(" ", codes[rank]);
  }
  std::printf("%-14s codes%s, %.1f s: %s\n", scenario.name.c_str(), text.c_str(), seconds,
              fine ? "ok" : "WRONG");
  std::fflush(stdout);
  return fine;
}

bool check_launcher(int count) {
  const auto start = Clock::now();
  auto command = fovea::apps::own_command();
  command.push_back("launched");
  int code = 0;
  try {
    code = fovea::apps::launch_processes(count, command);
  } catch (const fovea::Error& error) {
    std::fprintf(stderr, "  error: %s\n", error.what());
    code = error.exit_code();
  }
  const double seconds = seconds_since(start);
  const bool fine = code == 6 && seconds < kLimitSeconds + 10;
  std::printf("%-14s code %d, %.1f s: %s\n", "launched", code, seconds, fine ? "ok" : "WRONG");
  return fine;
}

int check_all(int count) {
  const std::vector<Scenario> scenarios = {{"values", {0}},
                                           {"killed", {6, 137, 6}},
                                           {"first killed", {137, 6, 6}},
                                           {"failed", {6, 5, 6}},
                                           {"stopped", {6, -1, 6}}};
  bool fine = true;
  int port = 20000 + ::getpid() % 20000;
  for (const Scenario& scenario : scenarios) {
    fine = check_scenario(count, scenario, port++) && fine;
  }
  fine = check_launcher(count) && fine;
  return fine ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  end_as_program([&] {
    const int count = argc > 1 ? std::atoi(argv[1]) : 2;
    const bool on_cpu = argc > 2 && std::string(argv[2]) == "cpu";
    if (!fovea::apps::is_launched()) return check_all(count);
    run_child(argv[argc - 1], on_cpu);
    return 0;
  });
}
