#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "core/file.h"
#include "core/media/picture.h"
#include "core/media/rational.h"

namespace fovea {

/// Budgets for a video that is read or written.
struct VideoLimits {
  int max_side = 4096;  ///< pixels
  int64_t max_frames = 20000;
  int64_t max_pixels = int64_t{8} << 30;  ///< of all frames together
};

/// Throws Error usage for a number below 1, resource above `limits`.
void check_video_size(int64_t width, int64_t height, int64_t frames, std::string_view where,
                      const VideoLimits& limits = {});

/// What a video file holds.
struct VideoInfo {
  std::string format;        ///< "mp4", "webm" or "gif"
  std::string codec;         ///< FFmpeg's name, such as "h264"
  std::string pixel_format;  ///< FFmpeg's name, such as "yuv420p"
  int width = 0;
  int height = 0;
  int64_t frames = 0;  ///< counted, not taken from a header
  Rational fps;        ///< mean rate; gif: frames over the sum of delays
  double seconds = 0;
  std::string comment;  ///< the comment tag, empty where there is none
};

/// Reads structure and packets of an mp4, webm or gif file, decoding nothing but what is needed to
/// know its format. No other file is opened, whatever the file says.
///
/// throws  Error bad_data (damaged, no video, unknown format), resource above `limits`, usage in a
///         build without the FFmpeg libraries
VideoInfo probe_video(const fs::path& path, const VideoLimits& limits = {});

/// Decodes a video frame by frame.
class VideoReader {
 public:
  virtual ~VideoReader() = default;

  virtual const VideoInfo& info() const = 0;
  /// The next frame as RGB; false after the last one.
  ///
  /// throws  Error bad_data (damaged), resource above the limits, interrupted
  virtual bool read(Picture& frame) = 0;
};

/// Opens a video; throws as `probe_video`. Frames in BT.601 or BT.709, limited or full range, are
/// converted as tagged; without a tag, BT.709 from 720 rows on, else BT.601.
std::unique_ptr<VideoReader> open_video(const fs::path& path, const VideoLimits& limits = {});

/// The comment inside an mp4, webm, gif or png file (PNG keyword "Comment"); nullopt where there is
/// none. Throws as `probe_video` and `read_png_text`.
std::optional<std::string> read_comment(const fs::path& path);

/// Whether this build reads and writes mp4, webm and gif.
bool has_video_formats();

}  // namespace fovea
