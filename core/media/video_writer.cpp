#include "core/media/video_writer.h"

#include <algorithm>
#include <cctype>

#include "core/check.h"
#include "core/interrupt.h"
#include "core/media/video_formats.h"

namespace fovea {
namespace {

std::string ending(const fs::path& path) {
  std::string text = path.extension().string();
  std::transform(text.begin(), text.end(), text.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return text;
}

void check_comment(const std::string& comment, const std::string& where) {
  constexpr size_t kMaxBytes = 16u << 20;
  require(comment.size() <= kMaxBytes && comment.find('\0') == std::string::npos, ErrorCode::usage,
          where, "the comment has ", comment.size(), " bytes: expected up to ", kMaxBytes,
          " without NUL");
}

}  // namespace

void VideoWriter::write(std::span<const uint8_t> rgb) {
  throw_if_interrupted();
  const std::string where = options_.path.string();
  require(written_ < options_.frames, ErrorCode::usage, where, "more than the ", options_.frames,
          " frames announced");
  const size_t expected = static_cast<size_t>(options_.width) * options_.height * 3;
  require(rgb.size() == expected, ErrorCode::usage, where, "frame ", written_, ": expected ",
          expected, " bytes, got ", rgb.size());
  write_frame(rgb.data(), written_);
  ++written_;
}

VideoResult VideoWriter::finish() {
  throw_if_interrupted();
  require(written_ == options_.frames, ErrorCode::usage, options_.path.string(), "expected ",
          options_.frames, " frames, got ", written_);
  VideoResult result = finish_file();
  result.frames = written_;
  for (const fs::path& file : result.files) result.bytes += check_regular_file(file);
  return result;
}

void check_video_options(const VideoOptions& options) {
  const std::string where = options.path.string();
  const std::string format = ending(options.path);
  const bool video = format == ".mp4" || format == ".webm" || format == ".gif";
  require(video || format == ".png", ErrorCode::usage, where,
          "expected a name that ends in .mp4, .webm, .gif or .png, got '", format, "'");
  require(!video || has_video_formats(), ErrorCode::usage, where,
          "this build of Fovea has no FFmpeg "
          "libraries, so it cannot write '",
          format, "': expected .png (name_%03d.png for a video)");
  check_video_size(options.width, options.height, options.frames, where);
  check_frame_rate(options.fps, where);
  check_comment(options.comment, where);
  require(options.threads >= 1 && options.threads <= 64, ErrorCode::usage, where,
          "expected 1 to 64 encoder threads, got ", options.threads);
  require(format != ".gif" || options.fps.num <= 50 * options.fps.den, ErrorCode::usage, where,
          "a GIF has at most 50 frames a second, got ", options.fps.text());
  if (format == ".png") {
    check_png_output(options);
  } else {
    check_output_path(options.path, options.overwrite);
  }
}

std::unique_ptr<VideoWriter> make_video_writer(VideoOptions options) {
  check_video_options(options);
  const std::string format = ending(options.path);
#if FOVEA_HAS_FFMPEG
  if (format == ".gif") return make_gif_writer(options);
  if (format != ".png") return make_container_writer(options);
#endif
  return make_png_writer(options);
}

}  // namespace fovea
