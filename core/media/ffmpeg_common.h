#pragma once

#include <cstdint>
#include <memory>
#include <string>

extern "C" {
#include <libavcodec/avcodec.h>
#include <libavfilter/avfilter.h>
#include <libavformat/avformat.h>
#include <libavutil/frame.h>
#include <libswscale/swscale.h>
}

#include "core/file.h"

// Owners and errors for FFmpeg's C interfaces; included by the ffmpeg_*.cpp files only.
namespace fovea::ffmpeg {

struct Deleter {
  void operator()(AVFrame* frame) const { av_frame_free(&frame); }
  void operator()(AVPacket* packet) const { av_packet_free(&packet); }
  void operator()(AVCodecContext* codec) const { avcodec_free_context(&codec); }
  void operator()(SwsContext* scaler) const { sws_freeContext(scaler); }
  void operator()(AVFilterGraph* graph) const { avfilter_graph_free(&graph); }
};
using Frame = std::unique_ptr<AVFrame, Deleter>;
using Packet = std::unique_ptr<AVPacket, Deleter>;
using Codec = std::unique_ptr<AVCodecContext, Deleter>;
using Scaler = std::unique_ptr<SwsContext, Deleter>;
using FilterGraph = std::unique_ptr<AVFilterGraph, Deleter>;

/// Throws for a negative `code` of a writing call: resource for the errno values that mean it, else
/// internal; `action` completes "cannot ...". Returns `code`.
int check_write(int code, const fs::path& path, const char* action);

/// Throws for a negative `code` of a reading call: resource for memory, else bad_data.
int check_read(int code, const fs::path& path, const char* action);

/// FFmpeg's own words for an error.
std::string error_text(int code);

/// Silences FFmpeg, x264 and libvpx, which write to standard error otherwise. Process-wide.
void quiet();

/// A URL that names the file whatever characters its path holds.
std::string file_url(const fs::path& path);

/// A frame with owned, aligned planes. throws  Error resource
Frame make_frame(int width, int height, AVPixelFormat format);
Frame make_frame();
Packet make_packet();

/// Copies packed RGB rows into an RGB24 frame, whose rows are padded as the scaler wants them.
void copy_rgb(const uint8_t* rgb, AVFrame& frame);

}  // namespace fovea::ffmpeg
