#pragma once

#include <string>
#include <vector>

#include "core/media/draw.h"

namespace fovea::apps {

/// A video in memory.
struct Clip {
  int width = 0;
  int height = 0;
  std::vector<std::vector<uint8_t>> frames;  ///< each [height, width, 3]

  Picture frame(size_t index) const { return {width, height, frames[index]}; }
};

/// What is written over a video.
struct ClipLabel {
  std::string title;
  std::string note;
};

/// Frames of videos beside each other, each under its label; in rows where a video may not be that
/// wide.
class SideBySide {
 public:
  /// clips   of one size and length
  /// throws  Error resource when there is no room for them all
  SideBySide(const std::vector<Clip>& clips, std::vector<ClipLabel> labels);

  int width() const { return background_.picture().width; }
  int height() const { return background_.picture().height; }
  Picture frame(size_t index) const;

 private:
  Box place(size_t clip) const;

  const std::vector<Clip>& clips_;
  int columns_ = 1;
  Canvas background_;
};

/// Eight or fewer frames of each video from the first to the last one: a row a video, a column a
/// frame.
Picture contact_sheet(const std::vector<Clip>& clips, const std::vector<ClipLabel>& labels,
                      const std::string& title);

}  // namespace fovea::apps
