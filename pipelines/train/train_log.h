#pragma once

#include <cstdint>

#include "core/file.h"
#include "core/json.h"

namespace fovea::pipelines {

/// The log of a training run: one JSON object a line, with the key "step".
class TrainLog {
 public:
  explicit TrainLog(fs::path path) : path_(std::move(path)) {}

  const fs::path& path() const { return path_; }
  /// Goes on after step `step`: what an earlier run has logged of later steps, and of its result,
  /// is dropped, so that no step is there twice.
  ///
  /// throws  Error resource when the file cannot be written
  void begin(int64_t step) const;
  /// Appends a line. A full disk ends a run when it saves, not here.
  void write(const Json& line) const;

 private:
  fs::path path_;
};

}  // namespace fovea::pipelines
