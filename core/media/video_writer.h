#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/file.h"
#include "core/media/rational.h"

namespace fovea {

/// What to write, known before the first frame is.
struct VideoOptions {
  fs::path path;  ///< the ending says the format, see `make_video_writer`
  int width = 0;  ///< pixels
  int height = 0;
  int64_t frames = 0;      ///< how many will be written
  Rational fps;            ///< frames a second
  std::string comment;     ///< text kept inside the file, UTF-8 without NUL, such as JSON
  bool overwrite = false;  ///< replace a file that exists
  int threads = 4;         ///< of the encoder, or PNG files at a time; the bytes depend on it
};

/// What was written.
struct VideoResult {
  std::vector<fs::path> files;  ///< one, or one a frame
  std::string format;           ///< "mp4", "webm", "gif" or "png"
  std::string codec;            ///< "h264", "vp9", "gif" or "png"
  std::string pixel_format;     ///< "yuv420p", "yuv444p", "pal8" or "rgb24"
  int64_t frames = 0;
  Rational fps;                    ///< as delivered; gif delays are whole 1/100 s
  uint64_t bytes = 0;              ///< of all files
  std::vector<std::string> notes;  ///< what a reader of the run report should know, if anything
};

/// Takes frames one by one. Nothing is at the output path before `finish()`, and nothing is left
/// behind when the writer goes away without it.
class VideoWriter {
 public:
  virtual ~VideoWriter() = default;

  /// The next frame. An error of an earlier one may be thrown here.
  ///
  /// rgb     [height, width, 3]
  /// throws  Error resource (disk full, file too large), interrupted; usage beyond
  ///         `VideoOptions::frames` or for another size
  void write(std::span<const uint8_t> rgb);

  /// Ends the file, reads it back (frame count, size, rate) and renames it into place.
  ///
  /// throws  Error as `write`; conflict when the output has appeared meanwhile; usage when frames
  ///         are missing
  VideoResult finish();

  int64_t frames_written() const { return written_; }

 protected:
  explicit VideoWriter(VideoOptions options) : options_(std::move(options)) {}

  virtual void write_frame(const uint8_t* rgb, int64_t index) = 0;
  virtual VideoResult finish_file() = 0;

  VideoOptions options_;

 private:
  int64_t written_ = 0;
};

/// A writer for the format that the path's ending names:
///
/// .mp4   H.264 (libx264, crf 17), 4:2:0; sizes with an odd side are kept by 4:4:4, and noted
/// .webm  VP9 (libvpx), 4:2:0, any size
/// .gif   a palette a frame; up to 50 frames a second; the rate is the nearest that delays of whole
///        1/100 s allow, and noted; the comment is in a comment extension
/// .png   a sequence when the name holds exactly one %d or %0Nd (N 1 to 9), numbered from 0; or one
///        picture, when the video has one frame; the comment is in each file
///
/// Colours of mp4 and webm are BT.709, limited range, tagged so. A PNG sequence refuses (conflict)
/// a folder that holds any file of its pattern; with `overwrite` it replaces those of its own
/// numbers, and still refuses when one of a higher number is there, as two videos would mix.
///
/// throws  Error usage (ending, pattern, rate, missing folder, a format this build has not),
///         conflict (output exists), resource (above 4,096 a side, 20,000 frames, 8 Gpx in all)
std::unique_ptr<VideoWriter> make_video_writer(VideoOptions options);

/// Checks all that `make_video_writer` would refuse, without creating anything; for before long
/// work starts. Throws as it.
void check_video_options(const VideoOptions& options);

}  // namespace fovea
