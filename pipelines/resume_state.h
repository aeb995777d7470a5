#pragma once

#include <optional>
#include <string>

#include "core/file.h"
#include "pipelines/text_to_video.h"

namespace fovea::pipelines {

/// The file that `--resume` keeps beside an output while it is being made:
/// OUTPUT.resume.safetensors.
///
/// It holds the settings of the run as text, the number of steps done, the latents and what the
/// scheduler remembers, and is replaced as a whole (beside, fsync, rename). It goes when the output
/// is there.
class ResumeState {
 public:
  /// settings  everything that decides the picture; a state of other settings is never used
  ResumeState(const fs::path& output, std::string settings);

  /// The saved state, or nothing when there is none.
  /// throws  Error conflict when it belongs to other settings, bad_data when it is damaged
  std::optional<DenoiseState> load() const;
  /// Saves when the last save is at least `min_seconds` ago, so that fast steps are not slowed
  /// down.
  void save(const DenoiseState& state, double min_seconds);
  void remove() const;
  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
  std::string settings_;
  double last_save_ = 0;  ///< seconds on the steady clock
};

}  // namespace fovea::pipelines
