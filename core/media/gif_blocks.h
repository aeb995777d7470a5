#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "core/file.h"

namespace fovea {

/// What the block structure of a GIF file says, without its pixels.
struct GifInfo {
  int width = 0;
  int height = 0;
  int64_t frames = 0;
  int64_t delay_cs = 0;  ///< sum of all frame delays, 1/100 s, as stored
  std::string comment;   ///< all comment extensions joined
};

/// Walks all blocks of a GIF file up to its trailer. throws  Error bad_data with the byte offset
GifInfo read_gif(const fs::path& path);

/// A comment extension block that holds `text`.
std::string gif_comment_block(std::string_view text);

/// Where a comment can be put: behind the header, the global palette and the loop extension of the
/// file that begins with `bytes`; 0 while more bytes are needed to know.
size_t gif_comment_position(std::string_view bytes);

}  // namespace fovea
