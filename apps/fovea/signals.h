#pragma once

namespace fovea::apps {

/// Makes SIGINT, SIGTERM and SIGHUP ask the run to stop, from a thread of its own.
///
/// Must be made before any other thread starts: the signals are blocked in the caller and in all
/// threads it starts later. After a signal the run has 1.5 s (see `set_stop_grace`) to unwind to
/// its next check point; then, or at a second signal, temporary files are removed and the process
/// ends with 128 + signal. SIGPIPE is ignored, so that a closed reader shows up as a failed write.
class SignalWatch {
 public:
  SignalWatch();
};

/// Says how the run ended, before its error line is printed: what is left of the process, which may
/// take longer than the run was given, then ends with `code` and prints nothing more. Does not
/// return when the watch has already printed that the run is interrupted.
void settle_exit_code(int code) noexcept;

/// How many seconds a run has to stop after a signal, for one that must wait for others to stop.
void set_stop_grace(double seconds) noexcept;

}  // namespace fovea::apps
