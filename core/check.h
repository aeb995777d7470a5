#pragma once

#include <exception>
#include <sstream>
#include <string>
#include <string_view>

namespace fovea {

/// What kind of failure an `Error` reports; the value is the exit code of the `fovea` program.
enum class ErrorCode : int {
  internal = 1,       ///< a broken invariant of ours: always a bug
  usage = 2,          ///< wrong options or arguments
  bad_data = 3,       ///< a file or tensor that cannot be used
  resource = 4,       ///< memory, disk, or a size budget
  non_finite = 5,     ///< NaN or Inf where numbers were expected, or a failed numeric check
  device = 6,         ///< accelerator missing, or its driver failed
  conflict = 7,       ///< output exists, lock held, resume state of another run
  interrupted = 130,  ///< stopped by SIGINT
  hangup = 129,       ///< stopped by SIGHUP
  terminated = 143,   ///< stopped by SIGTERM
};

/// The one exception type the library throws. `what()` is "CODE: FILE: REASON", one line, with
/// control characters escaped and overlong input shortened.
class Error : public std::exception {
 public:
  /// where   file, option or operator the failure is about
  /// reason  what is wrong: expected X, got Y
  Error(ErrorCode code, std::string_view where, std::string_view reason);

  const char* what() const noexcept override { return what_.c_str(); }
  ErrorCode code() const noexcept { return code_; }
  int exit_code() const noexcept { return static_cast<int>(code_); }
  const std::string& where() const noexcept { return where_; }
  const std::string& reason() const noexcept { return reason_; }

 private:
  ErrorCode code_;
  std::string where_;
  std::string reason_;
  std::string what_;
};

/// Escapes control characters and invalid UTF-8 bytes as \xNN and cuts after `max_bytes`, so that
/// text from input files can be shown on a terminal.
std::string printable(std::string_view text, size_t max_bytes = 400);

/// Concatenates its arguments with operator<<.
template <typename... Args>
std::string str(const Args&... args) {
  std::ostringstream out;
  (out << ... << args);
  return out.str();
}

/// Throws `Error` with `code` unless `condition` holds; the reason is built only then.
template <typename... Args>
void require(bool condition, ErrorCode code, std::string_view where, const Args&... reason) {
  if (!condition) throw Error(code, where, fovea::str(reason...));  // not c10::str
}

}  // namespace fovea

/// A broken invariant of our own code: throws `Error` with `ErrorCode::internal`, file and line.
#define FOVEA_ASSERT(condition, ...)                                                            \
  do {                                                                                          \
    if (!(condition)) {                                                                         \
      throw ::fovea::Error(::fovea::ErrorCode::internal, ::fovea::str(__FILE__, ":", __LINE__), \
                           ::fovea::str(#condition " does not hold. ", ##__VA_ARGS__));         \
    }                                                                                           \
  } while (false)
