#pragma once

#include <memory>

#include "core/media/video_reader.h"
#include "core/media/video_writer.h"

// The writers and readers behind `make_video_writer` and `open_video`. Those named container, gif
// and reader exist only in builds with the FFmpeg libraries.
namespace fovea {

/// mp4 and webm.
std::unique_ptr<VideoWriter> make_container_writer(const VideoOptions& options);
std::unique_ptr<VideoWriter> make_gif_writer(const VideoOptions& options);
/// A PNG sequence, or one PNG.
std::unique_ptr<VideoWriter> make_png_writer(const VideoOptions& options);

/// Throws Error usage for a name that `make_png_writer` does not take, conflict as documented
/// there.
void check_png_output(const VideoOptions& options);

std::unique_ptr<VideoReader> make_ffmpeg_reader(const fs::path& path, const VideoLimits& limits);

/// The first bytes of a regular file, `count` or fewer. throws  Error bad_data
std::string read_head(const fs::path& path, size_t count);

/// Reads the finished but not yet renamed file back and compares it with what was to be written.
///
/// file    where it is now
/// fps     the rate it has to have
/// throws  Error internal when frame count, size, rate or comment differ
void verify_video(const fs::path& file, const VideoOptions& options, Rational fps);

}  // namespace fovea
