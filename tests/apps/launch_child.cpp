// For launch_test. `launch_child launch COUNT GRACE ROLE ARGUMENTS...` is the launcher, which runs
// `launch_child ROLE ARGUMENTS...` COUNT times. `launch_child interrupted GRACE RUN END` is a run
// that goes on for RUN seconds after a signal, in a process that takes END seconds to end.

#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

#include "apps/fovea/launch.h"
#include "apps/fovea/signals.h"
#include "core/check.h"
#include "core/interrupt.h"

namespace {

using Arguments = std::vector<std::string>;

const char* variable(const char* name) {
  const char* text = std::getenv(name);
  return text == nullptr ? "" : text;
}

// One line, in one write: lines of several processes do not mix.
void say(const std::string& line) { std::fputs((line + "\n").c_str(), stdout); }

int show_place() {
  say(fovea::str("rank ", variable("RANK"), " of ", variable("WORLD_SIZE"), " local ",
                 variable("LOCAL_RANK"), " of ", variable("LOCAL_WORLD_SIZE"), " at ",
                 variable("MASTER_ADDR"), " kept ", variable("KEPT"), " input ", std::getchar()));
  return std::atoi(variable("MASTER_PORT")) > 0 ? 0 : 1;
}

// Ends with the code that the arguments name for this rank; "wait" waits for a signal.
int end_as_told(const Arguments& arguments) {
  const std::string& told = arguments.at(static_cast<size_t>(std::atoi(variable("RANK"))));
  say(fovea::str("started ", variable("RANK"), " pid ", ::getpid(), " group ", ::getpgrp(), "."));
  if (told == "die") ::raise(SIGKILL);
  if (told != "wait") return std::stoi(told);
  for (;;) {
    fovea::throw_if_interrupted();
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
}

void sleep(double seconds) { std::this_thread::sleep_for(std::chrono::duration<double>(seconds)); }

int end_slowly(double grace, double run_seconds, double end_seconds) {
  fovea::apps::set_stop_grace(grace);
  say("started.");
  while (fovea::interrupt_requested() == 0) sleep(0.005);
  sleep(run_seconds);
  static const struct Last {  // destroyed when the process ends
    double seconds;
    ~Last() { sleep(seconds); }
  } last{end_seconds};
  fovea::throw_if_interrupted();
  return 0;
}

int run(const std::string& role, Arguments arguments) {
  if (role == "launch") {
    const int count = std::stoi(arguments.at(0));
    const double grace = std::stod(arguments.at(1));
    Arguments command = fovea::apps::own_command();
    command.erase(command.begin() + 1, command.begin() + 4);
    return fovea::apps::launch_processes(count, command, {.grace_seconds = grace});
  }
  if (role == "interrupted") {
    return end_slowly(std::stod(arguments.at(0)), std::stod(arguments.at(1)),
                      std::stod(arguments.at(2)));
  }
  return role == "place" ? show_place() : end_as_told(arguments);
}

}  // namespace

int main(int argc, char** argv) {
  std::setvbuf(stdout, nullptr, _IOLBF, BUFSIZ);
  const std::string role = argv[1];
  if (role == "stubborn") {
    for (const int number : {SIGTERM, SIGINT}) ::signal(number, SIG_IGN);
  } else {
    const fovea::apps::SignalWatch signals;
  }
  try {
    return run(role, Arguments(argv + 2, argv + argc));
  } catch (const fovea::Error& error) {
    fovea::apps::settle_exit_code(error.exit_code());
    std::printf("error: %s\n", error.what());
    return error.exit_code();
  }
}
