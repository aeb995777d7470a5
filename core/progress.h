#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "core/json.h"

namespace fovea {

/// Where a run shows how far it is. Stages follow each other; each has a known number of units.
class Progress {
 public:
  virtual ~Progress() = default;
  /// name   "load", "encode_text", "denoise", "decode", ...; total  units of work, ≥ 1
  virtual void begin(const std::string& name, int64_t total) = 0;
  /// done   units finished so far in this stage
  virtual void update(int64_t done) = 0;
  /// Ends the stage; its wall time goes to `seconds()`.
  virtual void end() = 0;
  /// A free-form event, for JSON lines ("output", "skipped", ...); others ignore it.
  virtual void event(const std::string& name, const Json& fields) = 0;
  /// Wall seconds of every ended stage, in order.
  virtual Json seconds() const = 0;
};

enum class ProgressStyle {
  silent,  ///< times only
  bar,     ///< one redrawn line with ETA on standard error, for terminals
  lines,   ///< one plain line a stage on standard error, for logs
  json,    ///< one JSON object a line on standard output
};

/// bar becomes lines when standard error is no terminal.
std::unique_ptr<Progress> make_progress(ProgressStyle style);

}  // namespace fovea
