#pragma once

namespace fovea::kernels {

enum class StatusCode {
  ok,
  invalid,      ///< arguments that contradict each other: a bug of the caller
  unsupported,  ///< a legal problem that this kernel does not cover; the caller takes another way
  device,       ///< the driver refused the launch
};

/// What a kernel launcher answers. `message` is a string literal or the driver's own text; it is
/// never freed.
struct [[nodiscard]] Status {
  StatusCode code = StatusCode::ok;
  const char* message = "";

  bool ok() const { return code == StatusCode::ok; }
};

}  // namespace fovea::kernels
