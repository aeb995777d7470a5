#include "core/media/video_reader.h"

#include <cmath>
#include <fstream>

#include "core/check.h"
#include "core/media/gif_blocks.h"
#include "core/media/video_formats.h"

namespace fovea {

void check_video_size(int64_t width, int64_t height, int64_t frames, std::string_view where,
                      const VideoLimits& limits) {
  require(width >= 1 && height >= 1 && frames >= 1, ErrorCode::usage, where,
          "expected at least one frame of at least 1x1, got ", frames, " of ", width, "x", height);
  require(width <= limits.max_side && height <= limits.max_side && frames <= limits.max_frames &&
              width * height * frames <= limits.max_pixels,
          ErrorCode::resource, where, "video of ", width, "x", height, "x", frames,
          " is above the budget of ", limits.max_side, " pixels a side, ", limits.max_frames,
          " frames and ", limits.max_pixels, " pixels in all");
}

bool has_video_formats() { return FOVEA_HAS_FFMPEG; }

std::string read_head(const fs::path& path, size_t count) {
  check_regular_file(path);
  std::ifstream file(path, std::ios::binary);
  require(file.good(), ErrorCode::bad_data, path.string(), "cannot open");
  std::string bytes(count, '\0');
  file.read(bytes.data(), static_cast<std::streamsize>(count));
  bytes.resize(static_cast<size_t>(file.gcount()));
  return bytes;
}

std::unique_ptr<VideoReader> open_video(const fs::path& path, const VideoLimits& limits) {
  check_regular_file(path);
#if FOVEA_HAS_FFMPEG
  return make_ffmpeg_reader(path, limits);
#else
  static_cast<void>(limits);
  throw Error(ErrorCode::usage, path.string(),
              "this build of Fovea has no FFmpeg libraries, so it cannot read videos");
#endif
}

VideoInfo probe_video(const fs::path& path, const VideoLimits& limits) {
  return open_video(path, limits)->info();
}

std::optional<std::string> read_comment(const fs::path& path) {
  const std::string head = read_head(path, 8);
  if (head.starts_with("\x89PNG")) {
    const PngText text = read_png_text(path);
    const auto found = text.find("Comment");
    return found == text.end() ? std::nullopt : std::optional(found->second);
  }
  std::string comment =
      head.starts_with("GIF8") ? read_gif(path).comment : probe_video(path).comment;
  return comment.empty() ? std::nullopt : std::optional(std::move(comment));
}

void verify_video(const fs::path& file, const VideoOptions& options, Rational fps) {
  const std::string where = options.path.string();
  const std::unique_ptr<VideoReader> reader = open_video(file);
  const VideoInfo& info = reader->info();
  int64_t decoded = 0;
  for (Picture frame; reader->read(frame);) ++decoded;
  require(info.width == options.width && info.height == options.height &&
              info.frames == options.frames && decoded == options.frames,
          ErrorCode::internal, where, "read back: expected ", options.frames, " frames of ",
          options.width, "x", options.height, ", got ", info.frames, " (", decoded, " decoded) of ",
          info.width, "x", info.height);
  // webm keeps times in ms and its rate as a rounded frame duration.
  require(options.frames == 1 || std::abs(info.fps.value() / fps.value() - 1) < 1e-3,
          ErrorCode::internal, where, "read back: expected ", fps.text(), " frames a second, got ",
          info.fps.text());
  require(info.comment == options.comment, ErrorCode::internal, where,
          "read back: the comment differs");
}

}  // namespace fovea
