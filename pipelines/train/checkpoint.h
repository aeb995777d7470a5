#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "core/file.h"
#include "core/weights.h"

namespace fovea::pipelines {

/// Where a training run stands.
struct TrainingState {
  int64_t step = 0;     ///< steps done
  int64_t skipped = 0;  ///< of these, steps that were skipped because a number was not finite
  TensorMap tensors;    ///< the optimizer's
};

/// The file that an interrupted run goes on from. A run that is killed while it saves leaves the
/// file before whole.
class Checkpoint {
 public:
  /// settings  text that a run has to share with the one it goes on from
  Checkpoint(fs::path path, std::string settings)
      : path_(std::move(path)), settings_(std::move(settings)) {}

  const fs::path& path() const { return path_; }
  /// throws  Error resource: disk full, not writable
  void save(const TrainingState& state) const;
  /// The state, or nothing when there is no file.
  ///
  /// throws  Error bad_data for a damaged file (the tensors' bytes have a checksum), conflict when
  ///         it was made with other settings
  std::optional<TrainingState> load() const;
  /// Removes the file, if there is one. throws Error resource when it cannot be removed
  void remove() const;

 private:
  fs::path path_;
  std::string settings_;
};

}  // namespace fovea::pipelines
