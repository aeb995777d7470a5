#include "apps/fovea/launch.h"

#include <gtest/gtest.h>
#include <signal.h>

#include <chrono>
#include <fstream>
#include <set>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "tests/support/child_process.h"
#include "tests/support/files.h"

namespace fovea::apps {
namespace {

using test::ChildProcess;
using test::expect_error;

// `launch_child launch ARGUMENTS`, in an environment that has one of the variables already.
struct Launcher {
  explicit Launcher(std::vector<std::string> arguments)
      : process(complete(std::move(arguments)), {"KEPT=yes", "LOCAL_RANK=9"},
                folder.path / "output") {}

  static std::vector<std::string> complete(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), {"launch_child", "launch"});
    return arguments;
  }

  // The numbers behind `word` in the lines "started RANK pid N group N."
  std::vector<pid_t> numbers(const std::string& word) const {
    std::vector<pid_t> result;
    std::istringstream text(process.output());
    for (std::string part; text >> part;) {
      if (part == word && text >> part) result.push_back(std::stoi(part));
    }
    return result;
  }

  test::TemporaryFolder folder;
  ChildProcess process;
};

// Nothing is left, or a zombie that nobody has asked about yet.
bool is_gone(pid_t pid) {
  for (int i = 0; i < 1500; ++i) {
    std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
    std::string text;
    if (!std::getline(file, text)) return true;
    if (text.substr(text.rfind(')')).rfind(") Z", 0) == 0) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  return false;
}

TEST(Launch, EveryProcessKnowsItsPlace) {
  Launcher launcher({"3", "10", "place"});
  EXPECT_EQ(launcher.process.wait(), 0);
  std::set<std::string> lines;
  std::istringstream text(launcher.process.output());
  for (std::string line; std::getline(text, line);) lines.insert(line);
  const std::set<std::string> expected = {
      "rank 0 of 3 local 0 of 3 at 127.0.0.1 kept yes input -1",
      "rank 1 of 3 local 1 of 3 at 127.0.0.1 kept yes input -1",
      "rank 2 of 3 local 2 of 3 at 127.0.0.1 kept yes input -1"};
  EXPECT_EQ(lines, expected);
}

TEST(Launch, AFailureStopsTheOthersAndGivesTheCode) {
  Launcher launcher({"3", "10", "end", "wait", "5", "wait"});
  launcher.process.expect_end(5, "");
  for (const pid_t pid : launcher.numbers("pid")) EXPECT_TRUE(is_gone(pid));
}

TEST(Launch, ProcessesThatEndWellAreNoReasonToStop) {
  Launcher launcher({"2", "10", "end", "0", "wait"});
  ASSERT_TRUE(launcher.process.wait_for("started", 2)) << launcher.process.output();
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  launcher.process.send(SIGTERM);
  launcher.process.expect_end(143, "error: 143: run: interrupted by SIGTERM");
}

TEST(Launch, AKilledProcessIsADeviceError) {
  Launcher launcher({"2", "10", "end", "wait", "die"});
  launcher.process.expect_end(6, "error: 6: process 1: killed by signal 9");
}

TEST(Launch, SignalsGoToTheProcessesOnce) {
  for (const int number : {SIGINT, SIGTERM, SIGHUP}) {
    Launcher launcher({"2", "10", "end", "wait", "wait"});
    ASSERT_TRUE(launcher.process.wait_for(".\n", 2)) << launcher.process.output();
    // A process group of its own: a terminal's Ctrl-C reaches the launcher alone.
    EXPECT_EQ(launcher.numbers("pid"), launcher.numbers("group"));
    launcher.process.send(number);
    EXPECT_EQ(launcher.process.wait(), 128 + number) << launcher.process.output();
    // Not the text of a second signal.
    EXPECT_EQ(launcher.process.output().find("run: interrupted\n"), std::string::npos);
  }
}

// The lines of a run that a signal has stopped.
std::string interrupted(const std::string& grace, const std::string& run, const std::string& end) {
  const test::TemporaryFolder folder;
  ChildProcess process({"launch_child", "interrupted", grace, run, end}, {},
                       folder.path / "output");
  EXPECT_TRUE(process.wait_for("started.")) << process.output();
  process.send(SIGTERM);
  EXPECT_EQ(process.wait(), 143) << process.output();
  return process.output();
}

TEST(Interrupted, ARunSaysItOnceHoweverLongItsProcessTakesToEnd) {
  const std::string own = "started.\nerror: 143: run: interrupted by SIGTERM\n";
  EXPECT_EQ(interrupted("10", "0", "0"), own);
  EXPECT_EQ(interrupted("2", "0", "3"), own);   // longer than the grace
  EXPECT_EQ(interrupted("2", "0", "60"), own);  // for which the watch does not wait
}

TEST(Interrupted, ARunThatGoesOnIsEndedByTheWatch) {
  const std::string watch = "started.\nerror: 143: run: interrupted\n";
  EXPECT_EQ(interrupted("0.2", "60", "0"), watch);
}

TEST(Launch, AProcessThatDoesNotStopIsKilled) {
  Launcher launcher({"2", "0.5", "stubborn", "wait", "3"});
  launcher.process.expect_end(3, "");
  for (const pid_t pid : launcher.numbers("pid")) EXPECT_TRUE(is_gone(pid));
}

TEST(Launch, ProcessesDieWithTheLauncher) {
  Launcher launcher({"2", "10", "end", "wait", "wait"});
  ASSERT_TRUE(launcher.process.wait_for(".\n", 2)) << launcher.process.output();
  const auto pids = launcher.numbers("pid");
  ASSERT_EQ(pids.size(), 2u);
  launcher.process.send(SIGKILL);
  EXPECT_EQ(launcher.process.wait(), 137);
  for (const pid_t pid : pids) EXPECT_TRUE(is_gone(pid));
}

TEST(Launch, WrongArgumentsAreRefused) {
  expect_error(ErrorCode::usage, "expected a number from 1, got 0",
               [] { launch_processes(0, {"/bin/true"}); });
  expect_error(ErrorCode::usage, "/nowhere/program: cannot be run",
               [] { launch_processes(1, {"/nowhere/program"}); });
}

}  // namespace
}  // namespace fovea::apps
