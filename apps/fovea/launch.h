#pragma once

#include <string>
#include <vector>

namespace fovea::apps {

/// Whether a launcher (`launch_processes`, torchrun, ...) started this process: RANK is set.
bool is_launched();

/// The command line of this process, with the path of its program in front.
std::vector<std::string> own_command();

struct LaunchOptions {
  /// How long processes may take to end after SIGTERM, and again after SIGKILL.
  double grace_seconds = 10;
};

/// Runs `command` as `count` processes of one group on this machine and waits for them.
///
/// Each gets RANK and LOCAL_RANK 0 to count - 1, WORLD_SIZE, MASTER_ADDR and a free MASTER_PORT,
/// which `read_process_place` reads, and /dev/null as standard input. When one fails the others are
/// stopped (SIGTERM, then SIGKILL). A signal that `SignalWatch` has caught goes on to all of them,
/// once: each is the leader of a process group of its own, so that a terminal's Ctrl-C does not
/// reach it a second time. They are also stopped when this process dies. Touches no device.
///
/// To be called from the main thread.
///
/// command  the program's path, then its arguments
/// returns  0, or the exit code of the process that failed first
/// throws   Error device when that one was killed by a signal, usage for a count below 1 or a
///          program that cannot be run, resource when no process can be started
int launch_processes(int count, const std::vector<std::string>& command,
                     const LaunchOptions& options = {});

}  // namespace fovea::apps
