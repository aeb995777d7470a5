#include "core/media/ffmpeg_common.h"

#include <algorithm>

#include "core/check.h"

namespace fovea::ffmpeg {
namespace {

// FFmpeg's own codes are four-character tags far below any negated errno.
bool is_errno(int code) { return code > -4096; }

}  // namespace

std::string error_text(int code) {
  char text[AV_ERROR_MAX_STRING_SIZE] = {};
  av_strerror(code, text, sizeof text);
  return text;
}

int check_write(int code, const fs::path& path, const char* action) {
  if (code >= 0) return code;
  if (is_errno(code) && code != AVERROR(EINVAL)) throw_errno(AVUNERROR(code), path, action);
  throw Error(ErrorCode::internal, path.string(), str("cannot ", action, ": ", error_text(code)));
}

int check_read(int code, const fs::path& path, const char* action) {
  if (code >= 0) return code;
  // EAGAIN: no memory for the decoder's threads.
  const bool resource = code == AVERROR(ENOMEM) || code == AVERROR(EAGAIN);
  throw Error(resource ? ErrorCode::resource : ErrorCode::bad_data, path.string(),
              str("cannot ", action, ": ", error_text(code)));
}

void quiet() { av_log_set_level(AV_LOG_QUIET); }

std::string file_url(const fs::path& path) { return "file:" + path.string(); }

Frame make_frame() {
  Frame frame(av_frame_alloc());
  require(frame != nullptr, ErrorCode::resource, "video frame", "no memory");
  return frame;
}

Packet make_packet() {
  Packet packet(av_packet_alloc());
  require(packet != nullptr, ErrorCode::resource, "video packet", "no memory");
  return packet;
}

Frame make_frame(int width, int height, AVPixelFormat format) {
  Frame frame = make_frame();
  frame->width = width;
  frame->height = height;
  frame->format = format;
  require(av_frame_get_buffer(frame.get(), 0) >= 0, ErrorCode::resource, "video frame",
          "no memory for ", width, "x", height);
  return frame;
}

void copy_rgb(const uint8_t* rgb, AVFrame& frame) {
  const size_t row = static_cast<size_t>(frame.width) * 3;
  for (int y = 0; y < frame.height; ++y) {
    std::copy_n(rgb + y * row, row, frame.data[0] + static_cast<int64_t>(y) * frame.linesize[0]);
  }
}

}  // namespace fovea::ffmpeg
